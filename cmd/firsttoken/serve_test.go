package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocconfigv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/zmq"
	"github.com/firsttoken/firsttoken/scoring"
)

// fakeEngine answers what discovery asks; down engines refuse.
func fakeEngine(t *testing.T, models string) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, models) })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// startService runs a service on free ports until the test ends, and returns
// what it prints.
func startService(t *testing.T, cfg config) bound {
	t.Helper()
	return startLoggedService(t, cfg, slog.New(slog.DiscardHandler))
}

// startLoggedService is startService with a log.
func startLoggedService(t *testing.T, cfg config, log *slog.Logger) bound {
	t.Helper()
	_, b := runService(t, cfg, log)
	return b
}

// runService is startLoggedService that returns the service too.
func runService(t *testing.T, cfg config, log *slog.Logger) (*service, bound) {
	t.Helper()
	cfg.Server.Listen, cfg.Admin.Listen, cfg.Server.DrainDelay = "127.0.0.1:0", "127.0.0.1:0", 0
	cfg.LMCache.Controller.Pull, cfg.LMCache.Controller.Reply, cfg.LMCache.Controller.Heartbeat = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	if err := cfg.validate(); err != nil {
		t.Fatal(err)
	}
	s, err := newService(t.Context(), cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx, in) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	var b bound
	if err := json.Unmarshal(line, &b); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return s, b
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// awaitServing returns when the health service says SERVING.
func awaitServing(t *testing.T, conn *grpc.ClientConn) {
	t.Helper()
	watch, err := grpc_health_v1.NewHealthClient(conn).Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	for {
		answer, err := watch.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if answer.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING {
			return
		}
	}
}

func get(t *testing.T, b bound, path string, into any) string {
	t.Helper()
	resp, err := http.Get("http://" + b.Admin + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if into != nil {
		if err := json.Unmarshal(body, into); err != nil {
			t.Fatalf("%s: %v\n%s", path, err, body)
		}
	}
	return string(body)
}

// choose sends one request as Envoy does in BUFFERED mode and returns the
// destination header of the answer.
func choose(t *testing.T, conn *grpc.ClientConn, body string) string {
	t.Helper()
	destination, _ := ask(t, conn, body)
	return destination
}

// ask is choose that leaves the stream open: respond sends the first chunk of
// the response and waits until the service has taken it in.
func ask(t *testing.T, conn *grpc.ClientConn, body string) (destination string, respond func()) {
	t.Helper()
	stream, err := extprocv3.NewExternalProcessorClient(conn).Process(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *extprocv3.ProcessingRequest) *extprocv3.ProcessingResponse {
		if err := stream.Send(r); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	header := func(name, value string) *corev3.HeaderValue {
		return &corev3.HeaderValue{Key: name, RawValue: []byte(value)}
	}
	send(&extprocv3.ProcessingRequest{
		ProtocolConfig: &extprocv3.ProtocolConfiguration{
			RequestBodyMode: extprocconfigv3.ProcessingMode_BUFFERED, ResponseBodyMode: extprocconfigv3.ProcessingMode_STREAMED,
		},
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
			header(":method", "POST"), header(":path", "/v1/completions"), header("content-type", "application/json"),
		}}}},
	})
	answer := send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{
		RequestBody: &extprocv3.HttpBody{Body: []byte(body), EndOfStream: true},
	}})
	for _, h := range answer.GetRequestBody().GetResponse().GetHeaderMutation().GetSetHeaders() {
		if h.GetHeader().GetKey() == envoy.HeaderEndpoint {
			return string(h.GetHeader().GetRawValue()), func() {
				send(&extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{
					ResponseBody: &extprocv3.HttpBody{Body: []byte("data: {}\n\n")},
				}})
			}
		}
	}
	t.Fatalf("no destination in %v", answer)
	return "", nil
}

// The way of one request through everything that serve wires together.
func TestServe(t *testing.T) {
	models := `{"object":"list","data":[{"id":"m"},{"id":"alias"}]}`
	first, second := fakeEngine(t, models), fakeEngine(t, models)
	cfg := defaultConfig()
	cfg.LMCache.Enabled = false
	cfg.Scoring.Policy = scoring.PolicyRoundRobin
	// Turns are counted by model, so the models must be known from the start.
	cfg.Endpoints = []discovery.Entry{{Name: "one", Address: first, Models: []string{"m"}}, {Name: "two", Address: second, Models: []string{"m"}}}
	b := startService(t, cfg)
	conn := dial(t, b.Listen)
	awaitServing(t, conn)

	var chosen []string
	for range 4 {
		address, _, _ := strings.Cut(choose(t, conn, `{"model":"m","prompt":"Hello","stream":true}`), ",")
		chosen = append(chosen, address)
	}
	if chosen[0] == chosen[1] || chosen[0] != chosen[2] || chosen[1] != chosen[3] || !slices.Contains(chosen, first) || !slices.Contains(chosen, second) {
		t.Errorf("chose %v of %s and %s, want turns", chosen, first, second)
	}

	var decisions struct {
		Decisions []struct {
			ID         string `json:"id"`
			Policy     string `json:"policy"`
			Candidates []struct {
				Endpoint string `json:"endpoint"`
				Address  string `json:"address"`
			} `json:"candidates"`
		} `json:"decisions"`
	}
	get(t, b, "/decisions", &decisions)
	if len(decisions.Decisions) != 4 || decisions.Decisions[0].Policy != "roundrobin" || decisions.Decisions[0].Candidates[0].Address != chosen[3] {
		t.Errorf("/decisions: %+v; the last choice was %s", decisions, chosen[3])
	}
	var one map[string]any
	get(t, b, "/decisions?id="+decisions.Decisions[0].ID, &one)
	if one["id"] != decisions.Decisions[0].ID || one["model"] != "m" {
		t.Errorf("/decisions?id=: %v", one)
	}

	var view status
	get(t, b, "/status", &view)
	if len(view.Fleet) != 2 || view.Fleet[0].Name != "one" || !view.Fleet[0].Ready || view.Policy != "roundrobin" || view.LMCache != nil {
		t.Errorf("/status: %+v", view)
	}
	metrics := get(t, b, "/metrics", nil)
	for _, want := range []string{
		`firsttoken_decisions_total{reason="turn"} 4`,
		`firsttoken_endpoint_ready{endpoint="one"} 1`,
		`firsttoken_endpoint_waiting_requests{endpoint="two"}`,
		"process_resident_memory_bytes", "go_goroutines",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
}

// Engines that report nothing are believed to hold what was routed to them.
func TestServeRemembersWhatItRouted(t *testing.T) {
	models := `{"data":[{"id":"m"}]}`
	cfg := defaultConfig()
	cfg.LMCache.Enabled = false
	cfg.Endpoints = []discovery.Entry{{Address: fakeEngine(t, models)}, {Address: fakeEngine(t, models)}, {Address: fakeEngine(t, models)}}
	b := startService(t, cfg)
	conn := dial(t, b.Listen)
	awaitServing(t, conn)

	turn := func(conversation, tokens int) string {
		ids := make([]string, tokens)
		for i := range ids {
			ids[i] = strconv.Itoa(conversation*10_000 + i)
		}
		destination, respond := ask(t, conn, fmt.Sprintf(`{"model":"m","stream":true,"prompt":[%s]}`, strings.Join(ids, ",")))
		respond()
		address, _, _ := strings.Cut(destination, ",")
		return address
	}
	var first []string
	for conversation := range 8 {
		first = append(first, turn(conversation, 300))
	}
	for conversation, want := range first {
		if got := turn(conversation, 400); got != want {
			t.Errorf("turn 2 of conversation %d went to %s, turn 1 to %s", conversation, got, want)
		}
	}
	if metrics := get(t, b, "/metrics", nil); !strings.Contains(metrics, `firsttoken_decisions_total{reason="cached"} 8`) {
		t.Error("not every second turn was chosen by what is cached")
	}
}

func TestServeHostsLMCache(t *testing.T) {
	engine := fakeEngine(t, `{"data":[{"id":"m"}]}`)
	cfg := defaultConfig()
	cfg.Endpoints = []discovery.Entry{{Address: engine, LMCache: discovery.LMCacheEntry{Instance: "inst"}}}
	if c, err := zmq.NewContext(); errors.Is(err, zmq.ErrNoZMQ) {
		_, err := newService(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), "built without ZeroMQ") {
			t.Errorf("LMCache is asked for in a build without it: %v", err)
		}
		t.Skip("this build has no ZeroMQ")
	} else if err == nil {
		_ = c.Close()
	}
	b := startService(t, cfg)
	if b.LMCache == nil || b.LMCache.Pull == "" || b.LMCache.Reply == "" || b.LMCache.Heartbeat == "" {
		t.Fatalf("bound %+v", b)
	}
	awaitServing(t, dial(t, b.Listen))
	if metrics := get(t, b, "/metrics", nil); !strings.Contains(metrics, "firsttoken_lmcache_last_message_age_seconds -1") {
		t.Error("/metrics has no freshness of LMCache")
	}

	// A worker of an old release registers and reports on the pull socket.
	report(t, b.LMCache.Pull,
		&lmcache.RegisterMsg{Registration: lmcache.Registration{Worker: lmcache.WorkerID{Instance: "inst"}, IP: "127.0.0.1", Port: 1234}},
		&lmcache.KVAdmitMsg{KVOperation: lmcache.KVOperation{Worker: lmcache.WorkerID{Instance: "inst"}, Key: lmcache.UnsignedKey(7), Location: lmcache.LocationCPU}},
	)
	view := awaitStatus(t, b, func(s status) bool {
		return len(s.LMCache.Workers) == 1 && s.LMCache.Workers[0].Keys[lmcache.LocationCPU] == 1
	})
	if view.LMCache.Addresses != *b.LMCache || view.Fleet[0].Instance != "inst" || !view.LMCache.Workers[0].Registered {
		t.Errorf("/status: %+v", view)
	}
	metrics := get(t, b, "/metrics", nil)
	for _, want := range []string{
		fmt.Sprintf("firsttoken_endpoint_cached_chunks{endpoint=%q} 1\n", engine),
		fmt.Sprintf("firsttoken_endpoint_report_age_seconds{endpoint=%q} ", engine),
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}

	// Tools of LMCache's controller find theirs on the admin port.
	answer, err := http.Post("http://"+b.Admin+"/query_instance", "application/json", strings.NewReader(`{"event_id":"e","ip":"127.0.0.1"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if body, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != http.StatusOK || !strings.Contains(string(body), `"res":"inst"`) {
		t.Errorf("/query_instance answered %d %s, %v", answer.StatusCode, body, err)
	}

	// A second rank that holds nothing: of the instance nothing counts.
	report(t, b.LMCache.Pull, &lmcache.RegisterMsg{Registration: lmcache.Registration{Worker: lmcache.WorkerID{Instance: "inst", Worker: 1}, IP: "127.0.0.1", Port: 1235}})
	awaitStatus(t, b, func(s status) bool { return len(s.LMCache.Workers) == 2 })
	if metrics := get(t, b, "/metrics", nil); !strings.Contains(metrics, fmt.Sprintf("firsttoken_endpoint_cached_chunks{endpoint=%q} 0\n", engine)) {
		t.Error("/metrics counts chunks that one rank does not hold")
	}
}

// awaitStatus asks for /status until it is as wanted.
func awaitStatus(t *testing.T, b bound, wanted func(status) bool) status {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		var view status
		get(t, b, "/status", &view)
		if wanted(view) {
			return view
		}
		if time.Now().After(deadline) {
			t.Fatalf("/status stays at %+v", view)
		}
	}
}

// report sends messages as a worker does.
func report(t *testing.T, pull string, messages ...lmcache.Message) {
	t.Helper()
	c, err := zmq.NewContext()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	push, err := c.Socket(zmq.Push, zmq.Options{Linger: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = push.Close() })
	if err := push.Connect("tcp://" + pull); err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if err := push.Send(m.Append(nil)); err != nil {
			t.Fatal(err)
		}
	}
}

// Whoever did not ask for LMCache gets a service without it from a build
// without it.
func TestServeWithoutZeroMQ(t *testing.T) {
	cfg := defaultConfig()
	cfg.Endpoints = []discovery.Entry{{Address: "127.0.0.1:1"}}
	if cfg.asksForLMCache() {
		t.Error("the defaults ask for LMCache")
	}
	for name, ask := range map[string]func(*config){
		"pull":        func(c *config) { c.LMCache.Controller.Pull = "127.0.0.1:0" },
		"instance":    func(c *config) { c.Endpoints[0].LMCache.Instance = "i" },
		"worker port": func(c *config) { c.Endpoints[0].LMCache.WorkerPort = 1 },
	} {
		asked := cfg
		asked.Endpoints = slices.Clone(cfg.Endpoints)
		ask(&asked)
		if !asked.asksForLMCache() {
			t.Errorf("%s does not ask for LMCache", name)
		}
	}
}

func TestOrphans(t *testing.T) {
	endpoint := func(id scoring.EndpointID) scoring.Endpoint { return scoring.Endpoint{ID: id} }
	type instances = map[scoring.EndpointID]string
	tests := []struct {
		name        string
		before, now instances
		present     []scoring.Endpoint
		want        []string
	}{
		{"nothing changed", instances{1: "a"}, instances{1: "a"}, []scoring.Endpoint{endpoint(1)}, nil},
		{"removed", instances{1: "a", 2: "b"}, instances{2: "b"}, []scoring.Endpoint{endpoint(2)}, []string{"a"}},
		{"moved to another address", instances{1: "a"}, instances{2: "a"}, []scoring.Endpoint{endpoint(2)}, nil},
		{"unmapped but present", instances{1: "a"}, instances{}, []scoring.Endpoint{endpoint(1)}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := orphans(tt.before, tt.now, tt.present); !slices.Equal(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}
