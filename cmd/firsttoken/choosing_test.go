package main

import (
	"context"
	"log/slog"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/firsttoken/firsttoken/scoring"
)

// A signal that comes while the service is still being made counts once it runs;
// it does not end the process.
func TestSignalBeforeStart(t *testing.T) {
	turned := make(chan bool, 1)
	c := newChoosing(config{}, func() []scoring.Endpoint { return nil }, func(choose bool) { turned <- choose }, slog.New(slog.DiscardHandler))
	t.Cleanup(c.close)
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var group errgroup.Group
	c.start(ctx, &group)
	if <-turned {
		t.Error("SIGUSR1 turned choosing on")
	}
	stop()
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}

// The caution names what is lost while Envoy chooses, given the endpoints of now.
func TestCautionIsOfNow(t *testing.T) {
	cfg := defaultConfig()
	var endpoints []scoring.Endpoint
	c := newChoosing(cfg, func() []scoring.Endpoint { return endpoints }, func(bool) {}, slog.New(slog.DiscardHandler))
	t.Cleanup(c.close)
	for _, step := range []struct {
		name   string
		models [][]string
		apart  bool
	}{
		{"none", nil, false},
		{"one model", [][]string{{"a"}, {"a"}}, false},
		{"two names of one engine", [][]string{{"a", "b"}, {"b", "a"}}, false},
		{"not known yet", [][]string{{"a"}, nil}, false},
		{"two models", [][]string{{"a"}, {"b"}}, true},
		{"an adapter on one", [][]string{{"a"}, {"a", "lora"}}, true},
		{"one again", [][]string{{"b"}}, false},
	} {
		endpoints = nil
		for _, models := range step.models {
			endpoints = append(endpoints, scoring.Endpoint{Models: models})
		}
		if got := c.view().Caution; strings.Contains(got, "tell models apart") != step.apart {
			t.Errorf("%s: caution %q", step.name, got)
		}
	}
}

// Requests for some endpoints alone lose that, as those for an alias lose theirs.
func TestCautionNamesWhatIsRestricted(t *testing.T) {
	cfg := defaultConfig()
	for _, pins := range []bool{true, false} {
		cfg.Server.Pins = pins
		got := cfg.caution(nil)
		if strings.Contains(got, "?id=") != pins || !strings.Contains(got, "subset") || strings.Contains(got, "alias") {
			t.Errorf("pins %v: %q", pins, got)
		}
	}
	cfg.Aliases = map[string]string{"nick": "m"}
	if got := cfg.caution(nil); !strings.Contains(got, "aliases") {
		t.Errorf("%q", got)
	}
}
