package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/fidelity"
	"github.com/firsttoken/firsttoken/lmcache/zmq"
)

// An engine that should publish events and does not is named with what to do,
// and what was routed there counts instead.
func TestServeNamesASilentSource(t *testing.T) {
	c, err := zmq.NewContext()
	switch {
	case errors.Is(err, zmq.ErrNoZMQ):
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	_ = c.Close()
	cfg := defaultConfig()
	cfg.LMCache.Enabled = false
	cfg.Endpoints = []discovery.Entry{{
		Name: "mute", Address: fakeEngine(t, `{"data":[{"id":"m"}]}`), KVEvents: discovery.KVEventsEntry{Endpoint: "tcp://*:9"},
	}}
	b := startService(t, cfg)
	conn := dial(t, b.Listen)
	awaitServing(t, conn)
	for i := range 10 {
		ids := make([]string, 2000)
		for n := range ids {
			ids[n] = strconv.Itoa(1 + i*3000 + n)
		}
		_, respond := ask(t, conn, fmt.Sprintf(`{"model":"m","stream":true,"prompt":[%s]}`, strings.Join(ids, ",")))
		respond()
	}
	row := func(s status, source string) fidelity.SourceStatus {
		for _, row := range s.Fleet[0].Sources {
			if row.Source == source {
				return row
			}
		}
		t.Fatalf("/status has no %s: %+v", source, s.Fleet[0].Sources)
		return fidelity.SourceStatus{}
	}
	view := awaitStatus(t, b, func(s status) bool { return row(s, "events").Fault != "" })
	events, memory := row(view, "events"), row(view, "routed")
	if events.Used || !memory.Used || events.Echo.Shown != 0 || !strings.Contains(events.Fault, "told nothing") || !strings.Contains(events.Fix, "--kv-events-config") {
		t.Errorf("/status: %+v", view.Fleet[0].Sources)
	}
	metrics := get(t, b, "/metrics", nil)
	for _, want := range []string{
		`firsttoken_source_used{endpoint="mute",source="events"} 0`,
		`firsttoken_source_used{endpoint="mute",source="routed"} 1`,
		`firsttoken_endpoint_findings{endpoint="mute"} 1`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics has no %s", want)
		}
	}
	var decisions struct {
		Decisions []struct {
			Candidates []struct {
				Source string `json:"source"`
				Claims []struct {
					Source string `json:"source"`
					Used   bool   `json:"used"`
				} `json:"claims"`
			} `json:"candidates"`
		} `json:"decisions"`
	}
	get(t, b, "/decisions", &decisions)
	last := decisions.Decisions[0].Candidates[0]
	if last.Source != "routed" || len(last.Claims) != 1 || last.Claims[0].Source != "routed" || !last.Claims[0].Used {
		t.Errorf("/decisions: %+v", last)
	}
}
