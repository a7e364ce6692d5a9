package envoy_test

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// Alerts and dashboard ask Envoy for what it really shows. What the service shows
// is checked in test/alerts.
func TestAlertsAskEnvoyForWhatItShows(t *testing.T) {
	e := startEngine(t)
	s := startService(t, "roundrobin", e)
	p := startEnvoy(t, config(s, e))
	_, stats := p.ask(t, "/stats/prometheus")
	shown := make(map[string]bool)
	for _, m := range regexp.MustCompile(`(?m)^(envoy_[a-z_]+)\{([^}]*)\}`).FindAllStringSubmatch(stats, -1) {
		shown[m[1]] = true
		for label := range strings.SplitSeq(m[2], ",") {
			shown[m[1]+" "+label] = true
		}
	}
	asked := 0
	for _, file := range []string{"../../deploy/prometheus/alerts.yml", "../../deploy/grafana/firsttoken.json"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(envoy_[a-z_]+)(?:\{[^}]*(envoy_cluster_name=\\?"[a-z-]+)\\?")?`).FindAllStringSubmatch(string(text), -1) {
			if m[1] == "envoy_cluster_name" {
				continue
			}
			asked++
			if !shown[m[1]] {
				t.Errorf("%s asks for %s, which Envoy does not show", file, m[1])
			}
			if label := strings.ReplaceAll(m[2], `\`, ""); label != "" && !shown[m[1]+" "+label+`"`] {
				t.Errorf("%s asks for %s with %s\", which Envoy does not show", file, m[1], label)
			}
		}
	}
	if asked < 5 {
		t.Errorf("found only %d names in the files", asked)
	}
}
