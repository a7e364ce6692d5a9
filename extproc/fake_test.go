package extproc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// The modes, short.
const (
	none     = filterv3.ProcessingMode_NONE
	streamed = filterv3.ProcessingMode_STREAMED
	buffered = filterv3.ProcessingMode_BUFFERED
	partial  = filterv3.ProcessingMode_BUFFERED_PARTIAL
	duplex   = filterv3.ProcessingMode_FULL_DUPLEX_STREAMED
)

// errCancelled is how Envoy usually ends a stream; a client's abort comes as
// io.EOF.
var errCancelled = status.Error(codes.Canceled, "context canceled")

// encoderFunc is an Encoder.
type encoderFunc func(context.Context, prompt.Request) (*scoring.Prompt, error)

func (f encoderFunc) Encode(ctx context.Context, r prompt.Request) (*scoring.Prompt, error) {
	return f(ctx, r)
}

// encode makes a prompt of one token a byte. Bodies name what they want: an
// object is streamed, "plain" in it is not, "model:x" in it asks for x.
func encode(_ context.Context, r prompt.Request) (*scoring.Prompt, error) {
	body := string(r.Body)
	if !strings.HasPrefix(body, "{") {
		return nil, &prompt.RequestError{Status: http.StatusBadRequest, Type: "Bad Request", Message: "not an object", Param: "body"}
	}
	_, model, _ := strings.Cut(body, "model:")
	model, _, _ = strings.Cut(model, " ")
	return &scoring.Prompt{
		Model: model, Streamed: !strings.Contains(body, "plain"), Source: scoring.TokensEstimated,
		Sequences: []scoring.Sequence{{Length: scoring.Tokens(len(body)), Copies: 1}},
	}, nil
}

// fixture is a server and what it told. Tests read it while no stream runs.
type fixture struct {
	*Server
	mu      sync.Mutex // guards writes of the following: streams end together
	decided []*scoring.Decision
	tokens  []time.Duration
	ends    []ending
	endings []*scoring.Decision // those of ends
	probes  []string
}

type ending struct {
	id      string
	outcome scoring.Outcome
	served  string
}

func (f *fixture) Decided(d *scoring.Decision) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.decided = append(f.decided, d)
}

func (f *fixture) FirstToken(_ *scoring.Decision, ttft time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens = append(f.tokens, ttft)
}

func (f *fixture) Ended(d *scoring.Decision, o scoring.Outcome, served string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endings = append(f.endings, d)
	f.ends = append(f.ends, ending{d.ID, o, served})
}

func (f *fixture) probed(address string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.probes = append(f.probes, address)
}

// outcomes are those that were told, in order.
func (f *fixture) outcomes() []scoring.Outcome {
	var list []scoring.Outcome
	for _, e := range f.ends {
		list = append(list, e.outcome)
	}
	return list
}

// pool is n ready endpoints of model m, 10.0.0.1:8000 and so on.
func pool(n int) []scoring.Endpoint {
	list := make([]scoring.Endpoint, n)
	for i := range list {
		address := "10.0.0." + string(rune('1'+i)) + ":8000"
		list[i] = scoring.Endpoint{
			ID: scoring.EndpointID(i + 1), Name: address, Address: address, Cluster: "c" + string(rune('1'+i)),
			Models: []string{"m"}, Ready: true,
		}
	}
	return list
}

// newFixture serves the pool by round robin: 10.0.0.1 first.
func newFixture(tb testing.TB, endpoints []scoring.Endpoint, change ...func(*Config, *Deps)) *fixture {
	tb.Helper()
	picker, err := scoring.NewPicker(config(scoring.PolicyRoundRobin), time.Now, rand.New(rand.NewPCG(3, 4)))
	if err != nil {
		tb.Fatal(err)
	}
	picker.SetEndpoints(endpoints)
	f := &fixture{}
	cfg := DefaultConfig()
	deps := Deps{
		Picker: picker, Encoder: encoderFunc(encode), Observer: f, Probe: f.probed,
		Metrics: NewMetrics(prometheus.NewRegistry()), Log: slog.New(slog.DiscardHandler),
	}
	for _, c := range change {
		c(&cfg, &deps)
	}
	f.Server = NewServer(cfg, deps)
	tb.Cleanup(f.encoders.Close)
	tb.Cleanup(f.grpc.Stop) // its workers
	return f
}

// client plays the data plane's side of one stream.
type client struct {
	ctx    context.Context
	hangUp context.CancelFunc
	in     chan *extprocv3.ProcessingRequest
	mu     sync.Mutex
	out    []*extprocv3.ProcessingResponse // guarded by mu
	end    error                           // what Recv gives when in is closed
	broken error                           // what Send gives
	done   chan struct{}                   // closed when the server ended the stream
	err    error                           // the stream's status, once done
	first  *extprocv3.ProcessingRequest
}

func (c *client) Context() context.Context { return c.ctx }

func (c *client) Recv() (*extprocv3.ProcessingRequest, error) {
	select {
	case m, ok := <-c.in:
		if !ok {
			return nil, c.end
		}
		return m, nil
	case <-c.ctx.Done():
		return nil, status.FromContextError(c.ctx.Err()).Err()
	}
}

func (c *client) Send(m *extprocv3.ProcessingResponse) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken == nil {
		c.out = append(c.out, m)
	}
	return c.broken
}

// answers are all that came so far.
func (c *client) answers() []*extprocv3.ProcessingResponse {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.out
}

// open begins a stream with the given body modes. Call it in a bubble.
func (f *fixture) open(t *testing.T, request, response filterv3.ProcessingMode_BodySendMode) *client {
	t.Helper()
	c := f.openUndeclared(t)
	c.first = &extprocv3.ProcessingRequest{
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: request, ResponseBodyMode: response},
	}
	return c
}

// openAs is open with a context of the client's call, and no response.
func (f *fixture) openAs(t *testing.T, call func(context.Context) context.Context, request filterv3.ProcessingMode_BodySendMode) *client {
	t.Helper()
	c := f.begin(t, call)
	c.first = &extprocv3.ProcessingRequest{ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: request}}
	return c
}

// openUndeclared begins a stream of a client that sends no protocol_config.
func (f *fixture) openUndeclared(t *testing.T) *client {
	t.Helper()
	return f.begin(t, func(ctx context.Context) context.Context { return ctx })
}

func (f *fixture) begin(t *testing.T, call func(context.Context) context.Context) *client {
	t.Helper()
	c := &client{in: make(chan *extprocv3.ProcessingRequest), done: make(chan struct{}), end: errCancelled}
	c.ctx, c.hangUp = context.WithCancel(call(t.Context()))
	go func() {
		defer close(c.done)
		c.err = f.process(c)
	}()
	t.Cleanup(c.hangUp)
	return c
}

// say sends one message and returns what came back until the server waits
// again.
func (c *client) say(t *testing.T, m *extprocv3.ProcessingRequest) []*extprocv3.ProcessingResponse {
	t.Helper()
	if c.first != nil {
		m.ProtocolConfig, c.first = c.first.GetProtocolConfig(), nil
	}
	before := len(c.answers())
	select {
	case c.in <- m:
	case <-c.done:
		t.Fatalf("the server ended the stream before %v", m)
	}
	synctest.Wait()
	return c.answers()[before:]
}

// one is say where exactly one answer must come.
func (c *client) one(t *testing.T, m *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
	t.Helper()
	got := c.say(t, m)
	if len(got) != 1 {
		t.Fatalf("%d answers to %v, want 1: %v", len(got), m, got)
	}
	return got[0]
}

// close ends the stream from the client's side.
func (c *client) close(end error) {
	c.end = end
	close(c.in)
	synctest.Wait()
}

// open reports whether the server still holds the stream.
func (c *client) isOpen() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

func headerMap(kv ...string) *corev3.HeaderMap {
	m := &corev3.HeaderMap{}
	for i := 0; i < len(kv); i += 2 {
		m.Headers = append(m.Headers, &corev3.HeaderValue{Key: kv[i], RawValue: []byte(kv[i+1])})
	}
	return m
}

// completion are the headers of a completion request, whose body follows.
func completion() *extprocv3.ProcessingRequest {
	return reqHeaders(false, ":method", "POST", ":path", "/v1/completions", "content-type", "application/json", "authorization", "Bearer secret")
}

func reqHeaders(end bool, kv ...string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestHeaders{
		RequestHeaders: &extprocv3.HttpHeaders{Headers: headerMap(kv...), EndOfStream: end},
	}}
}

func reqBody(body string, end bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: end},
	}}
}

func reqTrailers() *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}}
}

func respHeaders(code string, end bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{
		ResponseHeaders: &extprocv3.HttpHeaders{Headers: headerMap(":status", code), EndOfStream: end},
	}}
}

func respBody(body string, end bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{
		ResponseBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: end},
	}}
}

func respTrailers() *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}}
}

// with adds the attributes that Envoy sends with the first response message.
func with(m *extprocv3.ProcessingRequest, code int, upstream string) *extprocv3.ProcessingRequest {
	m.Attributes = map[string]*structpb.Struct{"envoy.filters.http.ext_proc": {Fields: map[string]*structpb.Value{
		"response.code": structpb.NewNumberValue(float64(code)), "upstream.address": structpb.NewStringValue(upstream),
	}}}
	return m
}

// mutation is the header mutation of an answer to headers or body.
func mutation(m *extprocv3.ProcessingResponse) *extprocv3.HeaderMutation {
	if h := m.GetRequestHeaders(); h != nil {
		return h.GetResponse().GetHeaderMutation()
	}
	return m.GetRequestBody().GetResponse().GetHeaderMutation()
}

// header is the value that an answer sets a request header to; empty where it
// does not set it.
func header(m *extprocv3.ProcessingResponse, name string) string {
	for _, h := range mutation(m).GetSetHeaders() {
		if h.GetHeader().GetKey() == name {
			return string(h.GetHeader().GetRawValue())
		}
	}
	return ""
}

// removes reports whether an answer removes a request header.
func removes(m *extprocv3.ProcessingResponse, name string) bool {
	return slices.Contains(mutation(m).GetRemoveHeaders(), name)
}

// metadata is a value of an answer's dynamic metadata.
func metadata(m *extprocv3.ProcessingResponse, namespace, key string) string {
	return m.GetDynamicMetadata().GetFields()[namespace].GetStructValue().GetFields()[key].GetStringValue()
}

// joined is the body that chunks make together, and whether the last one alone
// ended it.
func joined(t *testing.T, chunks []*extprocv3.ProcessingResponse, body func(*extprocv3.ProcessingResponse) *extprocv3.BodyResponse) (text []byte, end bool) {
	t.Helper()
	var all bytes.Buffer
	for i, m := range chunks {
		c := body(m).GetResponse().GetBodyMutation().GetStreamedResponse()
		if c == nil {
			t.Fatalf("answer %d is no streamed body: %v", i, m)
		}
		if len(c.GetBody()) > 62_000 {
			t.Errorf("chunk %d has %d bytes", i, len(c.GetBody()))
		}
		if end {
			t.Errorf("chunk %d comes after the end", i)
		}
		end = c.GetEndOfStream()
		all.Write(c.GetBody())
	}
	return all.Bytes(), end
}

var errEOF = io.EOF

var errBroken = errors.New("broken")

// gaugeValue is how many streams are in a phase.
func gaugeValue(tb testing.TB, f *fixture, p phase) float64 {
	tb.Helper()
	return testutil.ToFloat64(f.metrics.streams.WithLabelValues(string(p)))
}

// config is the default one with a policy.
func config(policy string) scoring.Config {
	c := scoring.DefaultConfig()
	c.Policy = policy
	return c
}
