package main

import (
	"log/slog"
	"testing"

	"github.com/firsttoken/firsttoken/canary"
)

// What engines count is not held to predictions while an arm's requests go to
// them unbooked.
func TestArmsThatAreLeftToEnvoy(t *testing.T) {
	cfg := freePorts(defaultConfig())
	cfg.Canary.Arms = []canary.Arm{{Name: "a", Weight: 1, Policy: "ttft"}, {Name: "b", Weight: 1, Policy: canary.PolicyEnvoy}}
	s, err := newService(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	if !s.leavesToEnvoy() {
		t.Error("an arm is left to Envoy, and nobody knows")
	}
	cfg.Canary.Arms = cfg.Canary.Arms[:1]
	s.setArms(cfg.Canary)
	if s.leavesToEnvoy() {
		t.Error("no arm is left to Envoy any more")
	}
}
