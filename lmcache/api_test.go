//go:build cgo && !nozmq

package lmcache_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/zmq"
)

// toolClient asks the API as a tool does.
type toolClient struct {
	testing.TB
	http.Handler
}

func newToolClient(r *rig, keys lmcache.KeyGroup) *toolClient {
	r.Helper()
	cfg := lmcache.DefaultConfig()
	cfg.Keys = keys
	source, err := lmcache.NewSource(cfg, r.index, r.Controller, discard)
	if err != nil {
		r.Fatal(err)
	}
	return &toolClient{r, lmcache.API(r.Controller, source)}
}

func (c *toolClient) post(path, body string) (status int, answer map[string]any, text string) {
	c.Helper()
	w := httptest.NewRecorder()
	c.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader(body)))
	_ = json.Unmarshal(w.Body.Bytes(), &answer) // what the mux refuses is no JSON
	return w.Code, answer, strings.TrimSpace(w.Body.String())
}

// sessionKeys are the settings of the recorded controller: LMCache alone, tails
// kept.
func sessionKeys(version string) lmcache.KeyGroup {
	yes := true
	return lmcache.KeyGroup{
		LMCacheVersion: version, VLLMVersion: lmcache.NoVLLM, PythonVersion: "3.12", PythonHashSeed: "0",
		Algorithm: "builtin", ChunkSize: 256, SaveUnfullChunk: &yes,
	}
}

// replayHTTP asks one recorded question again and holds our answer against the
// recorded one.
func (c *toolClient) replayHTTP(e goldenEvent, registered map[string]string) {
	c.Helper()
	body := string(e.Request)
	var asked struct {
		Tokens any
		IP     string
	}
	_ = json.Unmarshal(e.Request, &asked) // null where it was a GET
	if formula, ok := asked.Tokens.(string); ok {
		var n int
		if _, err := fmt.Sscanf(formula, "tokens[:%d]", &n); err != nil {
			c.Fatal(formula, err)
		}
		list := make([]uint32, n)
		for i := range list {
			list[i] = uint32(i*7+3) % 150_000
		}
		text, err := json.Marshal(map[string]any{"tokens": list})
		if err != nil {
			c.Fatal(err)
		}
		body = string(text)
	}
	status, answer, text := c.post(e.HTTP, body)
	var want map[string]any
	_ = json.Unmarshal([]byte(e.Response), &want)
	switch e.HTTP {
	case "/lookup":
		got := answer["layout_info"].(map[string]any)
		for instance, held := range want["layout_info"].(map[string]any) {
			switch {
			case registered[instance] == "":
				// "deregister coroutine not awaited (stale for ever)"
				if got[instance] != nil {
					c.Errorf("%s: %s is gone and still listed in %s", e.Note, instance, text)
				}
			case !cmp.Equal(held, got[instance]):
				c.Errorf("lookup (%s): %s holds %v, want %v", e.Note, instance, got[instance], held)
			}
		}
		if status != http.StatusOK || !strings.HasPrefix(fmt.Sprint(answer["event_id"]), "Lookup") {
			c.Errorf("lookup answered %d %s", status, text)
		}
	case "/query_instance":
		// Of the recorded ones some could not answer at all.
		known := ""
		for instance, ip := range registered {
			if ip == asked.IP {
				known = instance
			}
		}
		switch {
		case known == "" && (status != http.StatusInternalServerError || answer["detail"] == ""):
			c.Errorf("query_instance of nobody answered %d %s", status, text)
		case known != "" && (status != http.StatusOK || answer["res"] != known):
			c.Errorf("query_instance answered %d %s, want %s", status, text, known)
		case e.Status == http.StatusOK && answer["res"] != want["res"]:
			c.Errorf("query_instance answered %s, LMCache %s", text, e.Response)
		}
	case "/query_worker_info":
		if status != http.StatusOK || answer["worker_infos"] == nil {
			c.Errorf("query_worker_info answered %d %s", status, text)
			return
		}
		// 6.5 s without heartbeats have not passed here.
		if e.Status != http.StatusOK || len(want["worker_infos"].([]any)) == 0 {
			return
		}
		byID := cmpopts.SortSlices(func(a, b any) bool {
			return fmt.Sprint(a.(map[string]any)["instance_id"]) < fmt.Sprint(b.(map[string]any)["instance_id"])
		})
		times := cmpopts.IgnoreMapEntries(func(name string, _ any) bool {
			return name == "registration_time" || name == "last_heartbeat_time"
		})
		if diff := cmp.Diff(want["worker_infos"], answer["worker_infos"], byID, times); diff != "" {
			c.Errorf("query_worker_info (-LMCache +ours):\n%s", diff)
		}
	case "/health":
		if e.Status == http.StatusOK && !cmp.Equal(want["error_codes"], answer["error_codes"]) || status != http.StatusOK {
			c.Errorf("health answered %d %s, LMCache %s", status, text, e.Response)
		}
	default: // writes, and what later releases show of themselves
		if slices.Contains(lmcache.APIPaths, e.HTTP) || status != http.StatusNotFound {
			c.Errorf("%s answered %d %s, want 404", e.HTTP, status, text)
		}
	}
}

func TestAPI(t *testing.T) {
	r := newRig(t)
	reply := r.dial(zmq.Dealer, r.Addresses().Reply)
	register := func(instance string, rank, port int) {
		g := registration(instance)
		g.Worker.Worker, g.Port = rank, port
		r.asks(reply, (&lmcache.RegisterMsg{Registration: g}).Append(nil))
	}
	register("short", 0, 1)
	register("long", 0, 2)
	register("long", 1, 3)
	keys := sessionKeys("0.5.6")
	keys.ChunkSize = 2
	h, err := lmcache.NewHasher(keys)
	if err != nil {
		t.Fatal(err)
	}
	chunks := h.Keys(nil, []uint32{1, 2, 3, 4, 5})
	r.pushes(
		batch(worker("short", 0), 0, chunks[:1]...).Append(nil),
		batch(worker("long", 0), 0, chunks...).Append(nil),
		batch(worker("long", 1), 0, chunks[:2]...).Append(nil),
		batch(worker("provisional", 0), 0, chunks[:1]...).Append(nil),
	)
	c := newToolClient(r, keys)
	for _, q := range []struct {
		path, body string
		status     int
		want       string // a part of the answer
	}{
		{"/lookup", `{"tokens":[1,2,3,4,5]}`, 200, `"layout_info":{"long":["LocalCPUBackend",4],"short":["LocalCPUBackend",2],"provisional":["LocalCPUBackend",2]}`},
		{"/lookup", `{"tokens":[9]}`, 200, `"layout_info":{}`},
		{"/lookup", `{"tokens":[]}`, 200, `"layout_info":{}`},
		{"/lookup", `{}`, 422, `"loc":["body","tokens"],"msg":"Field required"`},
		{"/lookup", `{"tokens":[-1]}`, 422, `"type":"type_error"`},
		{"/lookup", `{"tokens":"x"}`, 422, `"type":"type_error"`},
		{"/lookup", `[`, 422, `"type":"json_invalid"`},
		{"/lookup", `{"tokens":[` + strings.Repeat("1,", 5<<20) + `1]}`, 413, `too large`},
		{"/query_instance", `{"event_id":"e","ip":"127.0.0.1"}`, 200, `"res":"short"`},
		{"/query_instance", `{"event_id":"e","ip":"10.9.9.9"}`, 500, `10.9.9.9`},
		{"/query_instance", `{"ip":"127.0.0.1"}`, 422, `"event_id"`},
		{"/query_worker_info", `{"instance_id":"long"}`, 200, `"port":2,"peer_init_url":null`},
		{"/query_worker_info", `{"instance_id":"all","worker_ids":[1]}`, 200, `"worker_infos":[{"instance_id":"long","worker_id":1`},
		{"/query_worker_info", `{"instance_id":"nobody","worker_ids":null}`, 200, `"worker_infos":[]`},
		{"/query_worker_info", `{"worker_ids":null}`, 422, `"instance_id"`},
		{"/health", `{"instance_id":"long"}`, 200, `"error_codes":{"0":0,"1":0}`},
		{"/health_check", `{"instance_id":"short"}`, 200, `"error_codes":{"0":0}`},
		{"/health", `{"instance_id":"nobody"}`, 500, `nobody`},
	} {
		status, _, text := c.post(q.path, q.body)
		if status != q.status || !strings.Contains(text, q.want) {
			t.Errorf("%s %.80s: %d %.400s, want %d and %s", q.path, q.body, status, text, q.status, q.want)
		}
	}
	w := httptest.NewRecorder()
	c.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/lookup", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET /lookup answered %d", w.Code)
	}
}

// A worker that is silent since it registered is not healthy.
func TestAPIHealthOfTheSilent(t *testing.T) {
	cfg := lmcache.DefaultControllerConfig()
	cfg.Pull, cfg.Reply, cfg.Heartbeat, cfg.SilentAfter = "127.0.0.1:0", "127.0.0.1:0", "", 1
	cfg.CheckInterval = time.Millisecond
	r := newRigOf(t, cfg)
	r.asks(r.dial(zmq.Dealer, r.Addresses().Reply), (&lmcache.RegisterMsg{Registration: registration("mute")}).Append(nil))
	c := newToolClient(r, sessionKeys("0.5.6"))
	r.eventually("the silence being noticed", func() bool {
		_, _, text := c.post("/health", `{"instance_id":"mute"}`)
		return strings.Contains(text, `"error_codes":{"0":-1}`)
	})
	r.eventually("the metric", func() bool { return r.sum("firsttoken_lmcache_silent_workers") == 1 })
}
