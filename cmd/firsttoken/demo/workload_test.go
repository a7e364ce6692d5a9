package demo

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/bench"
)

func TestWorkloadIsTheSameForTheSameSeed(t *testing.T) {
	a, b := newWorkload(7), newWorkload(7)
	if diff := cmp.Diff(a, b, cmp.AllowUnexported(workload{}, conversation{}, turn{})); diff != "" {
		t.Error(diff)
	}
	if other := newWorkload(8); other.chats[0].system == a.chats[0].system {
		t.Error("seeds 7 and 8 give the same text")
	}
}

func TestConversationsShareOnlyTheSystemPrompt(t *testing.T) {
	w := newWorkload(1)
	for i, c := range w.chats {
		if c.system != w.first.system {
			t.Errorf("%s: other system prompt", c.name)
		}
		for _, d := range w.chats[:i] {
			if c.turns[0].question[:100] == d.turns[0].question[:100] {
				t.Errorf("%s and %s are about the same document", c.name, d.name)
			}
		}
	}
	for _, b := range w.burst {
		if b.turns[0].question[:5000] != w.first.turns[0].question[:5000] {
			t.Errorf("%s is about another document than %s", b.name, w.first.name)
		}
	}
}

func TestConversationGrowsByQuestionAndAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := conversation{name: "c", system: "s", turns: []turn{{thinkMin, "q1"}, {thinkMax, "q2"}}}
		var asked []string
		err := c.hold(t.Context(), func(_ context.Context, _ string, _ int, messages []bench.Message) (string, error) {
			var all []string
			for _, m := range messages {
				all = append(all, m.Role+":"+m.Content)
			}
			asked = append(asked, strings.Join(all, " "))
			return "a", nil
		})
		if err != nil {
			t.Fatal(err)
		}
		want := []string{"system:s user:q1", "system:s user:q1 assistant:a user:q2"}
		if diff := cmp.Diff(want, asked); diff != "" {
			t.Error(diff)
		}
	})
}

func TestConversationEndsAtTheFirstError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		boom := errors.New("boom")
		calls := 0
		err := newWorkload(1).chats[0].hold(t.Context(), func(context.Context, string, int, []bench.Message) (string, error) {
			calls++
			return "", boom
		})
		if !errors.Is(err, boom) || calls != 1 {
			t.Errorf("error %v after %d calls, want boom after 1", err, calls)
		}
	})
}

func TestConversationEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := newWorkload(1).chats[0].hold(ctx, func(context.Context, string, int, []bench.Message) (string, error) {
		t.Error("asked")
		return "", nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}
