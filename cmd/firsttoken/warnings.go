package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/scoring"
)

// warnings are what a good configuration is probably not meant to say, each
// with the key, the value and what to do. The service starts all the same.
func (c config) warnings() []string {
	var list []string
	warn := func(key, format string, args ...any) {
		list = append(list, key+": "+fmt.Sprintf(format, args...))
	}
	switch {
	case c.Scoring.KVRoom && !c.Counters.Enabled && c.Scoring.Policy == scoring.PolicyTTFT:
		warn("scoring.kv_room", "is true, but counters.enabled is false: what an engine's KV memory holds is told by its counters, so room is never looked at; enable them, or write false here")
	case c.Scoring.FitPerKind && !c.Scoring.KVRoom:
		warn("scoring.fit_per_kind", "is true, but scoring.kv_room is false: without it one fit serves all kinds, which is better then; write true there, or false here")
	case c.Scoring.FitPerKind && !slices.ContainsFunc(c.Endpoints, func(e discovery.Entry) bool { return e.Kind != "" }):
		warn("scoring.fit_per_kind", "is true, but no endpoint has a kind, so all are of one; label them by endpoints[].kind")
	}
	if key := c.bySession(); key != "" && c.Server.SessionKey == "" {
		warn(key, "is %s, but server.session_key is empty: no request has a session, so all go where fewest were sent; name the header there, such as x-user-id", scoring.PolicySession)
	}
	if len(c.Endpoints) > 0 && !slices.ContainsFunc(c.Endpoints, func(e discovery.Entry) bool { return e.RoleOf() == scoring.RoleBoth }) {
		warn("endpoints", "each has the role prefill or decode, so none takes a whole request and all are refused; leave role out where an engine does both")
	}
	for _, alias := range c.servedNowhere() {
		warn("aliases."+alias, "stands for %q, which no endpoint serves: such requests are answered 404; write a name of endpoints[].models", c.Aliases[alias])
	}
	for i, m := range c.Prompt.Models {
		// No fault: a configuration may be checked on another machine.
		if m.Tokenizer != "" && !onHub(m.Tokenizer) && !holdsTokenizer(m.Tokenizer) {
			warn(fmt.Sprintf("prompt.models[%d].tokenizer", i), "there is no tokenizer.json in %s on this machine; without it the engines are asked for the tokens of %s, or their number is guessed", m.Tokenizer, m.Name)
		}
	}
	if t := c.LMCache.Coordinator.InstanceTimeout; c.LMCache.Coordinator.Listen != "" && t < 2*serverHeartbeat {
		warn("lmcache.coordinator.instance_timeout", "is %s, but lmcache servers send a heartbeat every %s: one that is late takes a healthy server's cache off the books; write 15s or more", t, serverHeartbeat)
	}
	if ask := c.LMCache.Ask; (ask.Coordinator != "" || ask.Controller != "") && ask.Deadline > c.Server.DecisionDeadline {
		warn("lmcache.ask.deadline", "is %s, but server.decision_deadline ends every question after %s; write less here, or more there", ask.Deadline, c.Server.DecisionDeadline)
	}
	return list
}

// bySession is the key that chooses by session; empty: none does.
func (c config) bySession() string {
	if c.Scoring.Policy == scoring.PolicySession {
		return "scoring.policy"
	}
	own := c.Scoring.ModelPolicies()
	for _, model := range slices.Sorted(maps.Keys(own)) {
		if own[model] == scoring.PolicySession {
			return "scoring.models." + model + ".policy"
		}
	}
	return ""
}

// serverHeartbeat is how often an lmcache server tells its coordinator that it
// lives.
const serverHeartbeat = 5 * time.Second

// holdsTokenizer reports whether a folder has any of the files that a tokenizer
// is read from.
func holdsTokenizer(folder string) bool {
	for _, name := range []string{"tokenizer.json", "tokenizer.json.gz", "tekken.json"} {
		if _, err := os.Stat(filepath.Join(folder, name)); err == nil {
			return true
		}
	}
	return false
}
