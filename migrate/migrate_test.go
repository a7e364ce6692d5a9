package migrate_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/firsttoken/firsttoken/migrate"
)

var update = flag.Bool("update", false, "rewrite the table of flags; read the diff")

// routerFlags are those of the router at a6c01db0, and of pull request #670.
const routerFlags = `host port root-path service-discovery k8s-service-discovery-type static-backends static-models static-aliases static-model-types
static-model-labels static-backend-health-checks static-backend-health-check-interval static-backend-health-check-timeout-seconds
backend-health-check-timeout-seconds k8s-port k8s-namespace k8s-label-selector k8s-watcher-timeout-seconds routing-logic session-key
lmcache-controller-port lmcache-controller-reply-port lmcache-controller-heartbeat-port lmcache-health-check-interval lmcache-worker-timeout
lmcache-instances tokenizer enable-shared-cache kv-aware-threshold prefix-min-match-length prefill-model-labels decode-model-labels
max-instance-failover-reroute-attempts engine-stats-interval request-stats-window log-stats log-stats-interval dynamic-config-yaml dynamic-config-json
callbacks request-rewriter enable-batch-api file-storage-class file-storage-path batch-processor external-providers-config feature-gates
semantic-cache-model semantic-cache-dir semantic-cache-threshold log-level log-format otel-endpoint otel-service-name otel-secure sentry-dsn
sentry-traces-sample-rate sentry-profile-session-sample-rate version`

func TestEveryFlagIsInTheTable(t *testing.T) {
	var names []string
	for _, f := range migrate.Flags() {
		names = append(names, f.Name)
		if f.Text == "" || f.Fate != migrate.Done && f.Fate != migrate.ByHand && f.Fate != migrate.NoEqual {
			t.Errorf("--%s: %q: %q", f.Name, f.Fate, f.Text)
		}
	}
	want := strings.Fields(routerFlags)
	slices.Sort(names)
	slices.Sort(want)
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("(-router +table)\n%s", diff)
	}
}

const begin, end = "<!-- flags, from the code -->\n", "<!-- end of flags -->\n"

// The page for users has the table that the code goes by.
func TestPageHasTheTable(t *testing.T) {
	const page = "../docs/from-production-stack.md"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", page)
	}
	var b strings.Builder
	b.WriteString("| flag | | what becomes of it |\n|---|---|---|\n")
	for _, f := range migrate.Flags() {
		fmt.Fprintf(&b, "| `--%s` | %s | %s |\n", f.Name, f.Fate, f.Text)
	}
	want := before + begin + b.String() + end + after
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("run go test ./migrate -update (-code +page)\n%s", diff)
	}
}

const static = "--service-discovery static --static-backends http://a:1,http://b:2/ --routing-logic roundrobin "

func TestArguments(t *testing.T) {
	const answers = "server: {answers: [/v1/models, /engines, /health, /version]}\n"
	for _, tt := range []struct {
		name, line, dynamic string
		want                string // YAML
		notes               []string
	}{
		{"least", "python3 -m vllm_router.app " + static, "", answers + "endpoints: [{address: 'http://a:1'}, {address: 'http://b:2'}]\nscoring: {policy: roundrobin}\nlmcache: {enabled: false}\n", nil},
		{
			"models, aliases, labels",
			static + "--static-models m,n --static-aliases fast:m,x:org/n:1 --static-model-labels p,d --prefill-model-labels p --decode-model-labels d", "",
			answers + "aliases: {fast: m, x: 'org/n:1'}\nendpoints: [{address: 'http://a:1', models: [m], role: prefill}, {address: 'http://b:2', models: [n], role: decode}]\nscoring: {policy: roundrobin}\nlmcache: {enabled: false}\n",
			nil,
		},
		{
			"one backend of two models", "--service-discovery=static --static-backends=http://a:1,http://a:1 --static-models=m,n --routing-logic=roundrobin", "",
			answers + "endpoints: [{address: 'http://a:1', models: [m, n]}]\nscoring: {policy: roundrobin}\nlmcache: {enabled: false}\n", nil,
		},
		{
			"session, abbreviated", "--service-disc static --static-backends http://a:1 --routing session --session-key x-user-id --log-level warning --log-format text", "",
			"server: {answers: [/v1/models, /engines, /health, /version], session_key: x-user-id}\nendpoints: [{address: 'http://a:1'}]\nscoring: {policy: session}\nlmcache: {enabled: false}\nlog: {level: warn, format: text}\n",
			[]string{"--routing-logic: by hand: ttft weighs", "--session-key: done: "},
		},
		{
			"kvaware", static[:len(static)-len("roundrobin ")] + "kvaware --lmcache-controller-port 9100 --lmcache-instances i,j --kv-aware-threshold 50 --lmcache-worker-timeout 12 --tokenizer /t --static-models m,m", "",
			answers + "endpoints: [{address: 'http://a:1', models: [m], lmcache: {instance: i}}, {address: 'http://b:2', models: [m], lmcache: {instance: j}}]\n" +
				"scoring: {policy: kvaware, kvaware_threshold: 50}\nlmcache: {controller: {pull: '*:9100', heartbeat: '', worker_timeout: 12s}}\nprompt: {models: [{name: m, tokenizer: /t}]}\n", nil,
		},
		{
			"ttft with defaults", static[:len(static)-len("roundrobin ")] + "ttft --enable-shared-cache", "",
			answers + "endpoints: [{address: 'http://a:1'}, {address: 'http://b:2'}]\nscoring: {policy: ttft}\nlmcache: {shared_cache: true, controller: {pull: '*:9000', heartbeat: ''}}\n",
			[]string{"--enable-shared-cache: done: with ttft, lmcache.shared_cache", "--lmcache-controller-reply-port: by hand: is not given, and the router then opens none; here it stays open at *:8400"},
		},
		{
			"shared cache without ttft", static + "--enable-shared-cache --lmcache-controller-port 9000 --lmcache-controller-reply-port 9001", "",
			answers + "endpoints: [{address: 'http://a:1'}, {address: 'http://b:2'}]\nscoring: {policy: roundrobin}\nlmcache: {controller: {pull: '*:9000', reply: '*:9001', heartbeat: ''}}\n",
			[]string{"--enable-shared-cache: no equal: the router heeds it with", "--lmcache-controller-reply-port: done: "},
		},
		{
			"numbers", static[:len(static)-len("roundrobin ")] + "prefixaware --prefix-min-match-length 130 --static-backend-health-check-interval 2.5 --backend-health-check-timeout-seconds 4 --max-instance-failover-reroute-attempts 5", "",
			"server: {answers: [/v1/models, /engines, /health, /version], fallbacks: 2}\nendpoints: [{address: 'http://a:1'}, {address: 'http://b:2'}]\n" +
				"scoring: {policy: prefixaware, prefixaware_min_match: 33}\nlmcache: {enabled: false}\ndiscovery: {probe_interval: 2.5s, probe_timeout: 4s}\n",
			[]string{"--max-instance-failover-reroute-attempts: by hand: 5 tries more were asked for; server.fallbacks names the next best 2, which is the most, and firsttoken envoy bootstrap prints num_retries: 2: write num_retries: 5 "},
		},
		{
			"no tries more", static + "--max-instance-failover-reroute-attempts 0", "",
			"server: {answers: [/v1/models, /engines, /health, /version], fallbacks: 0}\nendpoints: [{address: 'http://a:1'}, {address: 'http://b:2'}]\nscoring: {policy: roundrobin}\nlmcache: {enabled: false}\n",
			[]string{"--max-instance-failover-reroute-attempts: by hand: 0 tries more were asked for; server.fallbacks is 0, but firsttoken envoy bootstrap prints num_retries: 2: write num_retries: 0 "},
		},
		{
			"two tries more", static + "--max-instance-failover-reroute-attempts 2", "",
			"server: {answers: [/v1/models, /engines, /health, /version], fallbacks: 2}\nendpoints: [{address: 'http://a:1'}, {address: 'http://b:2'}]\nscoring: {policy: roundrobin}\nlmcache: {enabled: false}\n",
			[]string{"--max-instance-failover-reroute-attempts: done: "},
		},
		{
			"tracing", static + "--otel-endpoint http://c:4317 --otel-service-name r --otel-secure", "",
			answers + "endpoints: [{address: 'http://a:1'}, {address: 'http://b:2'}]\nscoring: {policy: roundrobin}\nlmcache: {enabled: false}\ntracing: {endpoint: 'c:4317', service_name: r, tls: true}\n", nil,
		},
		{
			"pods", "--service-discovery k8s --k8s-namespace llm --k8s-port 9 --k8s-label-selector app=x --routing-logic roundrobin", "",
			answers + "endpoints: [{address: 'http://engines.llm.svc:9'}]\nscoring: {policy: roundrobin}\nlmcache: {enabled: false}\n",
			[]string{"--service-discovery: by hand: ", "--k8s-label-selector: by hand: "},
		},
		{
			"pods, with a tokenizer", "--service-discovery k8s --k8s-label-selector app=vllm --routing-logic ttft --tokenizer Qwen/Qwen3-8B", "",
			answers + "endpoints: [{address: 'http://engines.default.svc:8000'}]\nscoring: {policy: ttft}\nlmcache: {controller: {pull: '*:9000', heartbeat: ''}}\n",
			[]string{"--tokenizer: by hand: prompt.models: [{name: MODEL, tokenizer: Qwen/Qwen3-8B}]"},
		},
		{
			"split requests", static[:len(static)-len("roundrobin ")] + "disaggregated_prefill", "",
			answers + "endpoints: [{address: 'http://a:1'}, {address: 'http://b:2'}]\nlmcache: {enabled: false}\n",
			[]string{"--routing-logic: no equal: requests are not split"},
		},
		{
			"dynamic YAML", "--port 8001 --routing-logic roundrobin",
			"service_discovery: static\nrouting_logic: session\nsession_key: x-user-id\ncallbacks: a.b\nstatic_model_labels: null\nstatic_backend_health_checks: false\n" +
				"static_models:\n  m: {static_backends: ['http://a:1', 'http://b:2'], static_model_type: chat}\n  n: {static_backends: ['http://c:3']}\nstatic_aliases: {fast: m}\n",
			"server: {answers: [/v1/models, /engines, /health, /version], session_key: x-user-id}\naliases: {fast: m}\n" +
				"endpoints: [{address: 'http://a:1', models: [m]}, {address: 'http://b:2', models: [m]}, {address: 'http://c:3', models: [n]}]\nscoring: {policy: roundrobin}\nlmcache: {enabled: false}\n",
			[]string{"--port: by hand: ", "--callbacks: no equal: "},
		},
		{
			"dynamic JSON", "", `{"service_discovery":"static","routing_logic":"roundrobin","static_backends":"http://a:1","static_models":"m","static_aliases":"fast:m"}`,
			answers + "aliases: {fast: m}\nendpoints: [{address: 'http://a:1', models: [m]}]\nscoring: {policy: roundrobin}\nlmcache: {enabled: false}\n", nil,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args, err := migrate.Words(tt.line)
			if err != nil {
				t.Fatal(err)
			}
			got, err := migrate.Arguments(args, []byte(tt.dynamic))
			if err != nil {
				t.Fatal(err)
			}
			var a, b any
			if err := yaml.Unmarshal([]byte(tt.want), &a); err != nil {
				t.Fatal(err)
			}
			if err := yaml.Unmarshal(got.Config, &b); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(a, b); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			var notes []string
			for _, n := range got.Notes {
				notes = append(notes, n.Flag+": "+string(n.Fate)+": "+n.Text)
			}
			if done := "--tokenizer: done"; tt.name == "pods, with a tokenizer" && slices.ContainsFunc(notes, func(n string) bool { return strings.HasPrefix(n, done) }) {
				t.Error("what is to be done by hand is said to be done")
			}
			for _, want := range tt.notes {
				if !slices.ContainsFunc(notes, func(n string) bool { return strings.HasPrefix(n, want) }) {
					t.Errorf("no note %q in\n%s", want, strings.Join(notes, "\n"))
				}
			}
			// What has no equal is not called done as well.
			for _, n := range got.Notes {
				if n.Fate == migrate.NoEqual && slices.ContainsFunc(got.Notes, func(o migrate.Note) bool { return o.Flag == n.Flag && o != n }) {
					t.Errorf("%s has no equal, and more is said of it in\n%s", n.Flag, strings.Join(notes, "\n"))
				}
			}
		})
	}
}

func TestFaults(t *testing.T) {
	for _, tt := range []struct{ line, dynamic, want string }{
		{"", "", "--routing-logic: is missing"},
		{"--routing-logic roundrobin", "", "--service-discovery: is missing"},
		{"--service-discovery static --routing-logic roundrobin", "", "--static-backends: is missing"},
		{static + "--static-modls m", "", "--static-modls: the router has no such flag; is it --static-models?"},
		{static + "--static-model m", "", "--static-model: could be --static-models or --static-model-types"},
		{static + "--session-key", "", "--session-key: its value is missing"},
		{static + "--session-key --log-stats", "", "--session-key: its value is missing"},
		{static + "--log-stats=1", "", "--log-stats: takes no value"},
		{static + "stray", "", `"stray": is no flag`},
		{static + "--static-models m", "", "--static-models: has 1 elements for 2 of --static-backends"},
		{static + "--lmcache-instances m,n,o", "", "--lmcache-instances: has 3 elements for 2"},
		{static + "--static-aliases m", "", `--static-aliases: "m" is no alias:model`},
		{static + "--lmcache-controller-port x", "", `--lmcache-controller-port: "x" is no port`},
		{static + "--static-backend-health-check-interval 0", "", `"0" is no number of seconds above 0`},
		{static + "--tokenizer t", "", "--tokenizer: of which model is not said"},
		{static + "--log-level loud", "", `--log-level: "loud" is none of`},
		{"--service-discovery static --static-backends a --routing-logic roundrobin", "", `"a" is no base URL`},
		{"--service-discovery external-only --routing-logic roundrobin", "", "external-only has no engines"},
		{"--service-discovery consul --routing-logic roundrobin", "", `"consul" is none of`},
		{"--service-discovery static --static-backends http://a:1 --routing-logic best", "", `--routing-logic: "best" is none of`},
		{"--service-discovery static --static-backends http://a:1 --routing-logic session", "", "--session-key: is missing"},
		{static, "rooting_logic: x", "dynamic configuration: rooting_logic: the router has no such key"},
		{static, "{", "dynamic configuration: yaml"},
	} {
		args, err := migrate.Words(tt.line)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := migrate.Arguments(args, []byte(tt.dynamic)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q, %q: %v %s, want %q", tt.line, tt.dynamic, err, got.Config, tt.want)
		}
	}
}

func TestWords(t *testing.T) {
	for _, tt := range []struct {
		line string
		want []string
	}{
		{"", nil},
		{" a  b\tc\n", []string{"a", "b", "c"}},
		{`a 'b c' "d 'e" f"g"'h'`, []string{"a", "b c", "d 'e", "fgh"}},
		{"a \\\n  b", []string{"a", "b"}},
		{`a\ b "c\"d" "e\f" 'g\h' ""`, []string{"a b", `c"d`, `e\f`, `g\h`, ""}},
	} {
		got, err := migrate.Words(tt.line)
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q, %v, want %q", tt.line, got, err, tt.want)
		}
	}
	for _, line := range []string{"'a", `a "b`} {
		if got, err := migrate.Words(line); err == nil {
			t.Errorf("%q: %q", line, got)
		}
	}
}

// Whatever somebody pastes, there is an answer, and what is answered is YAML.
func FuzzArguments(f *testing.F) {
	f.Add(static+"--static-models m,n", "static_models: {m: {static_backends: [a]}}")
	f.Add("--service-discovery k8s --routing-logic 'kvaware'", "session_key: 1")
	f.Fuzz(func(t *testing.T, line, dynamic string) {
		args, err := migrate.Words(line)
		if err != nil {
			return
		}
		got, err := migrate.Arguments(args, []byte(dynamic))
		if err != nil {
			return
		}
		var config map[string]any
		if err := yaml.Unmarshal(got.Config, &config); err != nil || len(config) == 0 {
			t.Errorf("%q, %q: %v\n%s", line, dynamic, err, got.Config)
		}
	})
}
