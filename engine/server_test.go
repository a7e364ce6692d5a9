package engine_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/engine"
)

func TestWhatIsServedWhere(t *testing.T) {
	r := start(t, config())
	const notAllowed, notFound = `{"detail":"Method Not Allowed"}`, `{"detail":"Not Found"}`
	for _, c := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/health", 200, ""},
		{"HEAD", "/health", 405, ""},
		{"POST", "/health", 405, notAllowed},
		{"GET", "/ping", 200, ""},
		{"POST", "/ping", 200, ""},
		{"GET", "/version", 200, `{"version":"0.33.0"}`},
		{"GET", "/load", 200, `{"server_load":0}`},
		{"GET", "/v1/completions", 405, notAllowed},
		{"GET", "/v1/nothing", 404, notFound},
		{"POST", "/reset_prefix_cache", 200, `{"success":true}`},
	} {
		got := r.do(c.method, c.path, "")
		if got.StatusCode != c.status || got.body != c.body {
			t.Errorf("%s %s: %d %q, want %d %q", c.method, c.path, got.StatusCode, got.body, c.status, c.body)
		}
		if c.body == "" && c.method != "HEAD" && got.Header.Get("Content-Type") != "" {
			t.Errorf("%s %s has content type %q", c.method, c.path, got.Header.Get("Content-Type"))
		}
	}
	if got := r.do("GET", "/v1/completions", "").Header.Get("Allow"); got != "POST" {
		t.Errorf("allow %q", got)
	}
}

func TestModels(t *testing.T) {
	r := start(t, config())
	got := r.do("GET", "/v1/models", "")
	const want = "{object:string data:[{id:string object:string created:number owned_by:string root:string parent:null max_model_len:number " +
		"permission:[{id:string object:string created:number allow_create_engine:bool allow_sampling:bool allow_logprobs:bool allow_search_indices:bool " +
		"allow_view:bool allow_fine_tuning:bool organization:string group:null is_blocking:bool}]}]}"
	if diff := cmp.Diff(want, shape(t, got.body)); diff != "" {
		t.Error(diff)
	}
	if a, b := got.field(t, "data.0.id"), got.field(t, "data.1.id"); a != "m" || b != "alias" {
		t.Errorf("models %v and %v", a, b)
	}
	if got := r.post("/v1/completions", object{"model": "alias", "prompt": "x", "max_tokens": 1}).field(t, "model"); got != "m" {
		t.Errorf("the answer's model is %v, want the first name", got)
	}
}

func TestErrorsLookLikeVLLMs(t *testing.T) {
	cfg := config()
	cfg.MaxModelLen = 100
	r := start(t, cfg)
	fill := func(n int) string { return encode(t, ids(1, n)) }
	for _, c := range []struct {
		name, path, body string
		status           int
		want             string
	}{
		{
			"unknown model", "/v1/chat/completions", `{"model":"nope","messages":[{"role":"user","content":"q"}],"stream":true}`, 404,
			"{\"error\":{\"message\":\"The model `nope` does not exist. Valid aliases: m, alias.\",\"type\":\"NotFoundError\",\"param\":\"model\",\"code\":404}}",
		},
		{
			"too long", "/v1/completions", `{"prompt":` + fill(101) + `}`, 400,
			`{"error":{"message":"This model's maximum context length is 100 tokens. However, your prompt contains at least 101 input tokens, which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=101)","type":"BadRequestError","param":"input_tokens","code":400}}`,
		},
		{
			"full", "/v1/completions", `{"prompt":` + fill(100) + `}`, 400,
			`{"error":{"message":"max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)","type":"BadRequestError","param":"max_tokens","code":400}}`,
		},
		{
			"max_tokens 0", "/v1/completions", `{"prompt":"x","max_tokens":0}`, 400,
			`{"error":{"message":"max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)","type":"BadRequestError","param":"max_tokens","code":400}}`,
		},
		{
			"max_tokens too many", "/v1/completions", `{"prompt":"x","max_tokens":101}`, 400,
			`{"error":{"message":"max_tokens=101 cannot be greater than max_model_len=100. Please request fewer output tokens. (parameter=max_tokens, value=101)","type":"BadRequestError","param":"max_tokens","code":400}}`,
		},
		{
			"min above max", "/v1/completions", `{"prompt":"x","min_tokens":10,"max_tokens":5}`, 400,
			`{"error":{"message":"min_tokens must be less than or equal to max_tokens=5, got 10.","type":"BadRequestError","param":null,"code":400}}`,
		},
		{
			"stream options", "/v1/completions", `{"prompt":"x","stream_options":{"include_usage":true}}`, 400,
			"{\"error\":{\"message\":\"Stream options can only be defined when `stream=True`. (parameter=stream_options)\",\"type\":\"BadRequestError\",\"param\":\"stream_options\",\"code\":400}}",
		},
		{
			"no prompt", "/v1/completions", `{"prompt":""}`, 400,
			`{"error":{"message":"Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)","type":"BadRequestError","param":"prompt","code":400}}`,
		},
		{
			"no messages", "/v1/chat/completions", `{"model":"m"}`, 400,
			`{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', 'msg': 'Field required', 'input': '<dict of 1 items>'}","type":"Bad Request","param":"body.messages","code":400}}`,
		},
		{
			"model is a number", "/v1/completions", `{"model":3,"prompt":"x"}`, 400,
			`{"error":{"message":"1 validation error:\n  {'type': 'string_type', 'loc': 'body.model', 'msg': 'Input should be a valid string', 'input': '3'}","type":"Bad Request","param":"body.model","code":400}}`,
		},
		{
			"null", "/v1/chat/completions", `null`, 400,
			`{"error":{"message":"1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}","type":"Bad Request","param":"body","code":400}}`,
		},
	} {
		got := r.do(http.MethodPost, c.path, c.body)
		if got.StatusCode != c.status || got.body != c.want || got.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s\n got %s\nwant %s", c.name, got.StatusCode, got.Header.Get("Content-Type"), got.body, c.want)
		}
	}
	got := r.do(http.MethodPost, "/v1/completions", `{"prompt":"x"}`, "Content-Type", "text/plain")
	if want := `{"error":{"message":"1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed","type":"Bad Request","param":null,"code":400}}`; got.body != want {
		t.Errorf("content type:\n got %s\nwant %s", got.body, want)
	}
	for _, body := range []string{"", "{", "[1]", `"x"`, `{} x`} {
		got := r.do(http.MethodPost, "/v1/completions", body, "Content-Type", "application/json")
		if got.StatusCode != http.StatusBadRequest || shape(t, got.body) != "{error:{message:string type:string param:string code:number}}" {
			t.Errorf("body %q: %d %s", body, got.StatusCode, got.body)
		}
	}
}

func TestWhatClientsMayWrite(t *testing.T) {
	r := start(t, config())
	for _, c := range []struct {
		name, body string
		completion float64 // tokens
	}{
		{"a byte order mark", "\xef\xbb\xbf" + `{"prompt":"x","max_tokens":2}`, 2},
		{"strings for numbers and booleans", `{"prompt":"x","max_tokens":"3","stream":"false"}`, 3},
		{"the last of doubled keys", `{"prompt":"x","max_tokens":9,"max_tokens":4}`, 4},
		{"keys of another case are unknown", `{"prompt":"x","MAX_TOKENS":9,"max_tokens":4}`, 4},
		{"no limit of a completion", `{"prompt":"x"}`, 16},
		{"a limit of null", `{"prompt":"x","max_tokens":null}`, 128},
		{"at least so many", `{"prompt":"x","max_tokens":null,"min_tokens":200}`, 200},
		{"lists, n and unknown fields", `{"prompt":["x","y"],"max_tokens":2,"n":3,"what":1}`, 12},
		{"lists of ids", `{"prompt":[[1,2],[3]],"max_tokens":2}`, 4},
	} {
		got := r.do(http.MethodPost, "/v1/completions", c.body)
		if got.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", c.name, got.StatusCode, got.body)
			continue
		}
		if n := got.field(t, "usage.completion_tokens"); n != c.completion {
			t.Errorf("%s: %v tokens, want %v", c.name, n, c.completion)
		}
	}
	stopped := r.post("/v1/chat/completions", object{"messages": []object{{"role": "user", "content": "hi"}}})
	if got := stopped.field(t, "choices.0.finish_reason"); got != "stop" {
		t.Errorf("finish_reason %v of an answer without limit", got)
	}
	a := r.post("/v1/completions", object{"prompt": ids(1, 50), "n": 2})
	b := r.post("/v1/completions", object{"prompt": ids(1, 50), "n": 2})
	if x, y := a.field(t, "choices.0.text"), a.field(t, "choices.1.text"); x == y {
		t.Errorf("two choices are both %q", x)
	}
	if x, y := a.field(t, "choices.1.text"), b.field(t, "choices.1.text"); x != y {
		t.Errorf("the same prompt gives %q and %q", x, y)
	}
}

func TestStreamedAnswers(t *testing.T) {
	r := start(t, config())
	got := r.post("/v1/completions", object{
		"prompt": [][]int{{1, 2}, {3}}, "n": 2, "max_tokens": 3, "stream": true, "return_token_ids": true,
		"stream_options": object{"include_usage": true, "continuous_usage_stats": true},
	})
	events := got.events()
	if len(events) != 4*3+2 || events[13] != "[DONE]" {
		t.Fatalf("%d events, the last %s; want 4 choices of 3 tokens, usage, [DONE]", len(events), events[len(events)-1])
	}
	tokens, prompts := map[any]int{}, map[any]any{}
	for i, e := range events[:12] {
		index := field(t, e, "choices.0.index")
		tokens[index]++
		if ids := field(t, e, "choices.0.prompt_token_ids"); ids != nil {
			prompts[index] = ids
		}
		if n := field(t, e, "usage.completion_tokens"); n != float64(i+1) {
			t.Errorf("event %d counts %v tokens", i, n)
		}
		if (tokens[index] == 3) != (field(t, e, "choices.0.finish_reason") == "length") {
			t.Errorf("event %d of choice %v: %s", tokens[index], index, e)
		}
	}
	if diff := cmp.Diff(map[any]any{0.: []any{1., 2.}, 1.: []any{1., 2.}, 2.: []any{3.}, 3.: []any{3.}}, prompts); diff != "" {
		t.Errorf("prompt ids by choice:\n%s", diff)
	}
	if u := field(t, events[12], "usage.prompt_tokens"); u != 3. {
		t.Errorf("%v prompt tokens, want each prompt once", u)
	}

	chat := r.post("/v1/chat/completions", object{"messages": []object{{"role": "user", "content": "hi"}}, "max_tokens": 2, "stream": true}).events()
	if len(chat) != 4 || field(t, chat[0], "choices.0.delta.role") != "assistant" || field(t, chat[0], "object") != "chat.completion.chunk" {
		t.Errorf("chat events:\n%s", strings.Join(chat, "\n"))
	}
}

func TestRequestIDs(t *testing.T) {
	cfg := config()
	cfg.RequestIDHeaders = true
	r := start(t, cfg)
	got := r.do(http.MethodPost, "/v1/completions", `{"prompt":"x","max_tokens":1}`, "X-Request-Id", "abc")
	if got.field(t, "id") != "cmpl-abc" || got.Header.Get("X-Request-Id") != "abc" {
		t.Errorf("id %v, header %q", got.field(t, "id"), got.Header.Get("X-Request-Id"))
	}
}

func TestAPIKey(t *testing.T) {
	cfg := config()
	cfg.APIKey = "secret"
	r := start(t, cfg)
	if got := r.do("GET", "/v1/models", ""); got.StatusCode != http.StatusUnauthorized || got.body != `{"error":"Unauthorized"}` {
		t.Errorf("without key: %d %s", got.StatusCode, got.body)
	}
	if got := r.do("GET", "/v1/models", "", "Authorization", "Bearer secret"); got.StatusCode != http.StatusOK {
		t.Errorf("with key: %d", got.StatusCode)
	}
	if got := r.do("GET", "/health", ""); got.StatusCode != http.StatusOK {
		t.Errorf("health: %d", got.StatusCode)
	}
}

func TestConfigFaultsAreAllNamed(t *testing.T) {
	cfg := engine.DefaultConfig()
	cfg.TimeScale, cfg.BlockTokens, cfg.AnswerTokens, cfg.MaxModelLen, cfg.Faults.ErrorRate = 0, 0, 0, 1<<30, 2
	cfg.LMCache = engine.LMCacheConfig{Pull: "nowhere"}
	cfg.Adapters, cfg.TimeZone, cfg.ChatTemplate = []engine.Adapter{{}}, "Nowhere", "x"
	cfg.Events = engine.EventsConfig{Replay: "x", VLLMVersion: "new"}
	_, err := engine.New(cfg)
	if err == nil {
		t.Fatal("no error")
	}
	for _, name := range []string{
		"model:", "time-scale:", "block-size:", "answer-tokens:", "max-model-len:", "error_rate", "lmcache-controller-pull:", "lmcache-controller-reply:",
		"lora-modules:", "time-zone:", "chat-template:", "kv-events-endpoint:", "kv-events-replay-endpoint:", "kv-events-buffer-steps:", "kv-events-vllm-version:",
	} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named in:\n%v", name, err)
		}
	}
}

// TestWorkDecidesHowManySteps counts the steps instead of timing them: what is
// cached need not be computed.
func TestWorkDecidesHowManySteps(t *testing.T) {
	r := start(t, config()) // 2048 tokens a step, blocks of 16
	for _, c := range []struct {
		name          string
		prompt        []int
		steps, cached float64
	}{
		{"cold", ids(1, 5000), 3, 0},
		{"cached", ids(1, 5000), 1, 4992},
		{"cached and a little more", append(ids(1, 5000), ids(2, 60)...), 1, 5000 - 5000%16},
		{"half", append(ids(1, 2560), ids(3, 2500)...), 2, 2560},
	} {
		before := r.metric("vllm:iteration_tokens_total_count")
		got := r.post("/v1/completions", object{"prompt": c.prompt, "max_tokens": 1})
		if n := got.field(t, "usage.prompt_tokens_details.cached_tokens"); n != c.cached {
			t.Errorf("%s: %v cached, want %v", c.name, n, c.cached)
		}
		if n := r.metric("vllm:iteration_tokens_total_count") - before; n != c.steps {
			t.Errorf("%s: %v steps to the first token, want %v", c.name, n, c.steps)
		}
	}
	if salted := r.post("/v1/completions", object{"prompt": ids(1, 5000), "max_tokens": 1, "cache_salt": "s"}); salted.field(t, "usage.prompt_tokens_details.cached_tokens") != 0. {
		t.Error("another cache_salt found what is cached")
	}
	if all := r.post("/v1/completions", object{"prompt": ids(1, 5000), "max_tokens": 1, "prompt_logprobs": 1}); all.field(t, "usage.prompt_tokens_details.cached_tokens") != 0. {
		t.Error("prompt_logprobs read the cache")
	}
	for name, want := range map[string]float64{
		"vllm:prefix_cache_hits_total":                                 4992 + 4992 + 2560,
		`vllm:prompt_tokens_by_source_total{source="local_compute"}`:   5000 + 8 + 68 + 2500 + 5000 + 5000,
		`vllm:request_success_total{finished_reason="length"}`:         6,
		"vllm:time_to_first_token_seconds_count":                       6,
		"vllm:generation_tokens_total":                                 6,
		"vllm:kv_cache_usage_perc":                                     0,
		`vllm:prompt_tokens_by_source_total{source="local_cache_hit"}`: 4992 + 4992 + 2560,
		`vllm:prompt_tokens_cached_by_source_total{source="device"}`:   4992 + 4992 + 2560,
		"vllm:external_prefix_cache_queries_total":                     0,
		"vllm:request_prefill_kv_computed_tokens_sum":                  5000 + 8 + 68 + 2500 + 5000 + 5000,
		`vllm:num_requests_waiting_by_reason{reason="capacity"}`:       0,
		"vllm:request_generation_tokens_sum":                           6,
	} {
		if got := r.metric(name); got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
}

// open begins a streamed request and returns its body once the headers are
// there.
func (r *rig) open(body object) io.Reader {
	r.Helper()
	req, err := http.NewRequestWithContext(r.Context(), http.MethodPost, r.URL()+"/v1/completions", strings.NewReader(encode(r, body)))
	if err != nil {
		r.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != http.StatusOK {
		r.Fatal(resp.Status)
	}
	return resp.Body
}

func TestHeadersComeAtOnceAndTheBodyWithTheFirstToken(t *testing.T) {
	cfg := config()
	cfg.Faults.Slow = 1e9 // no step ends
	r := start(t, cfg)
	answer := r.open(object{"prompt": ids(1, 10), "max_tokens": 2, "stream": true})
	eventually(t, "it runs", func() bool { return r.metric("vllm:num_requests_running") == 1 })
	if got := r.metric("vllm:time_to_first_token_seconds_count"); got != 0 {
		t.Fatalf("%v first tokens", got)
	}
	if err := r.SetFaults(engine.Faults{}); err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(answer)
	if err != nil || !strings.HasSuffix(string(body), "data: [DONE]\n\n") {
		t.Errorf("%v: %s", err, body)
	}
}

func TestCancelFreesTheSlot(t *testing.T) {
	for _, stream := range []bool{true, false} {
		cfg := config()
		cfg.Profile.MaxSeqs = 4
		cfg.Faults.Slow = 1e9
		r := start(t, cfg)
		ctx, cancel := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		for range 5 { // two choices each: 4 run, 6 wait
			clients.Go(func() {
				body := encode(t, object{"prompt": ids(1, 100), "max_tokens": 1000, "n": 2, "stream": stream})
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, r.URL()+"/v1/completions", strings.NewReader(body))
				resp, err := http.DefaultClient.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				if !errors.Is(err, context.Canceled) {
					t.Errorf("ended with %v before its cancel", err)
				}
			})
		}
		eventually(t, "all are in the engine", func() bool {
			return r.metric("vllm:num_requests_running")+r.metric("vllm:num_requests_waiting") == 10
		})
		if running := r.metric("vllm:num_requests_running"); running > 4 || running == 0 {
			t.Errorf("%v running", running)
		}
		cancel()
		eventually(t, "all slots are free", func() bool {
			return r.metric("vllm:num_requests_running")+r.metric("vllm:num_requests_waiting")+r.metric("vllm:kv_cache_usage_perc") == 0
		})
		clients.Wait()
		if got := r.metric(`vllm:request_success_total{finished_reason="abort"}`); got != 0 {
			t.Errorf("%v aborts counted; vLLM counts none", got)
		}
	}
}

func TestFaults(t *testing.T) {
	r := start(t, config())
	set := func(faults string) {
		t.Helper()
		if got := r.do(http.MethodPost, "/faults", faults); got.StatusCode != http.StatusOK {
			t.Fatalf("%s: %d %s", faults, got.StatusCode, got.body)
		}
	}
	request := object{"prompt": "x", "max_tokens": 8, "stream": true}

	set(`{"unhealthy":true}`)
	if got := r.do("GET", "/health", ""); got.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("health %d", got.StatusCode)
	}
	set(`{"error_rate":1}`)
	if got := r.post("/v1/completions", request); got.StatusCode != http.StatusInternalServerError || shape(t, got.body) != "{error:{message:string type:string param:null code:number}}" {
		t.Errorf("%d %s", got.StatusCode, got.body)
	}
	set(`{"drop_after":3}`)
	body, err := io.ReadAll(r.open(request))
	if !errors.Is(err, io.ErrUnexpectedEOF) || strings.Count(string(body), "data: ") != 3 {
		t.Errorf("%v after %s", err, body)
	}
	set(`{}`)
	if got := r.post("/v1/completions", request); got.StatusCode != http.StatusOK || len(got.events()) != 9 {
		t.Errorf("healed: %d %s", got.StatusCode, got.body)
	}
	for _, bad := range []string{`{"hung":true}`, `{"error_rate":2}`, `{"slow":-1}`, `{"drop_after":-1}`, `no`} {
		if got := r.do(http.MethodPost, "/faults", bad); got.StatusCode != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, got.StatusCode)
		}
	}
}

func TestHangAnswersNothingUntilHealed(t *testing.T) {
	r := start(t, config())
	if err := r.SetFaults(engine.Faults{Hang: true}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	status := make(chan error, 2)
	get := func(ctx context.Context) {
		req, _ := http.NewRequestWithContext(ctx, http.MethodGet, r.URL()+"/health", http.NoBody)
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
		}
		status <- err
	}
	go get(ctx)
	cancel()
	if err := <-status; !errors.Is(err, context.Canceled) {
		t.Errorf("a hung engine gave %v", err)
	}
	go get(t.Context())
	if got := r.do("GET", "/faults", ""); !strings.Contains(got.body, `"hang":true`) {
		t.Errorf("faults %s", got.body)
	}
	if err := r.SetFaults(engine.Faults{}); err != nil {
		t.Fatal(err)
	}
	if err := <-status; err != nil {
		t.Errorf("after healing: %v", err)
	}
}

// TestHungRequestsEndWithTheirClients: who hangs on a request with a body lets go
// of it when the client does, and computes it once healed.
func TestHungRequestsEndWithTheirClients(t *testing.T) {
	r := start(t, config())
	r.do("GET", "/health", "")
	before := runtime.NumGoroutine()
	if err := r.SetFaults(engine.Faults{Hang: true}); err != nil {
		t.Fatal(err)
	}
	const request = "POST /v1/completions HTTP/1.1\r\nHost: e\r\nContent-Type: application/json\r\nContent-Length: 29\r\n\r\n" + `{"prompt":"x","max_tokens":1}`
	var clients []net.Conn
	for range 10 {
		c, err := net.Dial("tcp", r.Address())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(request)); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	eventually(t, "all requests hang", func() bool { return runtime.NumGoroutine() >= before+len(clients) })
	stays := clients[0]
	for _, c := range clients[1:] {
		c.Close()
	}
	eventually(t, "those whose clients went are gone", func() bool { return runtime.NumGoroutine() <= before+2 })
	if err := r.SetFaults(engine.Faults{}); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(stays), nil)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Errorf("after healing: %s", answer.Status)
	}
}

func TestRefuseClosesThePortAndOpensItAgain(t *testing.T) {
	r := start(t, config())
	address := r.Address()
	running := r.open(object{"prompt": "x", "max_tokens": 30_000, "stream": true})
	r.do(http.MethodPost, "/faults", `{"refuse":true}`)
	if _, err := io.ReadAll(running); err == nil {
		t.Error("a running answer went on to its end")
	}
	eventually(t, "connections are refused", func() bool {
		resp, err := http.Get("http://" + address + "/health")
		if err == nil {
			resp.Body.Close()
		}
		return errors.Is(err, syscall.ECONNREFUSED)
	})
	if err := r.SetFaults(engine.Faults{}); err != nil {
		t.Fatal(err)
	}
	if r.Address() != address {
		t.Errorf("address %s, was %s", r.Address(), address)
	}
	if got := r.do("GET", "/health", ""); got.StatusCode != http.StatusOK {
		t.Error(got.Status)
	}
}

func TestParseFaults(t *testing.T) {
	got, err := engine.ParseFaults("hang, slow=2.5,drop_after=3")
	if err != nil || got != (engine.Faults{Hang: true, Slow: 2.5, DropAfter: 3}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"hangs", "slow", "slow=x", "error_rate=7", "=", ","} {
		if got, err := engine.ParseFaults(bad); err == nil {
			t.Errorf("%q gives %+v", bad, got)
		}
	}
}

// TestNothingIsLeftAfterAborts aborts many streams at different points and
// closes the engine: all goroutines must be gone.
func TestNothingIsLeftAfterAborts(t *testing.T) {
	before := runtime.NumGoroutine()
	r := start(t, config())
	client := &http.Client{Transport: &http.Transport{}}
	var clients sync.WaitGroup
	for c := range 4 {
		clients.Go(func() {
			for i := range 50 {
				ctx, cancel := context.WithCancel(t.Context())
				body := encode(t, object{"prompt": ids(c*100+i, 300), "max_tokens": 300, "stream": i%5 != 0})
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, r.URL()+"/v1/completions", strings.NewReader(body))
				if i%7 == 0 {
					cancel()
				}
				resp, err := client.Do(req)
				if err == nil {
					lines := bufio.NewReader(resp.Body)
					for range i % 20 {
						_, _ = lines.ReadString('\n')
					}
					resp.Body.Close()
				}
				cancel()
			}
		})
	}
	clients.Wait()
	client.CloseIdleConnections()
	http.DefaultClient.CloseIdleConnections()
	eventually(t, "all requests are out of the engine", func() bool {
		return r.metric("vllm:num_requests_running")+r.metric("vllm:num_requests_waiting")+r.metric("vllm:kv_cache_usage_perc") == 0
	})
	http.DefaultClient.CloseIdleConnections()
	r.Close()
	r.Close() // twice is harmless
	eventually(t, "all goroutines are gone", func() bool { return runtime.NumGoroutine() <= before })
}
