package replay

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	"github.com/firsttoken/firsttoken/simulator/trace"
)

// MultiRound is experiment 1 of the TTFT proposal: users who ask again and
// again, each time with all that was said before, their own history and a system
// prompt that all have. The same tool's options are those of firsttoken bench.
type MultiRound struct {
	Users, Rounds int
	// SystemTokens begin every prompt; each user's own history follows, of a
	// length drawn between HistoryLeast and HistoryMost.
	SystemTokens, HistoryLeast, HistoryMost int
	QuestionTokens, AnswerTokens            int
	// Gap is the time between two questions of a user, or longer where the answer
	// takes longer. Users begin one after another, spread over one gap.
	Gap         time.Duration
	BlockTokens int
	Seed        uint64
}

// Experiment1 has the proposal's figures.
func Experiment1() MultiRound {
	return MultiRound{
		Users: 15, Rounds: 10, SystemTokens: 1000, HistoryLeast: 2000, HistoryMost: 6000,
		QuestionTokens: 48, AnswerTokens: 96, Gap: 4500 * time.Millisecond, BlockTokens: 16,
	}
}

// Workload begins anew.
func (m MultiRound) Workload() Workload {
	rng := rand.New(rand.NewPCG(m.Seed, 10)) //nolint:gosec // repeatable
	l := newLoop(m.Users)
	said := make([]int, m.Users) // tokens, of the system's prompt on
	for u := range said {
		said[u] = m.SystemTokens + m.HistoryLeast + rng.IntN(m.HistoryMost-m.HistoryLeast+1)
		l.next[u] = m.Gap * time.Duration(u) / time.Duration(m.Users)
	}
	l.request = func(u, _ int) trace.Request {
		prompt := said[u] + m.QuestionTokens
		said[u] = prompt + m.AnswerTokens
		return trace.Request{
			Prompt: prompt, Output: m.AnswerTokens, Session: session("user", u),
			Blocks: blocks(said[u], m.BlockTokens, m.SystemTokens, 0, 1+u),
		}
	}
	l.after = func(_, round int, begun, ended time.Duration) time.Duration {
		if round == m.Rounds {
			return never
		}
		return max(begun+m.Gap, ended)
	}
	return l
}

// SharedPrefix is experiment 2 of the TTFT proposal: clients that ask for
// prompts which begin alike, each as soon as it has its answer. One engine has
// the beginning already.
type SharedPrefix struct {
	Clients, Requests         int // Requests of each client
	SharedTokens, FreshTokens int
	OutputTokens, BlockTokens int
	// Begin is when the clients begin; at 0 the shared tokens are asked for by
	// themselves, unless Begin is 0 too. Setup.Warm leaves that out of the report.
	Begin time.Duration
}

// Experiment2 has the figures of the experiment as rebuilt.
func Experiment2() SharedPrefix {
	return SharedPrefix{Clients: 5, Requests: 20, SharedTokens: 256, FreshTokens: 5000, OutputTokens: 2, BlockTokens: 16, Begin: time.Second}
}

// Workload begins anew.
func (s SharedPrefix) Workload() Workload {
	l := newLoop(s.Clients + 1) // the last asks for the shared tokens
	for c := range s.Clients {
		l.next[c] = s.Begin
	}
	if s.Begin == 0 {
		l.next[s.Clients] = never
	}
	l.request = func(c, round int) trace.Request {
		prompt, output := s.SharedTokens+s.FreshTokens, s.OutputTokens
		if c == s.Clients {
			prompt, output = s.SharedTokens, 1
		}
		return trace.Request{
			Prompt: prompt, Output: output, Session: session("client", c),
			Blocks: blocks(prompt, s.BlockTokens, s.SharedTokens, 0, 1+c*s.Requests+round),
		}
	}
	l.after = func(c, round int, _, ended time.Duration) time.Duration {
		if c == s.Clients || round == s.Requests {
			return never
		}
		return ended
	}
	return l
}

// FanOut is groups of requests that come almost at once and share a fresh
// prefix, as agents' do.
type FanOut struct {
	Groups, Size int
	// Within is the time over which a group's requests come, Gap the mean time
	// between groups, which is exponential.
	Within, Gap             time.Duration
	PrefixLeast, PrefixMost int // tokens, of a group
	OwnLeast, OwnMost       int // tokens, of each request
	OutputTokens            int
	BlockTokens             int
	Seed                    uint64
}

// AgentFanOut has the figures of the published comparison.
func AgentFanOut() FanOut {
	return FanOut{
		Groups: 600, Size: 8, Within: 200 * time.Millisecond, Gap: 730 * time.Millisecond,
		PrefixLeast: 3000, PrefixMost: 9000, OwnLeast: 300, OwnMost: 900, OutputTokens: 128, BlockTokens: 512,
	}
}

// Workload begins anew.
func (f FanOut) Workload() Workload {
	rng := rand.New(rand.NewPCG(f.Seed, 11)) //nolint:gosec // repeatable
	var all []trace.Request
	var at time.Duration
	for g := range f.Groups {
		at += time.Duration(rng.ExpFloat64() * float64(f.Gap))
		prefix := f.PrefixLeast + rng.IntN(f.PrefixMost-f.PrefixLeast+1)
		for range f.Size {
			prompt := prefix + f.OwnLeast + rng.IntN(f.OwnMost-f.OwnLeast+1)
			all = append(all, trace.Request{
				At:     at + time.Duration(rng.Float64()*float64(f.Within)),
				Prompt: prompt, Output: f.OutputTokens, Session: session("group", g),
				Blocks: blocks(prompt, f.BlockTokens, prefix, 1+g, 1+f.Groups+len(all)),
			})
		}
	}
	slices.SortStableFunc(all, func(a, b trace.Request) int { return cmp.Compare(a.At, b.At) })
	return Open(all)
}

// session names one of those whose requests belong together.
func session(who string, n int) string { return who + " " + strconv.Itoa(n) }

// blocks names the whole blocks of tokens: those within the first common tokens
// are the same for all of a group, the others are one's own. Groups and owners
// count in one row.
func blocks(tokens, size, common, group, owner int) []uint64 {
	names := make([]uint64, tokens/size)
	for i := range names {
		who := owner
		if (i+1)*size <= common {
			who = group
		}
		names[i] = uint64(who)<<32 | uint64(i) //nolint:gosec // both are counts
	}
	return names
}

// loop is a closed loop of clients, each with one request at a time.
type loop struct {
	// request makes a client's next one, after so many.
	request func(client, round int) trace.Request
	// after says when the next one comes, after so many, of which the last was
	// asked and answered at these times; never: none comes.
	after func(client, round int, begun, ended time.Duration) time.Duration

	next   []time.Duration // of each client; never while one is under way
	begun  []time.Duration
	rounds []int
	client []int // of each request taken
}

func newLoop(clients int) *loop {
	return &loop{next: make([]time.Duration, clients), begun: make([]time.Duration, clients), rounds: make([]int, clients)}
}

// first is the client whose turn is next.
func (l *loop) first() int {
	first := 0
	for c, at := range l.next {
		if at < l.next[first] {
			first = c
		}
	}
	return first
}

func (l *loop) Next() (time.Duration, bool) {
	at := l.next[l.first()]
	return at, at < never
}

func (l *loop) Take() trace.Request {
	c := l.first()
	r := l.request(c, l.rounds[c])
	r.At = l.next[c]
	l.rounds[c]++
	l.begun[c], l.next[c] = r.At, never
	l.client = append(l.client, c)
	return r
}

func (l *loop) Ended(n int, at time.Duration) {
	c := l.client[n]
	l.next[c] = l.after(c, l.rounds[c], l.begun[c], at)
}
