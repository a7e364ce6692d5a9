package envoy_test

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// startSurface serves a pool of four engines: two of m, one of n that is not
// ready, one of o that only prefills.
func startSurface(t *testing.T, mode string) (*proxy, []*engine) {
	t.Helper()
	engines := []*engine{startEngine(t), startEngine(t), startEngine(t), startEngine(t)}
	pool := endpoints(engines)
	for i, name := range []string{"first", "second", "down", "prefiller"} {
		pool[i].Name, pool[i].Cluster = name, "engine-"+pool[i].Address
	}
	pool[1].Cache.Instance = "lmcache-1"
	pool[2].Models, pool[2].Ready = []string{"n"}, false
	pool[3].Models, pool[3].Role = []string{"o"}, scoring.RolePrefill
	aliases := withAliases(t)
	s := startServiceFrom(t, listenService(t), choosing(scoring.PolicyRoundRobin), pool, func(c *extproc.Config, d *extproc.Deps) {
		aliases(c, d)
		c.BodyLimit = 1 << 20
		d.Answer = func(path, authorization string) (extproc.Answer, bool) {
			return extproc.Answer{Status: http.StatusOK, Body: path + " for " + authorization}, authorization != "Bearer other"
		}
		d.Instance = func(id scoring.EndpointID) string { return map[scoring.EndpointID]string{1: "learnt-0"}[id] }
	})
	trailers := "SKIP"
	if mode == "FULL_DUPLEX_STREAMED" {
		trailers = "SEND"
	}
	return startEnvoyWith(t, withModes(t, config(s, engines...), mode, trailers, "STREAMED")), engines
}

// call sends a request and reads its answer.
func call(t *testing.T, p *proxy, method, path, body string, headers ...string) (reply, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, p.clients+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("content-type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp := do(t, req)
	text, err := io.ReadAll(resp.body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(text)
}

// What a client of production-stack's router may send, and the status it may
// count on; pins and statuses are the same in both modes.
func TestStatuses(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "FULL_DUPLEX_STREAMED"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			p, engines := startSurface(t, mode)
			for _, tt := range []struct {
				name, method, path, body string
				status                   int
				served                   int // the engine, -1: none, -2: any
			}{
				{"a model", "POST", "/v1/completions", `{"model":"m","prompt":"x"}`, 200, -2},
				{"an alias", "POST", "/v1/completions", `{"model":"fast","prompt":"x"}`, 200, -2},
				{"not JSON", "POST", "/v1/completions", `{"model":`, 400, -1},
				{"a list", "POST", "/v1/chat/completions", `[1]`, 400, -1},
				{"a string", "POST", "/v1/chat/completions", `"x"`, 400, -1},
				{"no model", "POST", "/v1/completions", `{"prompt":"x"}`, 400, -1},
				{"a model never seen", "POST", "/v1/completions", `{"model":"gpt","prompt":"x"}`, 404, -1},
				{"known, not ready", "POST", "/v1/completions", `{"model":"n","prompt":"x"}`, 503, -1},
				{"known, prefilled only", "POST", "/v1/completions", `{"model":"o","prompt":"x"}`, 503, -1},
				{"too long", "POST", "/v1/completions", `{"model":"m","prompt":"` + strings.Repeat("x", 1<<20) + `"}`, 413, -1},
				{"pinned by name", "POST", "/v1/completions?id=second", `{"model":"m","prompt":"x"}`, 200, 1},
				{"pinned by instance", "POST", "/v1/completions?id=lmcache-1", `{"model":"m","prompt":"x"}`, 200, 1},
				{"pinned by learnt instance", "POST", "/v1/completions?x=1&id=learnt-0", `{"model":"fast","prompt":"x"}`, 200, 0},
				{"pinned by address", "POST", "/v1/completions?id=" + strings.ReplaceAll(engines[0].address, ":", "%3A"), `{"model":"m","prompt":"x"}`, 200, 0},
				{"pinned to nothing", "POST", "/v1/completions?id=third", `{"model":"m","prompt":"x"}`, 404, -1},
				{"pinned to what is not ready", "POST", "/v1/completions?id=down", `{"model":"n","prompt":"x"}`, 503, -1},
				{"pinned to another model's", "POST", "/v1/completions?id=down", `{"model":"m","prompt":"x"}`, 404, -1},
				{"pinned, no generation", "POST", "/sleep?id=second&level=1", "", 200, 1},
				{"pinned to nothing, no generation", "POST", "/sleep?id=third", "", 404, -1},
				{"pinned GET", "GET", "/is_sleeping?id=first", "", 200, 0},
				{"another path", "POST", "/v1/embeddings", `{"model":"gpt","input":"x"}`, 200, -2},
			} {
				before := engines[0].requests.Load() + engines[1].requests.Load() + engines[2].requests.Load() + engines[3].requests.Load()
				for range 3 {
					resp, text := call(t, p, tt.method, tt.path, tt.body)
					if resp.code != tt.status {
						t.Errorf("%s: %s %.200s", tt.name, resp.status, text)
					}
					at := resp.header.Get("x-firsttoken-endpoint")
					if tt.served >= 0 && at != engines[tt.served].address {
						t.Errorf("%s: served by %q, want %s", tt.name, at, engines[tt.served].address)
					}
					if tt.status >= 400 && !strings.Contains(text, `"message"`) {
						t.Errorf("%s: refused with %.200q", tt.name, text)
					}
				}
				after := engines[0].requests.Load() + engines[1].requests.Load() + engines[2].requests.Load() + engines[3].requests.Load()
				if (after > before) != (tt.served != -1) {
					t.Errorf("%s: %d requests reached engines", tt.name, after-before)
				}
			}
		})
	}
}

// Questions about all engines are answered before any engine is asked, in every
// mode that shows request headers; what is pinned, unlisted, not a GET, or for
// an engine to say, goes to one.
func TestOwnAnswers(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "FULL_DUPLEX_STREAMED", "STREAMED", "NONE"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			p, _ := startSurface(t, mode)
			for _, tt := range []struct {
				method, path, authorization string
				ours                        bool
			}{
				{"GET", "/v1/models", "Bearer mine", true},
				{"GET", "/v1/models?x=1", "", true},
				{"GET", "/health", "", true},
				{"GET", "/engines", "", true},
				{"GET", "/version", "", false}, // not among those by default
				{"GET", "/v1/models/m", "", false},
				{"GET", "/v1/models", "Bearer other", false},
				{"GET", "/v1/models?id=second", "", false},
				{"POST", "/v1/models", "", false},
			} {
				resp, text := call(t, p, tt.method, tt.path, "", "authorization", tt.authorization)
				path, _, _ := strings.Cut(tt.path, "?")
				want, _ := json.Marshal(path + " for " + tt.authorization)
				if resp.code != http.StatusOK || (text == string(want)) != tt.ours || (resp.header.Get("content-type") == "application/json") != tt.ours {
					t.Errorf("%s %s: %s %q, ours: %t", tt.method, tt.path, resp.status, text, tt.ours)
				}
			}
			if resp, text := call(t, p, http.MethodHead, "/health", ""); resp.code != http.StatusOK || text != "" || resp.header.Get("content-type") != "application/json" {
				t.Errorf("HEAD: %s %q", resp.status, text)
			}
		})
	}
}

// The router: "X-Request-Id is kept, or made (UUID), passed on to the engine and
// returned". So is it here.
func TestRequestID(t *testing.T) {
	p, engines := startSurface(t, "BUFFERED")
	for _, sent := range []string{"mine", "7d1fa3c2-5a0b-4d9e-9f7e-0123456789ab", ""} {
		resp, _ := call(t, p, "POST", "/v1/completions?id=first", `{"model":"m","prompt":"x"}`, "x-request-id", sent)
		at := next(t, "request", engines[0].seen).Get("x-request-id")
		back := resp.header.Get("x-request-id")
		if at != back || sent != "" && back != sent || len(back) < 4 {
			t.Errorf("sent %q, the engine got %q, the client %q", sent, at, back)
		}
	}
	resp, _ := call(t, p, "POST", "/v1/completions", `{"model":"gpt","prompt":"x"}`, "x-request-id", "refused")
	if back := resp.header.Get("x-request-id"); resp.code != http.StatusNotFound || back != "refused" {
		t.Errorf("refused: %s, id %q", resp.status, back)
	}
}

// subset is a filter that names the endpoints of a subset, as a gateway does.
const subset = `                  - name: subset
                    typed_config:
                      '@type': type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config
                      metadata: [{metadata_namespace: envoy.lb.subset_hint, value: {x-gateway-destination-endpoint-subset: VALUE}}]
`

// The picker's protocol: "Absent: whole pool. Present and empty, or no match:
// 503", as a list or one string, with ports or without.
func TestSubsetHint(t *testing.T) {
	for _, mode := range []string{"BUFFERED", "FULL_DUPLEX_STREAMED"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			engines := []*engine{startEngine(t), startEngine(t), startEngine(t)}
			s := startService(t, scoring.PolicyRoundRobin, engines...)
			trailers := "SKIP"
			if mode == "FULL_DUPLEX_STREAMED" {
				trailers = "SEND"
			}
			base := string(withModes(t, config(s, engines...), mode, trailers, "STREAMED"))
			at := "                  - name: envoy.filters.http.ext_proc\n"
			receiving := "metadata_options:\n"
			if strings.Count(base, at) != 1 || strings.Count(base, receiving) != 1 {
				t.Fatalf("no place in\n%s", base)
			}
			indent := base[strings.LastIndex(base[:strings.Index(base, receiving)], "\n"):strings.Index(base, receiving)]
			base = strings.Replace(base, receiving, receiving+strings.TrimPrefix(indent, "\n")+"  forwarding_namespaces: {untyped: [envoy.lb.subset_hint]}\n", 1)
			a, b := engines[0].address, engines[1].address
			for _, tt := range []struct {
				value  string
				status int
				served string // engines
			}{
				{`["` + a + `","` + b + `"]`, 200, "01"},
				{`"` + a + `, ` + b + `"`, 200, "01"},
				{`["127.0.0.1"]`, 200, "012"},
				{`["` + b + `","10.0.0.9:8000"]`, 200, "1"},
				{`[]`, 503, ""},
				{`""`, 503, ""},
				{`["10.0.0.9:8000"]`, 503, ""},
			} {
				p := startEnvoyWith(t, []byte(strings.Replace(base, at, strings.Replace(subset, "VALUE", tt.value, 1)+at, 1)))
				served := map[string]bool{}
				for range 6 {
					resp, text := call(t, p, "POST", "/v1/completions", `{"model":"m","prompt":"x"}`)
					if resp.code != tt.status {
						t.Fatalf("%s: %s %s", tt.value, resp.status, text)
					}
					served[resp.header.Get("x-firsttoken-endpoint")] = true
				}
				for i, e := range engines {
					if may := strings.Contains(tt.served, string(rune('0'+i))); served[e.address] != may {
						t.Errorf("%s: engine %d served: %t", tt.value, i, !may)
					}
				}
			}
		})
	}
}
