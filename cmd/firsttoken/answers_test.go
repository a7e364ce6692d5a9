package main

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// Clients see the models of all engines that take requests, as the engines wrote
// their cards, each once, then the aliases of what is there.
func TestAnswersAreOfAllEngines(t *testing.T) {
	llama := `{"id":"llama","object":"model","created":5,"max_model_len":4096,"parent":null}`
	pool := []scoring.Endpoint{
		{ID: 1, Name: "a", Models: []string{"llama", "lora"}, Ready: true},
		{ID: 2, Name: "b", Models: []string{"llama"}, Ready: true},
		{ID: 3, Name: "c", Models: []string{"qwen"}, Ready: true},
		{ID: 4, Name: "down", Models: []string{"down"}},
		{ID: 5, Name: "p", Models: []string{"prefilled"}, Ready: true, Role: scoring.RolePrefill},
	}
	a := &answers{
		endpoints: func() []scoring.Endpoint { return pool },
		cards: func() map[scoring.EndpointID]map[string]json.RawMessage {
			return map[scoring.EndpointID]map[string]json.RawMessage{
				1: {"llama": json.RawMessage(llama), "lora": json.RawMessage(`{"id":"lora","parent":"llama"}`)},
				2: {"llama": json.RawMessage(`{"id":"llama","created":6}`)},
			}
		},
		aliases: map[string]string{"fast": "llama", "gone": "down", "qwen": "llama"},
		started: time.Unix(7, 0),
	}
	ask := func(path, authorization string) (int, any) {
		t.Helper()
		got, ok := a.answer(path, authorization)
		if !ok {
			return 0, nil
		}
		text, err := json.Marshal(got.Body)
		if err != nil {
			t.Fatal(err)
		}
		var body any
		if err := json.Unmarshal(text, &body); err != nil {
			t.Fatal(err)
		}
		return got.Status, body
	}
	check := func(path string, status int, want string) {
		t.Helper()
		var body any
		if err := json.Unmarshal([]byte(want), &body); err != nil {
			t.Fatal(err)
		}
		got, gotBody := ask(path, "")
		if got != status {
			t.Errorf("%s: status %d, want %d", path, got, status)
		}
		if diff := cmp.Diff(body, gotBody); diff != "" {
			t.Errorf("%s (-want +got)\n%s", path, diff)
		}
	}
	check(extproc.PathModels, http.StatusOK, `{"object":"list","data":[`+llama+`,{"id":"lora","parent":"llama"},
		{"id":"qwen","object":"model","created":7,"owned_by":"vllm","parent":null},
		{"id":"fast","object":"model","created":5,"max_model_len":4096,"parent":null}]}`)
	check(extproc.PathEngines, http.StatusOK, `[{"engine_id":"a","serving_models":["llama","lora"],"created":7},
		{"engine_id":"b","serving_models":["llama"],"created":7},{"engine_id":"c","serving_models":["qwen"],"created":7}]`)
	check(extproc.PathHealth, http.StatusOK, `{"status":"healthy"}`)
	check(extproc.PathVersion, http.StatusOK, `{"version":"`+version()+`"}`)

	// Engines with a key tell nothing without it, so neither do we; who is healthy
	// they tell everybody.
	a.key = "secret"
	for _, authorization := range []string{"", "Bearer", "Bearer secre", "Bearer secrets", "secret"} {
		for _, path := range []string{extproc.PathModels, extproc.PathEngines} {
			if status, body := ask(path, authorization); status != 0 {
				t.Errorf("%s is answered to %q: %v", path, authorization, body)
			}
		}
	}
	if status, _ := ask(extproc.PathModels, "Bearer secret"); status != http.StatusOK {
		t.Errorf("with the key: %d", status)
	}
	a.key = ""

	// While engines did not say yet what they serve, one of them is asked.
	pool = []scoring.Endpoint{{ID: 9, Name: "new", Ready: true}}
	if status, body := ask(extproc.PathModels, ""); status != 0 {
		t.Errorf("unknown models are answered with %v", body)
	}
	pool = []scoring.Endpoint{{ID: 4, Name: "down", Models: []string{"down"}}, {ID: 5, Ready: true, Role: scoring.RoleDecode}}
	check(extproc.PathModels, http.StatusOK, `{"object":"list","data":[]}`)
	check(extproc.PathHealth, http.StatusServiceUnavailable, `{"status":"no engine is ready"}`)
}
