package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	extprocconfigv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/service/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/simulator"
)

// gateway does Envoy's part for completions of token ids: it asks the service,
// forwards to the engine chosen, and tells of the answer.
type gateway struct {
	t        *testing.T
	external extprocv3.ExternalProcessorClient
	// records is where the end of each answer is told; nil: nowhere.
	records accesslogv3.AccessLogService_StreamAccessLogsClient
}

func newGateway(t *testing.T, b bound, accessLog bool) *gateway {
	t.Helper()
	conn := dial(t, b.Listen)
	awaitServing(t, conn)
	g := &gateway{t: t, external: extprocv3.NewExternalProcessorClient(conn)}
	if accessLog {
		records, err := accesslogv3.NewAccessLogServiceClient(conn).StreamAccessLogs(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		g.records = records
	}
	return g
}

// request is one that was decided for.
type request struct {
	g           *gateway
	stream      extprocv3.ExternalProcessor_ProcessClient
	body        []byte
	id, address string
}

// ask has the service choose for a prompt of so many token ids, which begin with
// begin. The stream ends with ctx.
func (g *gateway) ask(ctx context.Context, begin, length, answer int, streamed bool) *request {
	g.t.Helper()
	ids := make([]int, length)
	for i := range ids {
		ids[i] = begin + i
	}
	body, err := json.Marshal(map[string]any{"model": "m", "prompt": ids, "stream": streamed, "max_tokens": answer})
	if err != nil {
		g.t.Fatal(err)
	}
	stream, err := g.external.Process(ctx)
	if err != nil {
		g.t.Fatal(err)
	}
	r := &request{g: g, stream: stream, body: body}
	header := func(name, value string) *corev3.HeaderValue {
		return &corev3.HeaderValue{Key: name, RawValue: []byte(value)}
	}
	r.say(&extprocv3.ProcessingRequest{
		ProtocolConfig: &extprocv3.ProtocolConfiguration{
			RequestBodyMode: extprocconfigv3.ProcessingMode_BUFFERED, ResponseBodyMode: extprocconfigv3.ProcessingMode_STREAMED,
		},
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
			header(":method", "POST"), header(":path", "/v1/completions"), header("content-type", "application/json"),
		}}}},
	})
	reply := r.say(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: body, EndOfStream: true},
	}})
	for _, h := range reply.GetRequestBody().GetResponse().GetHeaderMutation().GetSetHeaders() {
		if h.GetHeader().GetKey() == envoy.HeaderEndpoint {
			r.address, _, _ = strings.Cut(string(h.GetHeader().GetRawValue()), ",")
		}
	}
	r.id = reply.GetDynamicMetadata().GetFields()[envoy.Metadata].GetStructValue().GetFields()[envoy.KeyID].GetStringValue()
	if r.address == "" || r.id == "" {
		g.t.Fatalf("no choice in %v", reply)
	}
	return r
}

func (r *request) say(m *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	r.g.t.Helper()
	if err := r.stream.Send(m); err != nil {
		r.g.t.Error(err)
	}
	reply, err := r.stream.Recv()
	if err != nil {
		r.g.t.Error(err)
	}
	return reply
}

// forward has the engine answer, tells of each line until the service wants no
// more, and of the end.
func (r *request) forward() {
	t := r.g.t
	t.Helper()
	resp, err := http.Post("http://"+r.address+"/v1/completions", "application/json", bytes.NewReader(r.body))
	if err != nil {
		t.Error(err)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("engine: %s", resp.Status)
	}
	in := bufio.NewReader(resp.Body)
	for told := false; ; {
		line, err := in.ReadBytes('\n')
		end := err != nil
		if end && err != io.EOF {
			t.Error(err)
		}
		streamed := strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream")
		// After the first chunk of a stream the service lets go.
		if !told || !streamed && end {
			r.say(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{
				ResponseBody: &extprocv3.HttpBody{Body: line, EndOfStream: end},
			}})
			told = streamed
		}
		if end {
			break
		}
	}
	r.end()
}

// end tells that the client has the whole answer, where ends are told.
func (r *request) end() {
	if r.g.records == nil {
		return
	}
	if err := r.g.records.Send(record(r.id, r.address)); err != nil {
		r.g.t.Error(err)
	}
}

// record is Envoy's for a request that ended well.
func record(id, address string) *accesslogv3.StreamAccessLogsMessage {
	host, port, _ := net.SplitHostPort(address)
	number, _ := strconv.ParseUint(port, 10, 16)
	entry := &datav3.HTTPAccessLogEntry{
		CommonProperties: &datav3.AccessLogCommon{
			UpstreamRemoteAddress: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(number)},
			}}},
			AccessLogType: datav3.AccessLogType_DownstreamEnd,
			Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
				envoy.Metadata: {Fields: map[string]*structpb.Value{envoy.KeyID: structpb.NewStringValue(id)}},
			}},
		},
		Response: &datav3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(http.StatusOK)},
	}
	return &accesslogv3.StreamAccessLogsMessage{LogEntries: &accesslogv3.StreamAccessLogsMessage_HttpLogs{
		HttpLogs: &accesslogv3.StreamAccessLogsMessage_HTTPAccessLogEntries{LogEntry: []*datav3.HTTPAccessLogEntry{entry}},
	}}
}

// plainEngine simulates an engine that takes token ids and tells nothing but its
// counters, a hundred times as fast as its profile.
func plainEngine(t *testing.T, change func(*simulator.Profile)) *engine.Server {
	t.Helper()
	cfg := engine.DefaultConfig()
	cfg.Models, cfg.TimeScale = []string{"m"}, 0.01
	if change != nil {
		change(&cfg.Profile)
	}
	cfg.MaxModelLen = min(cfg.MaxModelLen, cfg.Profile.KVTokens)
	e, err := engine.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	if err := e.Start("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	return e
}

// lockedLog is what the service logged so far.
type lockedLog struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
