package alerts

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// Every query of the dashboard can be read by Prometheus and asks for metrics and
// labels that are exported.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../deploy/grafana/firsttoken.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			ID      int    `json:"id"`
			Title   string `json:"title"`
			Type    string `json:"type"`
			Targets []struct {
				Expr string `json:"expr"`
			} `json:"targets"`
		} `json:"panels"`
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	metrics, queries, ids := exported(t), 0, make(map[int]bool)
	// Grafana fills these in.
	fill := strings.NewReplacer("$__rate_interval", "1m", "$instance", ".*", "$job", ".*", "$envoy", ".*")
	for _, panel := range dashboard.Panels {
		if ids[panel.ID] {
			t.Errorf("panel %q: the id %d is another's too", panel.Title, panel.ID)
		}
		ids[panel.ID] = true
		if panel.Type != "row" && len(panel.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", panel.Title)
		}
		for _, target := range panel.Targets {
			queries++
			checkQuery(t, metrics, fill.Replace(target.Expr))
		}
	}
	if queries == 0 {
		t.Error("no queries")
	}
}
