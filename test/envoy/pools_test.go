package envoy_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/scoring"
)

// Two pools of different models behind one Envoy, with adapters, and an engine
// of each that does a part of requests only: each request goes to an engine that
// serves its model whole, the rest is refused with a status that says why.
func TestPoolsOfTwoModels(t *testing.T) {
	engines := []*engine{startEngine(t), startEngine(t), startEngine(t), startEngine(t), startEngine(t), startEngine(t)}
	pool := endpoints(engines)
	for i, e := range []scoring.Endpoint{
		{Models: []string{"llama", "llama-lora"}, Adapters: []string{"llama-lora"}},
		{Models: []string{"llama"}},
		{Models: []string{"llama", "llama-lora", "only-prefilled"}, Role: scoring.RolePrefill},
		{Models: []string{"qwen"}},
		{Models: []string{"qwen", "qwen-lora"}, Adapters: []string{"qwen-lora"}},
		{Models: []string{"qwen", "asleep"}, Role: scoring.RoleDecode},
	} {
		pool[i].Models, pool[i].Adapters, pool[i].Role = e.Models, e.Adapters, e.Role
	}
	s := startServiceFrom(t, listenService(t), choosing(scoring.PolicyRoundRobin), pool, withAliases(t))
	p := startEnvoy(t, config(s, engines...))
	for _, tt := range []struct {
		model   string
		status  int
		engines string // that may serve it
	}{
		{"llama", http.StatusOK, "0 1"},
		{"qwen", http.StatusOK, "3 4"},
		{"llama-lora", http.StatusOK, "0"},
		{"qwen-lora", http.StatusOK, "4"},
		{"only-prefilled", http.StatusServiceUnavailable, ""},
		{"asleep", http.StatusServiceUnavailable, ""},
		{"gpt", http.StatusNotFound, ""},
	} {
		served := map[string]bool{}
		for range 6 {
			resp := post(t, p, `{"model":"`+tt.model+`","prompt":"hello"}`)
			body, err := io.ReadAll(resp.body)
			if err != nil || resp.code != tt.status {
				t.Fatalf("%s: %v %s %s", tt.model, err, resp.status, body)
			}
			if resp.code == http.StatusOK {
				served[resp.header.Get("x-firsttoken-endpoint")] = true
			}
		}
		for i, e := range engines {
			if may := strings.Contains(tt.engines, string(rune('0'+i))); served[e.address] != may {
				t.Errorf("%s: served by engine %d: %t", tt.model, i, !may)
			}
		}
	}
}
