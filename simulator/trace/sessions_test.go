package trace_test

import (
	"testing"

	"github.com/firsttoken/firsttoken/simulator/trace"
)

// Who asks is guessed by what sets prompts apart, not by what all begin with.
func TestNameSessions(t *testing.T) {
	const system, template = 1, 2
	var all []trace.Request
	add := func(session string, blocks ...uint64) {
		all = append(all, trace.Request{Session: session, Blocks: blocks})
	}
	for user := range uint64(30) {
		for round := range uint64(3) {
			chain := []uint64{system, template}
			for i := range round + 1 {
				chain = append(chain, 1000*(user+1)+i)
			}
			add("", chain...)
		}
	}
	add("", system, template)
	add("")
	add("told", 5000, 5001)
	if named := trace.NameSessions(all); named != 90 {
		t.Errorf("%d requests were named, want 90", named)
	}
	users := make(map[string]int)
	for i := range 90 {
		users[all[i].Session]++
		if all[i].Session == "" || all[i].Session != all[i/3*3].Session {
			t.Errorf("request %d of user %d has session %q", i%3, i/3, all[i].Session)
		}
	}
	if len(users) != 30 {
		t.Errorf("%d sessions, want 30", len(users))
	}
	if all[90].Session != "" || all[91].Session != "" || all[92].Session != "told" {
		t.Errorf("sessions %q, %q, %q: what is common tells nothing, and what was told stays", all[90].Session, all[91].Session, all[92].Session)
	}
}
