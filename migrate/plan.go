package migrate

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Note says what became of one flag that was given.
type Note struct {
	Flag string // with its dashes
	Fate Fate
	Text string
}

// Result is what a router's settings come to.
type Result struct {
	// Config is the service's configuration, as YAML.
	Config []byte
	// Notes are in the order of the flags.
	Notes []Note
}

// plan is what is known so far.
type plan struct {
	config map[string]any
	notes  []Note

	backends, models, labels, instances, prefill, decode []string
	found, routing, tokenizer, k8sPort, k8sNamespace     string
	sharedCache                                          bool
}

// Arguments turns a command line, without or with the program's name before it,
// and the dynamic configuration, YAML or JSON, where there is one; what both say
// is the command line's to decide. The error joins what is wrong with them.
func Arguments(args []string, dynamic []byte) (Result, error) {
	for len(args) > 0 && !strings.HasPrefix(args[0], "--") {
		args = args[1:] // python -m vllm_router.app, vllm-router
	}
	given := make(map[string]string)
	var faults []error
	for i := 0; i < len(args); i++ {
		name, ok := strings.CutPrefix(args[i], "--")
		if !ok {
			faults = append(faults, fmt.Errorf("%q: is no flag; the router takes no other arguments", args[i]))
			continue
		}
		name, value, hasValue := strings.Cut(name, "=")
		f, err := lookup(name)
		switch {
		case err != nil:
			faults = append(faults, err)
			for !hasValue && i+1 < len(args) && !strings.HasPrefix(args[i+1], "--") {
				i++ // its value, probably
			}
			continue
		case f.single && hasValue:
			faults = append(faults, fmt.Errorf("--%s: takes no value", f.Name))
		case !f.single && !hasValue && (i+1 == len(args) || strings.HasPrefix(args[i+1], "--")):
			faults = append(faults, fmt.Errorf("--%s: its value is missing", f.Name))
		case !f.single && !hasValue:
			i++
			value = args[i]
		}
		given[f.Name] = value
	}
	file, err := dynamicFlags(dynamic)
	if err != nil {
		faults = append(faults, err)
	}
	for name, value := range file {
		if _, ok := given[name]; !ok {
			given[name] = value
		}
	}
	p := &plan{config: make(map[string]any), k8sPort: "8000", k8sNamespace: "default"}
	for _, f := range flags {
		value, ok := given[f.Name]
		if !ok {
			continue
		}
		p.note("--"+f.Name, f.Fate, f.Text)
		if f.apply == nil {
			continue
		}
		if err := f.apply(p, value); err != nil {
			faults = append(faults, fmt.Errorf("--%s: %w", f.Name, err))
		}
	}
	faults = append(faults, p.join())
	if err := errors.Join(faults...); err != nil {
		return Result{}, err
	}
	config, err := yaml.Marshal(p.config)
	if err != nil {
		return Result{}, fmt.Errorf("configuration: %w", err)
	}
	return Result{config, p.notes}, nil
}

func (p *plan) note(flag string, fate Fate, text string) {
	p.notes = append(p.notes, Note{flag, fate, text})
}

// instead is a note in place of what was said of the flag so far.
func (p *plan) instead(flag string, fate Fate, text string) {
	p.notes = slices.DeleteFunc(p.notes, func(n Note) bool { return n.Flag == flag })
	p.note(flag, fate, text)
}

// set writes a value below a path of keys with dots between.
func (p *plan) set(path string, value any) {
	keys, at := strings.Split(path, "."), p.config
	for _, key := range keys[:len(keys)-1] {
		below, ok := at[key].(map[string]any)
		if !ok {
			below = make(map[string]any)
			at[key] = below
		}
		at = below
	}
	at[keys[len(keys)-1]] = value
}

// has reports whether a path was set.
func (p *plan) has(path string) bool {
	var at any = p.config
	for key := range strings.SplitSeq(path, ".") {
		below, ok := at.(map[string]any)
		if !ok {
			return false
		}
		if at, ok = below[key]; !ok {
			return false
		}
	}
	return true
}

func (p *plan) discovery(value string) error {
	p.found = value
	switch value {
	case "static":
	case "k8s":
		p.instead("--service-discovery", ByHand, "engines are not found by label yet: write the name of their headless service in place of the one in endpoints, whose addresses are followed")
	case "external-only":
		return errors.New("external-only has no engines to choose between: external providers are clusters and routes of Envoy's own")
	default:
		return fmt.Errorf("%q is none of static, k8s and external-only", value)
	}
	return nil
}

func (p *plan) aliases(value string) error {
	aliases := make(map[string]any)
	for pair := range strings.SplitSeq(value, ",") {
		alias, model, ok := strings.Cut(strings.TrimSpace(pair), ":")
		if !ok || alias == "" || model == "" {
			return fmt.Errorf("%q is no alias:model", pair)
		}
		aliases[alias] = model
	}
	p.config["aliases"] = aliases
	return nil
}

// maxFallbacks is what server.fallbacks takes, and num_retries in the routes that
// firsttoken envoy prints.
const maxFallbacks = 2

func (p *plan) fallbacks(value string) error {
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 {
		return fmt.Errorf("%q is no number", value)
	}
	p.set("server.fallbacks", min(n, maxFallbacks))
	const flag = "--max-instance-failover-reroute-attempts"
	switch {
	case n == maxFallbacks:
		p.instead(flag, Done, "server.fallbacks names the next best 2, and num_retries is 2 in what firsttoken envoy bootstrap prints")
	case n > maxFallbacks:
		p.instead(flag, ByHand, fmt.Sprintf("%d tries more were asked for; server.fallbacks names the next best %d, which is the most, and firsttoken envoy bootstrap prints num_retries: %d: "+
			"write num_retries: %d into the retry_policy of Envoy's route to try on", n, maxFallbacks, maxFallbacks, n))
	default:
		p.instead(flag, ByHand, fmt.Sprintf("%d tries more were asked for; server.fallbacks is %d, but firsttoken envoy bootstrap prints num_retries: %d: "+
			"write num_retries: %d into the retry_policy of Envoy's route, or it tries elsewhere all the same", n, n, maxFallbacks, n))
	}
	return nil
}

func (p *plan) logLevel(value string) error {
	levels := map[string]string{"trace": "debug", "debug": "debug", "info": "info", "warning": "warn", "error": "error", "critical": "error"}
	level, ok := levels[strings.ToLower(value)]
	if !ok {
		return fmt.Errorf("%q is none of %s", value, strings.Join(slices.Sorted(maps.Keys(levels)), ", "))
	}
	p.set("log.level", level)
	return nil
}

// policies are the router's ways to choose, with ours. None: requests are split
// there, which is not done here.
var policies = map[string]string{
	"roundrobin": "roundrobin", "session": "session", "kvaware": "kvaware", "prefixaware": "prefixaware", "loadaware": "loadaware", "ttft": "ttft",
	"disaggregated_prefill": "", "disaggregated_prefill_orchestrated": "",
}

// join makes of all flags together what none says alone.
func (p *plan) join() error {
	faults := []error{p.policy(), p.endpoints()}
	// What clients of the router may ask it.
	p.set("server.answers", []string{"/v1/models", "/engines", "/health", "/version"})
	if p.tokenizer != "" {
		if len(p.models) == 0 && p.found == "k8s" {
			p.notes = slices.DeleteFunc(p.notes, func(n Note) bool { return n.Flag == "--tokenizer" }) // it is not done
			p.note("--tokenizer", ByHand, "prompt.models: [{name: MODEL, tokenizer: "+p.tokenizer+"}]")
		} else if len(p.models) == 0 {
			faults = append(faults, errors.New("--tokenizer: of which model is not said; give --static-models too"))
		} else {
			p.set("prompt.models", []any{map[string]any{"name": p.models[0], "tokenizer": p.tokenizer}})
		}
	}
	return errors.Join(faults...)
}

func (p *plan) policy() error {
	policy, known := policies[p.routing]
	switch {
	case p.routing == "":
		return errors.New("--routing-logic: is missing; the router asks for it too")
	case !known:
		return fmt.Errorf("--routing-logic: %q is none of %s", p.routing, strings.Join(slices.Sorted(maps.Keys(policies)), ", "))
	case policy == "":
		p.instead("--routing-logic", NoEqual, "requests are not split into prefill and decode here: keep the router for these engines; the configuration chooses among engines that do both")
	case policy == "session" && !p.has("server.session_key"):
		return errors.New("--session-key: is missing, and --routing-logic session asks for it")
	default:
		p.set("scoring.policy", policy)
		if policy != "ttft" {
			p.note("--routing-logic", ByHand, "ttft weighs what is cached and what is queued by the time that each takes; try scoring.policy: ttft once this works")
		}
	}
	if p.routing == "kvaware" && !p.has("scoring.kvaware_threshold") {
		p.set("scoring.kvaware_threshold", 2000) // the router's default
	}
	if p.sharedCache {
		if p.routing == "ttft" {
			p.set("lmcache.shared_cache", true)
		} else {
			p.instead("--enable-shared-cache", NoEqual, "the router heeds it with --routing-logic ttft alone; lmcache.shared_cache would hold for every policy and is left false")
		}
	}
	// The router hosts LMCache's controller for the policies that ask it.
	if !slices.Contains([]string{"kvaware", "loadaware", "ttft"}, p.routing) && !p.has("lmcache.controller") {
		p.set("lmcache.enabled", false)
		return nil
	}
	if !p.has("lmcache.controller.pull") {
		p.set("lmcache.controller.pull", "*:9000") // the router's default
	}
	if !p.has("lmcache.controller.heartbeat") {
		p.set("lmcache.controller.heartbeat", "") // likewise
	}
	if !p.has("lmcache.controller.reply") {
		p.note("--lmcache-controller-reply-port", ByHand, "is not given, and the router then opens none; here it stays open at *:8400, lmcache.controller.reply: "+
			"LMCache from 0.3.7 on registers there (controller_reply_url of the engines), older workers use the one port of --lmcache-controller-port")
	}
	return nil
}

func (p *plan) endpoints() error {
	if p.found == "" {
		return errors.New("--service-discovery: is missing; the router asks for it too")
	}
	if p.found == "k8s" {
		p.config["endpoints"] = []any{map[string]any{"address": "http://engines." + p.k8sNamespace + ".svc:" + p.k8sPort}}
		return nil
	}
	var faults []error
	if len(p.backends) == 0 {
		faults = append(faults, errors.New("--static-backends: is missing, and --service-discovery static asks for it"))
	}
	for _, l := range []struct {
		flag string
		list []string
	}{{"static-models", p.models}, {"static-model-labels", p.labels}, {"lmcache-instances", p.instances}} {
		if len(l.list) > 0 && len(l.list) != len(p.backends) {
			faults = append(faults, fmt.Errorf("--%s: has %d elements for %d of --static-backends; the router wants as many, in the same order", l.flag, len(l.list), len(p.backends)))
		}
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	var list []any
	byAddress := make(map[string]map[string]any)
	for i, backend := range p.backends {
		address := strings.TrimRight(backend, "/")
		if u, err := url.Parse(address); err != nil || u.Host == "" {
			faults = append(faults, fmt.Errorf("--static-backends: %q is no base URL such as http://10.0.0.1:8000", backend))
			continue
		}
		entry := byAddress[address]
		if entry == nil {
			entry = map[string]any{"address": address}
			byAddress[address] = entry
			list = append(list, entry)
		}
		if len(p.models) > 0 {
			models, _ := entry["models"].([]string)
			if !slices.Contains(models, p.models[i]) {
				entry["models"] = append(models, p.models[i])
			}
		}
		if len(p.instances) > 0 {
			entry["lmcache"] = map[string]any{"instance": p.instances[i]}
		}
		if len(p.labels) > 0 {
			switch label := p.labels[i]; {
			case slices.Contains(p.prefill, label):
				entry["role"] = "prefill"
			case slices.Contains(p.decode, label):
				entry["role"] = "decode"
			}
		}
	}
	p.config["endpoints"] = list
	return errors.Join(faults...)
}
