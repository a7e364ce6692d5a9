package main

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/scoring"
)

func TestLedgerAtScrape(t *testing.T) {
	picker, err := scoring.NewPicker(scoring.DefaultConfig(), time.Now, rand.New(rand.NewPCG(1, 1)))
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(newLedgerCollector(picker))
	a := scoring.Endpoint{ID: 1, Name: "a", Address: "10.0.0.1:1", Models: []string{"m"}, Ready: true}
	b := scoring.Endpoint{ID: 2, Name: "b", Address: "10.0.0.2:1", Models: []string{"m"}}
	picker.SetEndpoints([]scoring.Endpoint{a, b})
	prompt := &scoring.Prompt{Model: "m", Streamed: true, Source: scoring.TokensEstimated, Sequences: []scoring.Sequence{{Length: 3, Copies: 1}}}
	if _, err := picker.Pick("x", prompt); err != nil {
		t.Fatal(err)
	}
	const help = `
		# HELP firsttoken_endpoint_queued_work That work itself; one unit is one token attending to one position.
		# TYPE firsttoken_endpoint_queued_work gauge
		firsttoken_endpoint_queued_work{endpoint="a"} 6
		firsttoken_endpoint_queued_work{endpoint="b"} 0
		# HELP firsttoken_endpoint_waiting_requests Requests sent to the endpoint whose first token was not seen yet.
		# TYPE firsttoken_endpoint_waiting_requests gauge
		firsttoken_endpoint_waiting_requests{endpoint="a"} 1
		firsttoken_endpoint_waiting_requests{endpoint="b"} 0
		# HELP firsttoken_endpoint_chosen_total Requests that the endpoint was chosen for.
		# TYPE firsttoken_endpoint_chosen_total counter
		firsttoken_endpoint_chosen_total{endpoint="a"} 1
		firsttoken_endpoint_chosen_total{endpoint="b"} 0
		# HELP firsttoken_bookings_open Bookings that have not ended.
		# TYPE firsttoken_bookings_open gauge
		firsttoken_bookings_open 1
	`
	names := []string{"firsttoken_endpoint_queued_work", "firsttoken_endpoint_waiting_requests", "firsttoken_endpoint_chosen_total", "firsttoken_bookings_open"}
	if err := testutil.GatherAndCompare(registry, strings.NewReader(help), names...); err != nil {
		t.Error(err)
	}

	// The series of an endpoint that is gone are gone.
	picker.SetEndpoints([]scoring.Endpoint{b})
	if err := testutil.GatherAndCompare(registry, strings.NewReader(`
		# HELP firsttoken_endpoint_waiting_requests Requests sent to the endpoint whose first token was not seen yet.
		# TYPE firsttoken_endpoint_waiting_requests gauge
		firsttoken_endpoint_waiting_requests{endpoint="b"} 0
	`), "firsttoken_endpoint_waiting_requests"); err != nil {
		t.Error(err)
	}
	if problems, err := testutil.GatherAndLint(registry); err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}
