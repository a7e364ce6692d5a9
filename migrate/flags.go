package migrate

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/firsttoken/firsttoken/spelling"
)

// Fate says what becomes of a flag.
type Fate string

// The fates.
const (
	// Done: the configuration says the same.
	Done Fate = "done"
	// ByHand: something is left to do that is not in the configuration.
	ByHand Fate = "by hand"
	// NoEqual: there is nothing like it here, or nothing to say.
	NoEqual Fate = "no equal"
)

// Flag is one flag of the router.
type Flag struct {
	// Name is without dashes.
	Name string
	Fate Fate
	// Text says what it becomes, what to do, or why there is no equal.
	Text string
	// single: it takes no value.
	single bool
	// apply writes its value into the plan; nil: there is nothing to write.
	apply func(p *plan, value string) error
}

// Flags are all flags of the router, in the order of its help.
func Flags() []Flag { return slices.Clone(flags) }

var flags = []Flag{
	{Name: "host", Fate: ByHand, Text: "clients reach Envoy: firsttoken envoy bootstrap --envoy-listen HOST:PORT"},
	{Name: "port", Fate: ByHand, Text: "clients reach Envoy: firsttoken envoy bootstrap --envoy-listen HOST:PORT"},
	{Name: "root-path", Fate: ByHand, Text: "match the prefix in Envoy's route, with prefix_rewrite: /"},
	{Name: "service-discovery", Fate: Done, Text: "endpoints; host names in them are resolved again and again, SRV records too", apply: (*plan).discovery},
	{Name: "k8s-service-discovery-type", Fate: ByHand, Text: "engines are not found by label yet: name their headless service in endpoints[].address"},
	{Name: "static-backends", Fate: Done, Text: "endpoints[].address", apply: list(func(p *plan) *[]string { return &p.backends })},
	{Name: "static-models", Fate: Done, Text: "endpoints[].models; where they are left out the engines are asked", apply: list(func(p *plan) *[]string { return &p.models })},
	{Name: "static-aliases", Fate: Done, Text: "aliases", apply: (*plan).aliases},
	{Name: "static-model-types", Fate: NoEqual, Text: "health is asked by GET /health, which costs an engine nothing, whatever its model does"},
	{Name: "static-model-labels", Fate: Done, Text: "endpoints[].role, where prefill-model-labels or decode-model-labels names the label; else nothing goes by it", apply: list(func(p *plan) *[]string { return &p.labels })},
	{Name: "static-backend-health-checks", Fate: Done, Text: "always on, by GET /health: discovery", single: true},
	{Name: "static-backend-health-check-interval", Fate: Done, Text: "discovery.probe_interval", apply: seconds("discovery.probe_interval")},
	{Name: "static-backend-health-check-timeout-seconds", Fate: Done, Text: "discovery.probe_timeout", apply: seconds("discovery.probe_timeout")},
	{Name: "backend-health-check-timeout-seconds", Fate: Done, Text: "discovery.probe_timeout", apply: seconds("discovery.probe_timeout")},
	{Name: "k8s-port", Fate: ByHand, Text: "the port in endpoints[].address", apply: text(func(p *plan) *string { return &p.k8sPort })},
	{Name: "k8s-namespace", Fate: ByHand, Text: "the namespace in endpoints[].address, NAME.NAMESPACE.svc", apply: text(func(p *plan) *string { return &p.k8sNamespace })},
	{Name: "k8s-label-selector", Fate: ByHand, Text: "engines are not found by label yet: a headless service with this selector, named in endpoints[].address"},
	{Name: "k8s-watcher-timeout-seconds", Fate: NoEqual, Text: "nothing is watched in Kubernetes yet; names are resolved every discovery.resolve_interval"},
	{Name: "routing-logic", Fate: Done, Text: "scoring.policy", apply: text(func(p *plan) *string { return &p.routing })},
	{Name: "session-key", Fate: Done, Text: "server.session_key: the header of that name, else the body's field", apply: set("server.session_key")},
	{Name: "lmcache-controller-port", Fate: Done, Text: "lmcache.controller.pull; engines keep their controller_pull_url if this service takes the router's place", apply: socket("lmcache.controller.pull")},
	{Name: "lmcache-controller-reply-port", Fate: Done, Text: "lmcache.controller.reply; left out, it is *:8400, where the router has none", apply: socket("lmcache.controller.reply")},
	{Name: "lmcache-controller-heartbeat-port", Fate: Done, Text: "lmcache.controller.heartbeat", apply: socket("lmcache.controller.heartbeat")},
	{Name: "lmcache-health-check-interval", Fate: Done, Text: "lmcache.controller.check_interval", apply: seconds("lmcache.controller.check_interval")},
	{Name: "lmcache-worker-timeout", Fate: Done, Text: "lmcache.controller.worker_timeout", apply: seconds("lmcache.controller.worker_timeout")},
	{Name: "lmcache-instances", Fate: Done, Text: "endpoints[].lmcache.instance", apply: list(func(p *plan) *[]string { return &p.instances })},
	{Name: "tokenizer", Fate: Done, Text: "prompt.models[].tokenizer, of the first model; models without one are encoded by their engines", apply: text(func(p *plan) *string { return &p.tokenizer })},
	{Name: "enable-shared-cache", Fate: Done, Text: "with ttft, lmcache.shared_cache: what any instance holds counts for all engines of its model and chunk keys (the router: for all engines); lmcache.transfer_seconds_per_token.p2p says what fetching costs, 0 as in the router", single: true, apply: func(p *plan, _ string) error {
		p.sharedCache = true
		return nil
	}},
	{Name: "kv-aware-threshold", Fate: Done, Text: "scoring.kvaware_threshold", apply: number("scoring.kvaware_threshold", 1)},
	{Name: "prefix-min-match-length", Fate: Done, Text: "scoring.prefixaware_min_match, in tokens, of which four characters make one", apply: number("scoring.prefixaware_min_match", charactersPerToken)},
	{Name: "prefill-model-labels", Fate: Done, Text: "endpoints[].role prefill", apply: list(func(p *plan) *[]string { return &p.prefill })},
	{Name: "decode-model-labels", Fate: Done, Text: "endpoints[].role decode", apply: list(func(p *plan) *[]string { return &p.decode })},
	{Name: "max-instance-failover-reroute-attempts", Fate: ByHand, Text: "server.fallbacks names the next best, 2 at most; retry_policy.num_retries of Envoy's route says how often it tries again: 2 in what firsttoken envoy bootstrap prints, whatever server.fallbacks is, so write the number there too", apply: (*plan).fallbacks},
	{Name: "engine-stats-interval", Fate: NoEqual, Text: "engines' counters are read every counters.interval, 2s, all at once: what is decided by them must not be old"},
	{Name: "request-stats-window", Fate: NoEqual, Text: "qps counts the last minute; times are learned from each first token, without a window"},
	{Name: "log-stats", Fate: ByHand, Text: "look at /status and /metrics of the admin port", single: true},
	{Name: "log-stats-interval", Fate: NoEqual, Text: "/status and /metrics of the admin port are of the moment"},
	{Name: "dynamic-config-yaml", Fate: ByHand, Text: "give it to firsttoken migrate --dynamic-config FILE; our own file is followed while the service runs, endpoints and log.level in it"},
	{Name: "dynamic-config-json", Fate: ByHand, Text: "give it to firsttoken migrate --dynamic-config FILE; our own file is followed while the service runs, endpoints and log.level in it"},
	{Name: "callbacks", Fate: NoEqual, Text: "no code of yours runs in the service; Envoy has filters for it (Lua, Wasm, ext_proc)"},
	{Name: "request-rewriter", Fate: NoEqual, Text: "the router knows noop alone; Envoy has filters for it"},
	{Name: "enable-batch-api", Fate: NoEqual, Text: "files and batches are no task of a router", single: true},
	{Name: "file-storage-class", Fate: NoEqual, Text: "files and batches are no task of a router"},
	{Name: "file-storage-path", Fate: NoEqual, Text: "files and batches are no task of a router"},
	{Name: "batch-processor", Fate: NoEqual, Text: "files and batches are no task of a router"},
	{Name: "external-providers-config", Fate: ByHand, Text: "a cluster and a route of their own in Envoy, before the one for engines"},
	{Name: "feature-gates", Fate: NoEqual, Text: "neither semantic cache nor PII detection is here"},
	{Name: "semantic-cache-model", Fate: NoEqual, Text: "there is no semantic cache here"},
	{Name: "semantic-cache-dir", Fate: NoEqual, Text: "there is no semantic cache here"},
	{Name: "semantic-cache-threshold", Fate: NoEqual, Text: "there is no semantic cache here"},
	{Name: "log-level", Fate: Done, Text: "log.level", apply: (*plan).logLevel},
	{Name: "log-format", Fate: Done, Text: "log.format", apply: set("log.format")},
	{Name: "otel-endpoint", Fate: Done, Text: "tracing.endpoint", apply: collector},
	{Name: "otel-service-name", Fate: Done, Text: "tracing.service_name", apply: set("tracing.service_name")},
	{Name: "otel-secure", Fate: Done, Text: "tracing.tls", single: true, apply: func(p *plan, _ string) error {
		p.set("tracing.tls", true)
		return nil
	}},
	{Name: "sentry-dsn", Fate: NoEqual, Text: "faults are logged and counted; there is no Sentry here"},
	{Name: "sentry-traces-sample-rate", Fate: NoEqual, Text: "there is no Sentry here"},
	{Name: "sentry-profile-session-sample-rate", Fate: NoEqual, Text: "there is no Sentry here; /debug/pprof of the admin port has profiles"},
	{Name: "version", Fate: NoEqual, Text: "firsttoken --version", single: true},
}

// charactersPerToken is what English text comes to with the vocabularies of today.
const charactersPerToken = 4

// lookup is the flag of that name, or of which it is the only beginning, as the
// router's own parser takes it.
func lookup(name string) (Flag, error) {
	var begins []Flag
	for _, f := range flags {
		if f.Name == name {
			return f, nil
		}
		if strings.HasPrefix(f.Name, name) {
			begins = append(begins, f)
		}
	}
	switch {
	case len(begins) == 1:
		return begins[0], nil
	case len(begins) > 1:
		return Flag{}, fmt.Errorf("--%s: could be --%s or --%s; write it whole", name, begins[0].Name, begins[1].Name)
	}
	best := flags[0].Name
	for _, f := range flags {
		if spelling.Distance(name, f.Name) < spelling.Distance(name, best) {
			best = f.Name
		}
	}
	return Flag{}, fmt.Errorf("--%s: the router has no such flag; is it --%s?", name, best)
}

func text(where func(*plan) *string) func(*plan, string) error {
	return func(p *plan, value string) error {
		*where(p) = value
		return nil
	}
}

// list is a value with commas in it.
func list(where func(*plan) *[]string) func(*plan, string) error {
	return func(p *plan, value string) error {
		elements := strings.Split(value, ",")
		for i := range elements {
			elements[i] = strings.TrimSpace(elements[i])
		}
		*where(p) = elements
		return nil
	}
}

// collector is a host:port, which the router takes with a scheme too.
func collector(p *plan, value string) error {
	_, address, found := strings.Cut(value, "://")
	if !found {
		address = value
	}
	p.set("tracing.endpoint", strings.TrimRight(address, "/"))
	return nil
}

func set(key string) func(*plan, string) error {
	return func(p *plan, value string) error {
		p.set(key, value)
		return nil
	}
}

// seconds is a number of them.
func seconds(key string) func(*plan, string) error {
	return func(p *plan, value string) error {
		n, err := strconv.ParseFloat(value, 64)
		if err != nil || n <= 0 {
			return fmt.Errorf("%q is no number of seconds above 0", value)
		}
		p.set(key, strconv.FormatFloat(n, 'f', -1, 64)+"s")
		return nil
	}
}

// socket is a port on all interfaces.
func socket(key string) func(*plan, string) error {
	return func(p *plan, value string) error {
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("%q is no port", value)
		}
		p.set(key, "*:"+value)
		return nil
	}
}

// number is a count, of which so many make one of ours.
func number(key string, per int) func(*plan, string) error {
	return func(p *plan, value string) error {
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 {
			return fmt.Errorf("%q is no number", value)
		}
		p.set(key, (n+per-1)/per)
		return nil
	}
}
