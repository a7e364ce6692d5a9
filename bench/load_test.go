package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/simulator/trace"
)

// asked is one request as a server saw it.
type asked struct {
	messages  []Message
	maxTokens int
	ignoreEOS bool
	user      string
	// underWay is how many were being answered, this one included.
	underWay int
}

func (a *asked) prompt() string { return a.messages[len(a.messages)-1].Content }

// fake answers every chat with "answer N", N counting from 1.
type fake struct {
	// hold is called before each answer; nil: nothing waits.
	hold func(asked)

	mu       sync.Mutex // guards the following
	all      []asked
	underWay int
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Messages  []Message `json:"messages"`
		MaxTokens int       `json:"max_tokens"`
		IgnoreEOS bool      `json:"ignore_eos"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	f.mu.Lock()
	f.underWay++
	a := asked{body.Messages, body.MaxTokens, body.IgnoreEOS, r.Header.Get("x-user-id"), f.underWay}
	f.all = append(f.all, a)
	n := len(f.all)
	f.mu.Unlock()
	if f.hold != nil {
		f.hold(a)
	}
	f.mu.Lock()
	f.underWay--
	f.mu.Unlock()
	for _, event := range []string{
		fmt.Sprintf(`{"choices":[{"delta":{"content":"answer %d"}}]}`, n), `{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2}}`, "[DONE]",
	} {
		_, _ = io.WriteString(w, "data: "+event+"\n\n")
	}
}

// play lets a load run against the fake and gives what the fake saw.
func play(t *testing.T, f *fake, load Load) ([]asked, *Run) {
	t.Helper()
	server := httptest.NewServer(f)
	t.Cleanup(server.Close)
	client := NewClient(Target{BaseURL: server.URL, Model: "m"})
	t.Cleanup(client.Close)
	run := NewRun(client, OneTokenAWord(), nil)
	if err := run.Play(t.Context(), load); err != nil {
		t.Fatal(err)
	}
	if n := run.InFlight(); n != 0 {
		t.Errorf("%d requests are under way after the end", n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.all), run
}

func words(text string) int { return len(strings.Fields(text)) }

func TestMultiRound(t *testing.T) {
	load := MultiRound{
		Users: 3, Rounds: 4, QPS: 3000, SharedPrompt: 50, History: Range{20, 30}, Question: 7, Answer: 9, IgnoreEOS: true,
		RampUp: time.Millisecond, InitUserID: 100, UserHeader: true, WarmUp: 2, Seed: 1,
	}
	all, run := play(t, &fake{}, load)
	all = all[load.WarmUp:]
	if len(all) != load.Size() || len(run.Records()) != load.Size() {
		t.Fatalf("%d requests, %d records, want %d", len(all), len(run.Records()), load.Size())
	}
	users := map[string][]asked{}
	for _, a := range all {
		users[a.user] = append(users[a.user], a)
		if a.maxTokens != 9 || !a.ignoreEOS {
			t.Errorf("%+v", a)
		}
	}
	var begins []string
	for _, name := range []string{"101", "102", "103"} {
		rounds := users[name]
		if len(rounds) != load.Rounds {
			t.Fatalf("user %s asked %d times", name, len(rounds))
		}
		for i, a := range rounds {
			if len(a.messages) != 2*i+1 || a.messages[2*i].Role != "user" {
				t.Fatalf("round %d has %d messages", i+1, len(a.messages))
			}
			if i > 0 {
				if !slices.Equal(a.messages[:2*i-1], rounds[i-1].messages) {
					t.Errorf("user %s: round %d does not begin as the one before", name, i+1)
				}
				if answer := a.messages[2*i-1]; answer.Role != "assistant" || !strings.HasPrefix(answer.Content, "answer ") {
					t.Errorf("user %s: round %d has the answer %+v", name, i+1, answer)
				}
				if n := words(a.prompt()); n != 2+7 { // Question 2: and the words
					t.Errorf("question of %d words", n)
				}
			}
		}
		first := rounds[0].messages[0].Content
		shared, own, _ := strings.Cut(first, "\n\n")
		if n := words(own); words(shared) != 50 || n < 2+20+2+7 || n > 2+30+2+7 {
			t.Errorf("first prompt of %d shared and %d own words", words(shared), n)
		}
		begins = append(begins, shared)
	}
	if begins[0] != begins[1] || begins[1] != begins[2] {
		t.Error("the users' system prompts differ")
	}
	if users["101"][0].prompt() == users["102"][0].prompt() {
		t.Error("two users have one history")
	}
}

func TestMultiRoundHoldsBack(t *testing.T) {
	load := MultiRound{Users: 8, Rounds: 3, QPS: 1e6, SharedPrompt: 1, History: Range{1, 1}, Question: 1, Answer: 1, RampUp: time.Nanosecond, MaxUnfinished: 2, Seed: 1}
	all, _ := play(t, &fake{}, load)
	for _, a := range all {
		if a.underWay > 2 {
			t.Fatalf("%d unfinished, at most 2 may", a.underWay)
		}
	}
	if len(all) != 24 {
		t.Errorf("%d requests", len(all))
	}
}

// A user whose time has come again is somebody else, with another history.
func TestMultiRoundReplacesUsersUntilItsTimeIsUp(t *testing.T) {
	load := MultiRound{Users: 1, Rounds: 2, QPS: 1e6, History: Range{3, 3}, Question: 1, Answer: 1, Time: 50 * time.Millisecond, UserHeader: true, Seed: 1}
	all, run := play(t, &fake{}, load)
	if load.Size() != 0 {
		t.Errorf("size %d", load.Size())
	}
	// How many come in that time is the machine's affair; the order is not.
	for i, a := range all {
		if want := fmt.Sprint(i/2 + 1); a.user != want {
			t.Fatalf("request %d is of user %s, want %s", i+1, a.user, want)
		}
	}
	for _, r := range run.Records() {
		if r.Fault != nil {
			t.Errorf("a request that the end has cut counts as failed: %v", r.Fault)
		}
	}
}

// A question that failed is no part of the conversation; the next one is asked.
func TestMultiRoundGoesOnAfterAFailure(t *testing.T) {
	good := &fake{}
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if calls++; calls == 2 {
			http.Error(w, "busy", http.StatusServiceUnavailable)
			return
		}
		good.ServeHTTP(w, r)
	}))
	defer server.Close()
	client := NewClient(Target{BaseURL: server.URL})
	defer client.Close()
	run := NewRun(client, OneTokenAWord(), nil)
	load := MultiRound{Users: 1, Rounds: 3, QPS: 1e6, History: Range{3, 3}, Question: 1, Answer: 1, Seed: 1}
	if err := run.Play(t.Context(), load); err != nil {
		t.Fatal(err)
	}
	s := run.Summary()
	if s.Requests != 3 || s.Failed != 1 || s.Faults["status_503"] != 1 || s.Examples["status_503"] != "busy" {
		t.Errorf("%+v", s)
	}
	if last := good.all[len(good.all)-1].messages; len(last) != 3 || last[1].Content != "answer 1" {
		t.Errorf("the last prompt is %+v", last)
	}
}

func TestSharedPrefix(t *testing.T) {
	load := SharedPrefix{Workers: 4, Requests: 5, Active: 2, Prefix: 20, Fresh: 60, Answer: 2, WarmUp: 1, Seed: 1}
	all, run := play(t, &fake{}, load)
	if len(all) != 21 || len(run.Records()) != 20 {
		t.Fatalf("%d requests, %d records", len(all), len(run.Records()))
	}
	prefix := all[0].prompt()
	if words(prefix) != 20 {
		t.Errorf("the prefix has %d words", words(prefix))
	}
	fresh := map[string]bool{}
	for _, a := range all[1:] {
		rest, ok := strings.CutPrefix(a.prompt(), prefix)
		if !ok || words(rest) != 60 || fresh[rest[:40]] {
			t.Errorf("prompt of %d words, with the prefix: %v, seen before: %v", words(a.prompt()), ok, fresh[rest[:40]])
		}
		fresh[rest[:40]] = true
		if a.underWay > 2 {
			t.Errorf("%d under way", a.underWay)
		}
	}
}

func TestWarmingUpMustWork(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	client := NewClient(Target{BaseURL: server.URL})
	defer client.Close()
	for _, load := range []Load{DefaultMultiRound(), DefaultSharedPrefix()} {
		err := NewRun(client, OneTokenAWord(), nil).Play(t.Context(), load)
		if err == nil || !strings.Contains(err.Error(), "warming up: status_404") {
			t.Errorf("%T: %v", load, err)
		}
	}
}

func TestReplayWritesEqualTextsForEqualBlocks(t *testing.T) {
	load := Replay{Speed: 1, BlockTokens: 16, Seed: 1, Requests: []trace.Request{
		{Prompt: 40, Output: 1, Blocks: []uint64{1, 2, 3}},
		{Prompt: 48, Output: 1, Blocks: []uint64{1, 2, 3}},
		{Prompt: 48, Output: 1, Blocks: []uint64{1, 2, 4}},
		{Prompt: 30, Output: 1},
		{Prompt: 30, Output: 1},
	}}
	w := OneTokenAWord()
	var prompts [][]string
	for i, r := range load.Requests {
		p := strings.Fields(load.prompt(w, i))
		if len(p) != r.Prompt {
			t.Errorf("request %d has %d words, want %d", i, len(p), r.Prompt)
		}
		if again := strings.Fields(load.prompt(w, i)); !slices.Equal(p, again) {
			t.Errorf("request %d has two texts", i)
		}
		prompts = append(prompts, p)
	}
	same := func(i, j int) (n int) {
		for n < min(len(prompts[i]), len(prompts[j])) && prompts[i][n] == prompts[j][n] {
			n++
		}
		return n
	}
	// Two texts may begin with the same words by chance, but not with many.
	for _, c := range []struct{ i, j, least, most int }{{0, 1, 32, 36}, {1, 2, 32, 36}, {0, 2, 32, 36}, {3, 4, 0, 4}, {0, 3, 0, 4}} {
		if n := same(c.i, c.j); n < c.least || n > c.most {
			t.Errorf("requests %d and %d share %d words, want %d to %d", c.i, c.j, n, c.least, c.most)
		}
	}
	other := load
	other.Seed = 2
	if other.prompt(w, 0) == load.prompt(w, 0) {
		t.Error("another seed gives the same text")
	}
}

// An open loop does not wait for answers: all are under way before the first is
// answered.
func TestReplayDoesNotWaitForAnswers(t *testing.T) {
	const many = 500
	var arrived sync.WaitGroup
	arrived.Add(many)
	f := &fake{hold: func(asked) { arrived.Done(); arrived.Wait() }}
	load := Replay{Speed: 1000, Seed: 1}
	for i := range many {
		load.Requests = append(load.Requests, trace.Request{At: 10*time.Second + time.Duration(i)*time.Millisecond, Prompt: 3, Output: 1 + i})
	}
	all, run := play(t, f, load)
	s := run.Summary()
	if s.Requests != many || s.Failed != 0 || all[len(all)-1].underWay != many {
		t.Fatalf("%+v, at last %d under way", s, all[len(all)-1].underWay)
	}
	lengths := map[int]bool{}
	for _, a := range all {
		lengths[a.maxTokens] = true
	}
	if len(lengths) != many {
		t.Errorf("%d lengths of answers", len(lengths))
	}
	if s.Late.Max <= 0 {
		t.Errorf("no request was late, not even by the time that a timer takes: %+v", s.Late)
	}
}

func TestLoadsNameTheirFaults(t *testing.T) {
	for _, c := range []struct {
		load Load
		want []string
	}{
		{MultiRound{Time: -1}, []string{"--num-users: is 0", "--num-rounds", "--question-len", "--answer-len", "--qps: is 0", "--time: is -1ns"}},
		{SharedPrefix{Prefix: -1}, []string{"--workers", "--requests", "--active", "--prefix-len: is -1", "--fresh-len"}},
		{Replay{Speed: 1}, []string{"no requests"}},
		{Replay{Requests: make([]trace.Request, 1)}, []string{"--speed: is 0"}},
	} {
		err := c.load.Validate()
		for _, want := range c.want {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%T: error %v lacks %q", c.load, err, want)
			}
		}
	}
	for _, load := range []Load{DefaultMultiRound(), DefaultSharedPrefix()} {
		if err := load.Validate(); err != nil {
			t.Errorf("%T: %v", load, err)
		}
	}
}
