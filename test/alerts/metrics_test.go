package alerts

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/promql/parser"
)

// exported are the labels of each metric that the service exports, by name, as
// docs/metrics.md has them from the code.
func exported(t *testing.T) map[string][]string {
	t.Helper()
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `(firsttoken_[a-z_]+)` \\| ([^|]*) \\|")
	found := make(map[string][]string)
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		found[m[1]] = strings.Fields(strings.ReplaceAll(m[2], "`", " "))
	}
	if len(found) < 50 {
		t.Fatalf("only %d metrics in docs/metrics.md", len(found))
	}
	return found
}

// everywhere are labels that Prometheus itself sets, le those of a histogram.
var everywhere = []string{model.MetricNameLabel, "instance", "job", "le"}

// checkQuery names what the query asks for and nobody exports.
func checkQuery(t *testing.T, metrics map[string][]string, query string) {
	t.Helper()
	expr, err := parser.NewParser(parser.Options{}).ParseExpr(query)
	if err != nil {
		t.Errorf("%q: %v", query, err)
		return
	}
	has := make(map[string]bool) // labels of the metrics in it
	ours := true
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		selector, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		if !strings.HasPrefix(selector.Name, "firsttoken_") {
			ours = false // Envoy's are checked against Envoy
			return nil
		}
		known, ok := metrics[selector.Name]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, cut := strings.CutSuffix(selector.Name, suffix); cut && !ok {
				known, ok = metrics[base]
			}
		}
		if !ok {
			t.Errorf("%q: the service exports no %s", query, selector.Name)
		}
		for _, label := range known {
			has[label] = true
		}
		for _, m := range selector.LabelMatchers {
			if !slices.Contains(known, m.Name) && !slices.Contains(everywhere, m.Name) {
				t.Errorf("%q: %s has no label %s, only %q", query, selector.Name, m.Name, known)
			}
		}
		return nil
	})
	if !ours {
		return
	}
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if by, ok := node.(*parser.AggregateExpr); ok {
			for _, label := range by.Grouping {
				if !has[label] && !slices.Contains(everywhere, label) {
					t.Errorf("%q: grouped by %s, which no metric in it has; there are %q", query, label, slices.Sorted(maps.Keys(has)))
				}
			}
		}
		return nil
	})
}
