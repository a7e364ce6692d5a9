package alerts

import (
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
)

// readRules are the alerts by name.
func readRules(t *testing.T) map[string]rulefmt.Rule {
	t.Helper()
	groups, faults := rulefmt.ParseFile("../../deploy/prometheus/alerts.yml", false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, fault := range faults {
		t.Error(fault)
	}
	if len(faults) > 0 {
		t.FailNow()
	}
	rules := make(map[string]rulefmt.Rule)
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			rules[rule.Alert] = rule
		}
	}
	return rules
}

// Every rule can be read, asks for what is exported, and sends whoever is woken by
// it to a heading that exists.
func TestRulesAskForWhatIsThere(t *testing.T) {
	page, err := os.ReadFile("../../docs/troubleshooting.md")
	if err != nil {
		t.Fatal(err)
	}
	anchors := make(map[string]bool)
	for _, heading := range regexp.MustCompile(`(?m)^## (.+)$`).FindAllStringSubmatch(string(page), -1) {
		anchor := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(heading[1]), "")
		anchors[strings.ReplaceAll(anchor, " ", "-")] = true
	}
	metrics := exported(t)
	for name, rule := range readRules(t) {
		checkQuery(t, metrics, rule.Expr)
		file, anchor, _ := strings.Cut(rule.Annotations["runbook"], "#")
		if file != "docs/troubleshooting.md" || !anchors[anchor] {
			t.Errorf("%s: runbook %q is no heading of docs/troubleshooting.md, which has %q", name, rule.Annotations["runbook"], slices.Sorted(maps.Keys(anchors)))
		}
		if rule.Annotations["summary"] == "" || rule.Labels["severity"] == "" {
			t.Errorf("%s: no summary or severity", name)
		}
	}
}

// examples are, for each alert, series by the minute of services that call for it,
// and last of one that does not.
var examples = map[string][]string{
	"FirsttokenDown":                     {`up{job="firsttoken"} 0x60`, `up{job="firsttoken"} 1x60`},
	"FirsttokenEnvoyIsChoosing":          {`envoy_http_ext_proc_failure_mode_allowed{job="envoy"} 0+30x60`, `envoy_http_ext_proc_failure_mode_allowed{job="envoy"} 7x60`},
	"FirsttokenServiceUnhealthyForEnvoy": {`envoy_cluster_membership_healthy{job="envoy", envoy_cluster_name="firsttoken"} 0x60`, `envoy_cluster_membership_healthy{job="envoy", envoy_cluster_name="firsttoken"} 1x60`},
	"FirsttokenSwitchedOff":              {`firsttoken_choosing 0x60`, `firsttoken_choosing 1x60`},
	"FirsttokenLateForEnvoy":             {`envoy_http_ext_proc_message_timeouts{job="envoy"} 0+1x60`, `envoy_http_ext_proc_message_timeouts{job="envoy"} 3x60`},
	"FirsttokenNoEndpointReady": {
		"firsttoken_choosing 1x60\nfirsttoken_endpoint_ready{endpoint=\"a\"} 0x60\nfirsttoken_endpoint_ready{endpoint=\"b\"} 0x60",
		// A headless service without a ready pod has no endpoints at all.
		"firsttoken_choosing{instance=\"x\"} 1x60\nfirsttoken_choosing{instance=\"y\"} 1x60\nfirsttoken_endpoint_ready{instance=\"y\", endpoint=\"a\"} 1x60",
		"firsttoken_choosing 0x60",
		"firsttoken_choosing 1x60\nfirsttoken_endpoint_ready{endpoint=\"a\"} 0x60\nfirsttoken_endpoint_ready{endpoint=\"b\"} 1x60",
	},
	"FirsttokenEndpointNotReady": {`firsttoken_endpoint_ready{endpoint="a"} 0x60`, `firsttoken_endpoint_ready{endpoint="a"} 1x60`},
	"FirsttokenEndpointHangs":    {`firsttoken_endpoint_suspended{endpoint="a"} 1x60`, `firsttoken_endpoint_suspended{endpoint="a"} 0x60`},
	"FirsttokenRescuesExhausted": {`firsttoken_rescues_total{outcome="exhausted"} 0+1x60`, `firsttoken_rescues_total{outcome="answered"} 0+1x60`},
	"FirsttokenRefuses":          {`firsttoken_immediate_responses_total{status="503"} 0+1x60`, `firsttoken_immediate_responses_total{status="404"} 0+1x60`},
	"FirsttokenDecisionsLate": {
		"firsttoken_fallbacks_total{cause=\"deadline\"} 0+2x60\nfirsttoken_decisions_total{reason=\"cached\"} 0+100x60",
		"firsttoken_fallbacks_total{cause=\"deadline\"} 0+2x60\nfirsttoken_decisions_total{reason=\"cached\"} 0+1000x60",
	},
	"FirsttokenDecisionsSlow": {
		"firsttoken_decision_stage_seconds_bucket{stage=\"encode\", le=\"0.1\"} 0+1x60\nfirsttoken_decision_stage_seconds_bucket{stage=\"encode\", le=\"1\"} 0+100x60\nfirsttoken_decision_stage_seconds_bucket{stage=\"encode\", le=\"+Inf\"} 0+100x60",
		"firsttoken_decision_stage_seconds_bucket{stage=\"encode\", le=\"0.1\"} 0+100x60\nfirsttoken_decision_stage_seconds_bucket{stage=\"encode\", le=\"+Inf\"} 0+100x60",
	},
	"FirsttokenPromptsGuessed": {
		"firsttoken_prompts_total{source=\"estimated\"} 0+10x60\nfirsttoken_prompts_total{source=\"native\"} 0+90x60",
		"firsttoken_prompts_total{source=\"estimated\"} 0+1x60\nfirsttoken_prompts_total{source=\"native\"} 0+90x60",
	},
	"FirsttokenTokenIDsDiffer":      {`firsttoken_prompt_ids_differ{model="m"} 1x60`, `firsttoken_prompt_ids_differ{model="m"} 0x60`},
	"FirsttokenCachesUnknown":       {`firsttoken_endpoint_findings{endpoint="a"} 1x60`, `firsttoken_endpoint_findings{endpoint="a"} 0x60`},
	"FirsttokenLMCacheWorkerSilent": {`firsttoken_lmcache_silent_workers 1x60`, `firsttoken_lmcache_silent_workers 0x60`},
	"FirsttokenKVEventsLost":        {`firsttoken_kv_events_cleared_total{endpoint="a", reason="gap"} 0+1x60`, `firsttoken_kv_events_cleared_total{endpoint="a", reason="restart"} 0+1x60`},
	"FirsttokenAllToOneEndpoint": {
		"firsttoken_endpoint_chosen_total{endpoint=\"a\"} 0+100x60\nfirsttoken_endpoint_chosen_total{endpoint=\"b\"} 0+1x60\nfirsttoken_endpoint_ready{endpoint=\"a\"} 1x60\nfirsttoken_endpoint_ready{endpoint=\"b\"} 1x60",
		"firsttoken_endpoint_chosen_total{endpoint=\"a\"} 0+100x60\nfirsttoken_endpoint_chosen_total{endpoint=\"b\"} 0+1x60\nfirsttoken_endpoint_ready{endpoint=\"a\"} 1x60\nfirsttoken_endpoint_ready{endpoint=\"b\"} 0x60",
	},
	"FirsttokenEstimateOff": {
		"firsttoken_ttft_estimate_error_ratio_bucket{model=\"m\", le=\"0.5\"} 0+1x60\nfirsttoken_ttft_estimate_error_ratio_bucket{model=\"m\", le=\"1\"} 0+100x60\nfirsttoken_ttft_estimate_error_ratio_bucket{model=\"m\", le=\"+Inf\"} 0+100x60",
		"firsttoken_ttft_estimate_error_ratio_bucket{model=\"m\", le=\"0.2\"} 0+100x60\nfirsttoken_ttft_estimate_error_ratio_bucket{model=\"m\", le=\"+Inf\"} 0+100x60",
	},
	"FirsttokenBookingsLost": {
		"firsttoken_bookings_expired_total{state=\"queued\"} 0+1x60\nfirsttoken_decisions_total{reason=\"idle\"} 0+100x60",
		"firsttoken_bookings_expired_total{state=\"decoding\"} 0+1x60\nfirsttoken_decisions_total{reason=\"idle\"} 0+100x60",
	},
	"FirsttokenConfigRefused":          {`firsttoken_config_last_reload_successful 0x60`, `firsttoken_config_last_reload_successful 1x60`},
	"FirsttokenCertificateEnds":        {`firsttoken_tls_certificate_expiry_timestamp_seconds{port="server"} 86400x60`, `firsttoken_tls_certificate_expiry_timestamp_seconds{port="server"} 8640000x60`},
	"FirsttokenCertificateFilesBroken": {`firsttoken_tls_files_good{port="server"} 0x60`, `firsttoken_tls_files_good{port="server"} 1x60`},
	"FirsttokenXDSRefused":             {`firsttoken_xds_answers_total{kind="routes", result="rejected"} 0+1x60`, `firsttoken_xds_answers_total{kind="routes", result="accepted"} 0+1x60`},
	"FirsttokenStateNotWritten":        {`firsttoken_state_writes_total{result="error"} 0+1x60`, `firsttoken_state_writes_total{result="ok"} 0+1x60`},
}

// Each alert holds where it should, and not where it should not.
func TestRulesFire(t *testing.T) {
	rules := readRules(t)
	for name := range examples {
		if _, ok := rules[name]; !ok {
			t.Errorf("there are examples of %s, which is no alert", name)
		}
	}
	for name, rule := range rules {
		example, ok := examples[name]
		if !ok {
			t.Errorf("%s has no examples", name)
			continue
		}
		for i, series := range example {
			if got, want := holds(t, rule.Expr, series), i < len(example)-1; got != want {
				t.Errorf("%s: holds %t, want %t, for\n%s", name, got, want, series)
			}
		}
	}
}

// holds reports whether the expression has a value half an hour into the series.
func holds(t *testing.T, expr, series string) bool {
	t.Helper()
	storage := promqltest.LoadedStorage(t, "load 1m\n  "+strings.ReplaceAll(series, "\n", "\n  "))
	engine := promqltest.NewTestEngine(t, false, 0, 10_000)
	query, err := engine.NewInstantQuery(t.Context(), storage, nil, expr, time.Unix(0, 0).Add(30*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	defer query.Close()
	vector, err := query.Exec(t.Context()).Vector()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return len(vector) > 0
}
