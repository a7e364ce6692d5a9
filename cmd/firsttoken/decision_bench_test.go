package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/fidelity"
	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/routed"
	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/test/shared"
)

// BenchmarkDecision is one decision from the bytes of the body to the answer
// that Envoy gets, without gRPC: the state machine of the stream, the encoder
// with the tokenizer and template of Qwen2.5, chunk keys, lookup in LMCache's
// index and in our own memory, booking, journal. Three endpoints.
//
// fresh: a conversation of 10 messages whose text was never seen. next: the same
// conversation again, with an answer of 600 bytes and a question of 300 bytes
// behind it. cpu-µs/op is what the whole process took, garbage collection and
// other threads included; it is the figure to compare on a machine that is
// shared.
func BenchmarkDecision(b *testing.B) {
	for _, bench := range []struct {
		name  string
		bytes int
		next  bool
	}{
		{"fresh/200B", 200, false},
		{"fresh/80KB", 80_000, false},
		{"fresh/400KB", 400_000, false},
		{"next/80KB", 80_000, true},
		{"next/400KB", 400_000, true},
	} {
		b.Run(bench.name, func(b *testing.B) {
			d := newDecider(b)
			talk := newTalk(b)
			var cpu time.Duration
			tokens := 0
			// Conversations are made while no clock runs, many at once.
			batch := max(32, 1_000_000/bench.bytes)
			var bodies [][]byte
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i++ {
				if len(bodies) == 0 {
					b.StopTimer()
					for range min(batch, b.N-i) {
						messages := talk.conversation(bench.bytes)
						if bench.next {
							if _, err := d.decide(b.Context(), talk.body(b, messages)); err != nil {
								b.Fatal(err)
							}
							messages = append(messages, talk.message("assistant", 600), talk.message("user", 300))
						}
						bodies = append(bodies, talk.body(b, messages))
					}
					runtime.GC()
					b.StartTimer()
				}
				begin := cpuTime(b)
				n, err := d.decide(b.Context(), bodies[0])
				cpu += cpuTime(b) - begin
				if err != nil {
					b.Fatal(err)
				}
				tokens += n
				bodies = bodies[1:]
			}
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(tokens)/float64(b.N), "tokens/op")
		})
	}
}

// decider is the service without its sockets.
type decider struct {
	server *extproc.Server
	last   *scoring.Decision
}

// fixedRoster is a Roster that never changes.
type fixedRoster []lmcache.Instance

func (r fixedRoster) Instances() (uint64, []lmcache.Instance) { return 1, r }
func (fixedRoster) Heard(string) time.Time                    { return time.Time{} }
func (fixedRoster) Claim(uint64, map[string]bool)             {}

func newDecider(b *testing.B) *decider {
	b.Helper()
	cfg := prompt.DefaultConfig()
	cfg.Models = []prompt.ModelConfig{{Name: "qwen", Tokenizer: shared.File(b, "tokenizers", "qwen2.5")}}
	encoder, err := prompt.NewEncoder(cfg, prompt.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(encoder.Close)
	if err := encoder.Wait(b.Context()); errors.Is(err, native.ErrNotBuilt) {
		b.Skip("this build has no native tokenizer")
	} else if err != nil {
		b.Fatal(err)
	}
	var endpoints []scoring.Endpoint
	var roster fixedRoster
	index := lmcache.NewIndex(lmcache.IndexConfig{MaxKeys: 1_000_000})
	for i := range 3 {
		ip := fmt.Sprintf("10.0.0.%d", i+1)
		endpoints = append(endpoints, scoring.Endpoint{
			ID: scoring.EndpointID(i + 1), Name: ip + ":8000", Address: ip + ":8000", Models: []string{"qwen"}, Ready: true,
			Cache: scoring.CacheIdentity{Instance: ip},
		})
		roster = append(roster, lmcache.Instance{ID: ip, Workers: []lmcache.WorkerAddress{{IP: ip, Port: 9000}}})
		index.Register(lmcache.WorkerID{Instance: ip})
	}
	source, err := lmcache.NewSource(lmcache.DefaultConfig(), index, roster, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	memory := routed.New(routed.DefaultConfig(), slog.New(slog.DiscardHandler))
	checker := fidelity.New(
		[]fidelity.Source{{Name: sourceLMCache, Index: source}}, fidelity.Source{Name: routed.Location, Index: memory},
		fidelity.Options{Now: time.Now, Log: slog.New(slog.DiscardHandler)},
	)
	picker, err := scoring.NewPicker(scoring.DefaultConfig(), time.Now, rand.New(rand.NewPCG(1, 2)), checker)
	if err != nil {
		b.Fatal(err)
	}
	source.SetEndpoints(endpoints)
	memory.SetEndpoints(endpoints)
	checker.SetEndpoints(endpoints)
	picker.SetEndpoints(endpoints)
	d := &decider{}
	serverConfig := extproc.DefaultConfig()
	serverConfig.DecisionDeadline = time.Minute // a machine that is busy with other things still decides in full
	d.server = extproc.NewServer(serverConfig, extproc.Deps{
		Picker: picker, Encoder: encoder, Metrics: extproc.NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.DiscardHandler),
		Observer: observers{newJournal(journalSize, 2), checker, memory, d},
	})
	return d
}

// Decided implements extproc.Observer.
func (d *decider) Decided(decision *scoring.Decision) { d.last = decision }

// FirstToken implements extproc.Observer.
func (d *decider) FirstToken(*scoring.Decision, time.Duration) {}

// Ended implements extproc.Observer.
func (d *decider) Ended(*scoring.Decision, scoring.Outcome, string) {}

// decide is one request; it returns the number of its tokens.
func (d *decider) decide(ctx context.Context, body []byte) (tokens int, err error) {
	d.last = nil
	c := &envoySide{ctx: ctx, in: [2]*extprocv3.ProcessingRequest{
		{
			ProtocolConfig: &extprocv3.ProtocolConfiguration{
				RequestBodyMode: filterv3.ProcessingMode_BUFFERED, ResponseBodyMode: filterv3.ProcessingMode_STREAMED,
			},
			Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
				{Key: ":method", RawValue: []byte("POST")},
				{Key: ":path", RawValue: []byte("/v1/chat/completions")},
				{Key: "content-type", RawValue: []byte("application/json")},
			}}}},
		},
		{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: body, EndOfStream: true}}},
	}}
	if err := d.server.Process(c); err != nil { //nolint:contextcheck // c has it
		return 0, err
	}
	if d.last == nil || d.last.Prompt.Source != scoring.TokensNative || c.out != 2 {
		return 0, fmt.Errorf("decision %+v, %d answers", d.last, c.out)
	}
	return int(d.last.Prompt.Length()), nil
}

// envoySide is Envoy's side of one stream: headers and body, then the end.
type envoySide struct {
	grpc.ServerStream
	ctx  context.Context
	in   [2]*extprocv3.ProcessingRequest
	next int
	out  int
}

func (c *envoySide) Context() context.Context { return c.ctx }

func (c *envoySide) Recv() (*extprocv3.ProcessingRequest, error) {
	if c.next == len(c.in) {
		return nil, io.EOF
	}
	c.next++
	return c.in[c.next-1], nil
}

func (c *envoySide) Send(*extprocv3.ProcessingResponse) error {
	c.out++
	return nil
}

// talk makes conversations of the comments in Go's own source: English with
// names and code in it. Each has text that none before had.
type talk struct {
	source string
	at     int
	serial int
}

type talkMessage struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

func newTalk(b *testing.B) *talk {
	b.Helper()
	var text strings.Builder
	enough := errors.New("enough")
	err := filepath.WalkDir(filepath.Join(runtime.GOROOT(), "src"), func(path string, entry fs.DirEntry, err error) error { //nolint:staticcheck // any large text will do
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" {
			return err
		}
		source, err := os.ReadFile(path)
		for line := range strings.Lines(string(source)) {
			if line = strings.TrimLeft(line, "\t"); strings.HasPrefix(line, "// ") && utf8.ValidString(line) {
				text.WriteString(line[len("// "):])
			}
		}
		if text.Len() > 20<<20 {
			return enough
		}
		return err
	})
	if err != nil && !errors.Is(err, enough) || text.Len() < 1<<20 {
		b.Skipf("no Go source to talk of: %v", err)
	}
	return &talk{source: text.String()}
}

// conversation is 10 messages, or 1 where the text is short.
func (t *talk) conversation(bytes int) []talkMessage {
	n := 10
	if bytes < 1000 {
		n = 1
	}
	var messages []talkMessage
	for i := range n {
		messages = append(messages, t.message([]string{"user", "assistant"}[i%2], bytes/n))
	}
	return messages
}

func (t *talk) message(role string, bytes int) talkMessage {
	if t.at+bytes > len(t.source) {
		t.at = 0
	}
	t.serial++
	content := strings.ToValidUTF8(t.source[t.at:t.at+bytes], "")
	t.at += bytes
	return talkMessage{role, fmt.Sprint(t.serial, " ", content)}
}

func (t *talk) body(b *testing.B, messages []talkMessage) []byte {
	b.Helper()
	body, err := json.Marshal(map[string]any{"model": "qwen", "stream": true, "messages": messages})
	if err != nil {
		b.Fatal(err)
	}
	return body
}

// cpuTime is what this process has computed so far, on all its threads.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
