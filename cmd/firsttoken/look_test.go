package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/scoring"
)

// runCommand runs the program with args and returns its output.
func runCommand(t *testing.T, in string, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRootCommand()
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetIn(strings.NewReader(in))
	root.SetArgs(args)
	err := root.Execute()
	return out.String(), err
}

// Whoever looks at a service by its commands sees what it would choose and what it
// has found; looking books nothing.
func TestLookAtAService(t *testing.T) {
	address := fakeEngine(t, `{"data":[{"id":"m"}]}`)
	cfg := defaultConfig()
	cfg.Endpoints = []discovery.Entry{{Name: "one", Address: address, Models: []string{"m"}}, {Name: "gone", Address: "127.0.0.1:1", Models: []string{"m"}}}
	s, b := runService(t, cfg, slog.New(slog.DiscardHandler))
	awaitServing(t, dial(t, b.Listen))
	awaitStatus(t, b, func(s status) bool { return s.Fleet[0].Ready && !s.Fleet[1].Ready })

	const body = `{"model":"m","prompt":"` + "Which number comes next?" + `"}`
	out, err := runCommand(t, body, "explain", "--admin", b.Admin, "--path", "/v1/completions", "--body", "-")
	if err != nil || !strings.HasPrefix(out, "one, because: only (policy ttft)\n") || !strings.Contains(out, "prompt tokens (estimated)") {
		t.Errorf("%v: %s", err, out)
	}
	out, err = runCommand(t, body, "explain", "--admin", b.Admin, "--path", "/v1/completions", "--body", "-", "--json")
	var record struct {
		Candidates []struct{ Endpoint string } `json:"candidates"`
		ID         string                      `json:"id"`
	}
	if err != nil || json.Unmarshal([]byte(out), &record) != nil || len(record.Candidates) != 1 || record.ID != "" {
		t.Errorf("%v: %s", err, out)
	}
	out, err = runCommand(t, `{"model":"nope","prompt":"x"}`, "explain", "--admin", b.Admin, "--path", "/v1/completions", "--body", "-")
	if err == nil || !strings.Contains(err.Error(), "/explain answers 404") || !strings.Contains(out, "The model `nope` does not exist") {
		t.Errorf("%v: %s", err, out)
	}
	if stats := s.picker.Stats(); stats.Open != 0 || stats.Endpoints[0].Chosen != 0 {
		t.Errorf("explaining booked: %+v", stats)
	}

	out, err = runCommand(t, "", "status", "--admin", b.Admin)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"policy ttft; bookings 0, held 0", "one       yes", "gone      no", "gone is not ready: "} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}

	for range 3 {
		d, err := s.picker.Explain(&scoring.Prompt{Model: "m", Source: scoring.TokensNone})
		if err != nil {
			t.Fatal(err)
		}
		s.admin.journal.Decided(d)
	}
	for n, want := range map[string]int{"0": 0, "2": 2, "9": 3, "x": -1, "-1": -1} {
		answer, err := http.Get("http://" + b.Admin + "/decisions?n=" + n)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		if err != nil || (answer.StatusCode == http.StatusOK) != (want >= 0) || (want >= 0 && strings.Count(string(text), "token_source") != want) {
			t.Errorf("n=%s: %s %s, %v", n, answer.Status, text, err)
		}
	}
}

func TestLookWhereNobodyIs(t *testing.T) {
	for _, args := range [][]string{{"status"}, {"explain", "--body", "-"}} {
		_, err := runCommand(t, "{}", append(args, "--admin", "127.0.0.1:1")...)
		if err == nil || !strings.Contains(err.Error(), "--admin") || !strings.Contains(err.Error(), "127.0.0.1:1") {
			t.Errorf("%v: %v", args, err)
		}
	}
}

// The arm of a session is explained like its requests, and what explain cannot know
// is said.
func TestExplainKnowsArms(t *testing.T) {
	cfg := defaultConfig()
	cfg.Endpoints = []discovery.Entry{{Name: "one", Address: fakeEngine(t, `{"data":[{"id":"m"}]}`), Models: []string{"m"}}}
	cfg.Server.SessionKey = "x-user-id"
	s, b := runService(t, cfg, slog.New(slog.DiscardHandler))
	awaitServing(t, dial(t, b.Listen))
	awaitStatus(t, b, func(s status) bool { return s.Fleet[0].Ready })

	// The policy and arm in the first line, and the notes after the table.
	explain := func(more ...string) (first string, notes []string) {
		out, err := runCommand(t, `{"model":"m","prompt":"x"}`, append([]string{"explain", "--admin", b.Admin, "--path", "/v1/completions", "--body", "-"}, more...)...)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(out) {
			if first == "" {
				_, first, _ = strings.Cut(strings.TrimSpace(line), "only ")
			}
			if note, ok := strings.CutPrefix(strings.TrimSpace(line), "note: "); ok {
				notes = append(notes, note)
			}
		}
		return first, notes
	}
	const (
		chance = "an arm of canary.arms takes the request, by chance"
		header = "headers of the request may put it into another arm"
		left   = "the request is in arm trial, which is left to Envoy"
		off    = "choosing is off"
	)
	trial := canary.Arm{Name: "trial", Weight: 1, Policy: scoring.PolicyRoundRobin}
	envoys, headed, other := trial, trial, trial
	envoys.Policy, headed.Header, other.Models = canary.PolicyEnvoy, "x-canary", []string{"n"}
	for _, tt := range []struct {
		name, session string
		arms          []canary.Arm
		off           bool
		first         string
		notes         []string
	}{
		{"no arms", "u", nil, false, "(policy ttft)", nil},
		{"by session", "u", []canary.Arm{trial}, false, "(policy roundrobin, arm trial)", nil},
		{"no session", "", []canary.Arm{trial}, false, "(policy ttft)", []string{chance}},
		{"headers too", "u", []canary.Arm{headed}, false, "(policy roundrobin, arm trial)", []string{header}},
		{"Envoy's", "u", []canary.Arm{envoys}, false, "(policy ttft)", []string{left}},
		{"of another model", "", []canary.Arm{other}, false, "(policy ttft)", nil},
		{"off", "u", []canary.Arm{trial}, true, "(policy roundrobin, arm trial)", []string{off}},
	} {
		s.server.SetArms(canary.Config{Arms: tt.arms, Sticky: true})
		s.server.SetChoosing(!tt.off)
		first, notes := explain("--session", tt.session)
		same := slices.EqualFunc(notes, tt.notes, strings.HasPrefix)
		if first != tt.first || !same {
			t.Errorf("%s: %s, notes %q; want %s, %q", tt.name, first, notes, tt.first, tt.notes)
		}
	}
	metrics, err := s.admin.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range metrics {
		if family.GetName() == "firsttoken_arm_requests_total" && family.GetMetric()[0].GetCounter().GetValue() != 0 {
			t.Errorf("explaining counted: %v", family)
		}
	}
}

// A model's own policy, and the session from the header or the body's member.
func TestExplainKnowsSessions(t *testing.T) {
	cfg := defaultConfig()
	cfg.Endpoints = []discovery.Entry{
		{Name: "one", Address: fakeEngine(t, `{"data":[{"id":"m"}]}`), Models: []string{"m"}},
		{Name: "two", Address: fakeEngine(t, `{"data":[{"id":"m"}]}`), Models: []string{"m"}},
	}
	cfg.Server.SessionKey = "x-user-id"
	cfg.Scoring.Models = map[string]scoring.ModelConfig{"m": {Policy: scoring.PolicySession}}
	s, b := runService(t, cfg, slog.New(slog.DiscardHandler))
	awaitServing(t, dial(t, b.Listen))
	awaitStatus(t, b, func(s status) bool {
		return s.Fleet[0].Ready && s.Fleet[1].Ready && s.ModelPolicies["m"] == scoring.PolicySession
	})

	explain := func(body string, more ...string) string {
		out, err := runCommand(t, body, append([]string{"explain", "--admin", b.Admin, "--path", "/v1/completions", "--body", "-"}, more...)...)
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(out, "\n")
		return first
	}
	homes := make(map[string]bool)
	for i := range 20 {
		id := fmt.Sprint("user", i)
		header := explain(`{"model":"m","prompt":"x"}`, "--session", id)
		body := explain(`{"model":"m","prompt":"x","x-user-id":"` + id + `"}`)
		if header != body || !strings.HasSuffix(header, ", because: session (policy session)") {
			t.Errorf("%s by the header, %s by the body", header, body)
		}
		homes[header] = true
	}
	if len(homes) != 2 {
		t.Errorf("20 sessions are at %v", homes)
	}
	if out := explain(`{"model":"m","prompt":"x"}`); !strings.HasSuffix(out, ", because: load (policy session)") {
		t.Errorf("without a session: %s", out)
	}
	if open := s.picker.Stats().Open; open != 0 {
		t.Errorf("%d bookings", open)
	}
}
