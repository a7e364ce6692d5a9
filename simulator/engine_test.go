package simulator_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/firsttoken/firsttoken/simulator"
)

// plain has coefficients that one can add up in the head: a token costs 1 ms, a
// step at least 10 ms and 1 ms on top.
var plain = simulator.Profile{
	Name: "plain", Token: .001, StepFloor: .010, StepOverhead: .001,
	KVTokens: 1000, BatchTokens: 100, MaxSeqs: 4,
}

// keys are n keys of a prefix named by its first key.
func keys(first, n int) []simulator.Key {
	k := make([]simulator.Key, n)
	for i := range k {
		k[i] = simulator.Key(first*1000 + i)
	}
	return k
}

// step runs one step and checks how long it took.
func step(t *testing.T, e *simulator.Engine, want time.Duration) simulator.Result {
	t.Helper()
	d, ok := e.Schedule()
	if !ok {
		t.Fatal("idle, want a step")
	}
	if diff := d - want; diff < -time.Microsecond || diff > time.Microsecond {
		t.Errorf("step takes %s, want %s", d, want)
	}
	return e.Complete()
}

func idle(t *testing.T, e *simulator.Engine) {
	t.Helper()
	if d, ok := e.Schedule(); ok {
		t.Fatalf("a step of %s, want idle", d)
	}
}

func add(t *testing.T, e *simulator.Engine, r simulator.Request) {
	t.Helper()
	if err := e.Add(r); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, got, want simulator.Result) {
	t.Helper()
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("result (-want +got):\n%s", diff)
	}
}

func TestPrefillInChunksThenDecode(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10})
	idle(t, e)
	add(t, e, simulator.Request{ID: 1, PromptTokens: 250, OutputTokens: 2})
	want(t, step(t, e, 101*time.Millisecond), simulator.Result{
		Prefill: 100, Admitted: []simulator.Admission{{ID: 1, Queried: 250}},
	})
	want(t, step(t, e, 101*time.Millisecond), simulator.Result{Prefill: 100})
	want(t, step(t, e, 51*time.Millisecond), simulator.Result{Prefill: 50, Outputs: []simulator.Output{{ID: 1, First: true}}})
	want(t, step(t, e, 11*time.Millisecond), simulator.Result{Decode: 1, Outputs: []simulator.Output{{ID: 1, Finished: true}}})
	idle(t, e)
}

func TestEveryTermOfAStep(t *testing.T) {
	p := plain
	p.Attention, p.Decode, p.DecodeContext, p.HostLoad = 1e-6, 1e-4, 1e-5, 1e-3
	p.HostTokens = 1000
	e := simulator.New(p, simulator.Options{BlockTokens: 10, ChunkTokens: 20})
	add(t, e, simulator.Request{ID: 1, PromptTokens: 50, OutputTokens: 3, Chunks: keys(1, 2)})
	// 50 tokens, their contexts 1+2+…+50 = 1275.
	step(t, e, 51*time.Millisecond+1275*time.Microsecond)
	// One decode in a context of 51.
	step(t, e, 11*time.Millisecond+100*time.Microsecond+510*time.Microsecond)
	step(t, e, 11*time.Millisecond+100*time.Microsecond+520*time.Microsecond)
	// The chunks come back: 40 tokens loaded, 10 computed in contexts 41 to 50.
	add(t, e, simulator.Request{ID: 2, PromptTokens: 50, OutputTokens: 1, Chunks: keys(1, 2)})
	res := step(t, e, 11*time.Millisecond+455*time.Microsecond+40*time.Millisecond)
	want(t, res, simulator.Result{
		Prefill: 10, Admitted: []simulator.Admission{{ID: 2, Queried: 50, Cached: 40, Loaded: 40}},
		Outputs: []simulator.Output{{ID: 2, First: true, Finished: true, Cached: 40, Loaded: 40}},
	})
}

func TestDecodesComeFirstAndPrefillsInOrder(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10})
	add(t, e, simulator.Request{ID: 1, PromptTokens: 10, OutputTokens: 5})
	step(t, e, 11*time.Millisecond)
	add(t, e, simulator.Request{ID: 2, PromptTokens: 150, OutputTokens: 1})
	add(t, e, simulator.Request{ID: 3, PromptTokens: 60, OutputTokens: 1})
	// One token for the decode, 99 for the older prefill, none for the younger.
	want(t, step(t, e, 101*time.Millisecond), simulator.Result{
		Prefill: 99, Decode: 1, Admitted: []simulator.Admission{{ID: 2, Queried: 150}}, Outputs: []simulator.Output{{ID: 1}},
	})
	// 51 finish the older, 48 of the younger.
	want(t, step(t, e, 101*time.Millisecond), simulator.Result{
		Prefill: 99, Decode: 1, Admitted: []simulator.Admission{{ID: 3, Queried: 60}},
		Outputs: []simulator.Output{{ID: 1}, {ID: 2, First: true, Finished: true}},
	})
	want(t, step(t, e, 14*time.Millisecond), simulator.Result{
		Prefill: 12, Decode: 1, Outputs: []simulator.Output{{ID: 1}, {ID: 3, First: true, Finished: true}},
	})
}

func TestAtMostMaxSeqsRun(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10})
	for id := range 6 {
		add(t, e, simulator.Request{ID: simulator.ID(id), PromptTokens: 5, OutputTokens: 2})
	}
	step(t, e, 21*time.Millisecond)
	if s := e.Stats(); s.Running != 4 || s.Waiting != 2 {
		t.Errorf("running %d, waiting %d; want 4 and 2", s.Running, s.Waiting)
	}
}

func TestPrefixIsFoundAndTheLastTokenComputed(t *testing.T) {
	for _, c := range []struct{ first, second, cached int }{
		{100, 100, 90}, // a multiple of the block: the last block is computed again
		{105, 105, 100},
		{100, 160, 100},
		{96, 96, 90},
		{9, 9, 0},
		{10, 10, 0},
		{11, 11, 10},
	} {
		e := simulator.New(plain, simulator.Options{BlockTokens: 10})
		add(t, e, simulator.Request{ID: 1, PromptTokens: c.first, OutputTokens: 1, Blocks: keys(1, c.first/10)})
		run(e)
		add(t, e, simulator.Request{ID: 2, PromptTokens: c.second, OutputTokens: 1, Blocks: keys(1, c.second/10)})
		got := run(e)
		if got[0].Cached != c.cached {
			t.Errorf("%d tokens after %d: %d cached, want %d", c.second, c.first, got[0].Cached, c.cached)
		}
	}
}

// run steps until idle and returns all outputs.
func run(e *simulator.Engine) (outputs []simulator.Output) {
	for {
		if _, ok := e.Schedule(); !ok {
			return outputs
		}
		outputs = append(outputs, e.Complete().Outputs...)
	}
}

func TestTheAnswerIsPartOfTheNextPrefix(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10})
	// 15 + 16 tokens; the last token of the answer is never computed.
	add(t, e, simulator.Request{ID: 1, PromptTokens: 15, OutputTokens: 16, Blocks: keys(1, 3)})
	run(e)
	add(t, e, simulator.Request{ID: 2, PromptTokens: 40, OutputTokens: 1, Blocks: keys(1, 4)})
	if got := run(e)[0].Cached; got != 30 {
		t.Errorf("%d cached, want 30", got)
	}
}

func TestWhoeverComesLaterInAStepFindsWhatIsComputedInIt(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10})
	add(t, e, simulator.Request{ID: 1, PromptTokens: 50, OutputTokens: 1, Blocks: keys(1, 5)})
	add(t, e, simulator.Request{ID: 2, PromptTokens: 50, OutputTokens: 1, Blocks: keys(1, 5)})
	res := step(t, e, 61*time.Millisecond)
	if res.Outputs[0].Cached != 0 || res.Outputs[1].Cached != 40 {
		t.Errorf("cached %d and %d, want 0 and 40", res.Outputs[0].Cached, res.Outputs[1].Cached)
	}
}

func TestNoCacheComputesAllAndStillCaches(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10})
	for id, c := range []struct {
		noCache bool
		cached  int
	}{{false, 0}, {true, 0}, {false, 40}} {
		add(t, e, simulator.Request{ID: simulator.ID(id), PromptTokens: 50, OutputTokens: 1, Blocks: keys(1, 5), NoCache: c.noCache})
		if got := run(e)[0].Cached; got != c.cached {
			t.Errorf("request %d: %d cached, want %d", id, got, c.cached)
		}
	}
}

func TestTheLeastRecentlyFreedGoesFirstItsTailBeforeItsHead(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10}) // 100 blocks
	add(t, e, simulator.Request{ID: 1, PromptTokens: 401, OutputTokens: 1, Blocks: keys(1, 40)})
	run(e)
	add(t, e, simulator.Request{ID: 2, PromptTokens: 401, OutputTokens: 1, Blocks: keys(2, 40)})
	run(e)
	// 40 blocks each can be found again, 20 cannot. 38 for a third take 18 of the
	// first.
	add(t, e, simulator.Request{ID: 3, PromptTokens: 380, OutputTokens: 1, Blocks: keys(3, 38)})
	run(e)
	add(t, e, simulator.Request{ID: 4, PromptTokens: 401, OutputTokens: 1, Blocks: keys(2, 40)})
	if got := run(e)[0].Cached; got != 400 {
		t.Errorf("%d cached of the second, want all 400", got)
	}
	// And one more for the end of the fourth prompt.
	add(t, e, simulator.Request{ID: 5, PromptTokens: 401, OutputTokens: 1, Blocks: keys(1, 40)})
	if got := run(e)[0].Cached; got != 210 {
		t.Errorf("%d cached of the first, want 210", got)
	}
}

func TestTheHeadOfTheQueueWaitsForRoom(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10})
	add(t, e, simulator.Request{ID: 1, PromptTokens: 600, OutputTokens: 1})
	add(t, e, simulator.Request{ID: 2, PromptTokens: 500, OutputTokens: 1})
	add(t, e, simulator.Request{ID: 3, PromptTokens: 5, OutputTokens: 1})
	var order []simulator.ID
	for _, o := range run(e) {
		order = append(order, o.ID)
	}
	if diff := cmp.Diff([]simulator.ID{1, 2, 3}, order); diff != "" {
		t.Error(diff)
	}
}

func TestTheNewestGivesWayWhenDecodesNeedRoom(t *testing.T) {
	p := plain
	p.KVTokens = 100
	e := simulator.New(p, simulator.Options{BlockTokens: 10})
	add(t, e, simulator.Request{ID: 1, PromptTokens: 50, OutputTokens: 20, Blocks: keys(1, 6)})
	add(t, e, simulator.Request{ID: 2, PromptTokens: 50, OutputTokens: 20, Blocks: keys(2, 6)})
	step(t, e, 101*time.Millisecond) // both are done with their prompts, memory is full
	res := step(t, e, 11*time.Millisecond)
	want(t, res, simulator.Result{
		Decode: 1, Preempted: 1, Outputs: []simulator.Output{{ID: 1}},
		Blocks: []simulator.BlockChange{{Kind: simulator.BlockLost, Key: 2004}}, // the end of the one that gave way
	})
	if s := e.Stats(); s.Running != 1 || s.Waiting != 1 {
		t.Errorf("running %d, waiting %d; want 1 and 1", s.Running, s.Waiting)
	}
	firsts, tokens := map[simulator.ID]int{}, map[simulator.ID]int{}
	for _, o := range run(e) {
		tokens[o.ID]++
		if o.First {
			firsts[o.ID]++
		}
	}
	if tokens[1] != 18 || tokens[2] != 19 || len(firsts) != 0 {
		t.Errorf("tokens %v, first tokens %v; want 18 and 19 more, no second first", tokens, firsts)
	}
}

func TestCancelFreesAtOnce(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10})
	add(t, e, simulator.Request{ID: 1, PromptTokens: 150, OutputTokens: 5, Blocks: keys(1, 15)})
	add(t, e, simulator.Request{ID: 2, PromptTokens: 50, OutputTokens: 5})
	if _, ok := e.Schedule(); !ok {
		t.Fatal("idle")
	}
	if !e.Cancel(1) || !e.Cancel(2) || e.Cancel(2) {
		t.Error("cancel did not tell what was there")
	}
	if got := e.Stats(); got != (simulator.Stats{Blocks: 100}) {
		t.Errorf("stats %+v after cancel", got)
	}
	want(t, e.Complete(), simulator.Result{
		Prefill: 100, Admitted: []simulator.Admission{{ID: 1, Queried: 150}},
		Blocks: []simulator.BlockChange{{ID: 1, Last: 10}},
	})
	// What the step had computed stays cached.
	add(t, e, simulator.Request{ID: 3, PromptTokens: 150, OutputTokens: 1, Blocks: keys(1, 15)})
	if got := run(e)[0].Cached; got != 100 {
		t.Errorf("%d cached, want 100", got)
	}
}

func TestTooLargeIsRefused(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10})
	if err := e.Add(simulator.Request{ID: 1, PromptTokens: 1000, OutputTokens: 2}); !errors.Is(err, simulator.ErrTooLarge) {
		t.Errorf("error %v, want ErrTooLarge", err)
	}
	if err := e.Add(simulator.Request{ID: 1, PromptTokens: 1000, OutputTokens: 1}); err != nil {
		t.Error(err)
	}
	if err := e.Add(simulator.Request{ID: 2, PromptTokens: 0, OutputTokens: 1}); err == nil {
		t.Error("an empty prompt was taken")
	}
}

func TestHostTierReportsWhatComesAndGoes(t *testing.T) {
	p := plain
	p.HostTokens = 60
	e := simulator.New(p, simulator.Options{BlockTokens: 10, ChunkTokens: 20}) // 3 chunks
	put := func(id simulator.ID, chunks []simulator.Key) []simulator.HostChange {
		add(t, e, simulator.Request{ID: id, PromptTokens: 20 * len(chunks), OutputTokens: 1, Chunks: chunks})
		if _, ok := e.Schedule(); !ok {
			t.Fatal("idle")
		}
		return e.Complete().Host
	}
	for i, c := range []struct {
		chunks []simulator.Key
		want   []simulator.HostChange
		held   []simulator.Key
	}{
		{keys(1, 2), []simulator.HostChange{{Key: 1000}, {Key: 1001}}, []simulator.Key{1001, 1000}},
		{keys(2, 1), []simulator.HostChange{{Key: 2000}}, []simulator.Key{1001, 1000, 2000}},
		{keys(1, 2), nil, []simulator.Key{2000, 1001, 1000}},
		{keys(3, 2), []simulator.HostChange{{Key: 2000, Evicted: true}, {Key: 3000}, {Key: 1001, Evicted: true}, {Key: 3001}}, []simulator.Key{1000, 3001, 3000}},
		{keys(4, 5), []simulator.HostChange{{Key: 1000, Evicted: true}, {Key: 4000}, {Key: 3001, Evicted: true}, {Key: 4001}, {Key: 3000, Evicted: true}, {Key: 4002}}, []simulator.Key{4002, 4001, 4000}},
	} {
		got := put(simulator.ID(i), c.chunks)
		if diff := cmp.Diff(c.want, got, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("store %d changes (-want +got):\n%s", i, diff)
		}
		if diff := cmp.Diff(c.held, e.HostKeys()); diff != "" {
			t.Errorf("store %d holds (-want +got):\n%s", i, diff)
		}
	}
	e.FreezeHost(true)
	if got := put(9, keys(9, 1)); got != nil {
		t.Errorf("frozen tier changed: %v", got)
	}
	e.FreezeHost(false)
	if got := put(10, keys(9, 1)); len(got) != 2 {
		t.Errorf("thawed tier changed by %v, want one eviction and one chunk", got)
	}
}

func TestTheBetterOfBothTiersCounts(t *testing.T) {
	p := plain
	p.HostTokens = 1000
	for _, c := range []struct {
		name           string
		blocks, chunks int // of the second prompt that the first shares
		tokens         int
		cached, loaded int
	}{
		{"memory reaches further", 7, 2, 75, 70, 0},
		{"host reaches further", 1, 3, 75, 60, 50},
		{"host alone", 0, 3, 75, 60, 60},
		{"a whole prompt in the host tier", 0, 3, 60, 59, 59},
		{"nothing", 0, 0, 75, 0, 0},
	} {
		e := simulator.New(p, simulator.Options{BlockTokens: 10, ChunkTokens: 20})
		add(t, e, simulator.Request{ID: 1, PromptTokens: 75, OutputTokens: 1, Blocks: keys(1, c.blocks), Chunks: keys(5, c.chunks)})
		run(e)
		add(t, e, simulator.Request{ID: 2, PromptTokens: c.tokens, OutputTokens: 1, Blocks: keys(1, c.tokens/10), Chunks: keys(5, c.tokens/20)})
		got := run(e)[0]
		if got.Cached != c.cached || got.Loaded != c.loaded {
			t.Errorf("%s: %d cached, %d of them loaded; want %d, %d", c.name, got.Cached, got.Loaded, c.cached, c.loaded)
		}
	}
}

func TestProfilesAreComplete(t *testing.T) {
	for _, name := range simulator.ProfileNames() {
		p, err := simulator.ProfileByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if p.Name != name || p.Token <= 0 || p.Attention <= 0 || p.StepFloor <= 0 || p.KVTokens <= 0 || p.BatchTokens <= 0 || p.MaxSeqs <= 0 {
			t.Errorf("profile %+v has an empty field", p)
		}
	}
	if _, err := simulator.ProfileByName("abacus"); err == nil {
		t.Error("an unknown profile was found")
	}
	// What the demo counts on: no step is below 20 ms.
	demo, _ := simulator.ProfileByName("demo")
	e := simulator.New(demo, simulator.Options{})
	add(t, e, simulator.Request{ID: 1, PromptTokens: 1, OutputTokens: 1})
	if d, _ := e.Schedule(); d < 20*time.Millisecond {
		t.Errorf("the smallest step of demo takes %s", d)
	}
}

// TestBlocksAreToldAsTheyComeAndGo walks through what an engine publishes:
// chunk by chunk, a request's own copy of a block that is there already, decode,
// and what is lost before what takes its place.
func TestBlocksAreToldAsTheyComeAndGo(t *testing.T) {
	p := plain
	p.KVTokens = 200
	e := simulator.New(p, simulator.Options{BlockTokens: 10})
	blocks := func() (all [][]simulator.BlockChange) {
		for {
			if _, ok := e.Schedule(); !ok {
				return all
			}
			if changes := e.Complete().Blocks; changes != nil {
				all = append(all, changes)
			}
		}
	}
	stored := func(id simulator.ID, first, last int) simulator.BlockChange {
		return simulator.BlockChange{ID: id, First: first, Last: last}
	}
	lost := func(k simulator.Key) simulator.BlockChange {
		return simulator.BlockChange{Kind: simulator.BlockLost, Key: k}
	}
	for _, c := range []struct {
		name   string
		prompt simulator.Request
		want   [][]simulator.BlockChange
	}{
		{
			"in chunks, then the block that the answer fills",
			simulator.Request{ID: 1, PromptTokens: 115, OutputTokens: 10, Blocks: keys(1, 12)},
			[][]simulator.BlockChange{{stored(1, 0, 10)}, {stored(1, 10, 11)}, {stored(1, 11, 12)}},
		},
		{
			"all cached, the last block computed again",
			simulator.Request{ID: 2, PromptTokens: 120, OutputTokens: 1, Blocks: keys(1, 12)},
			[][]simulator.BlockChange{{stored(2, 11, 12)}},
		},
		{"all cached", simulator.Request{ID: 3, PromptTokens: 121, OutputTokens: 1, Blocks: keys(1, 12)}, nil},
		{
			"13 are held, 3 of the 7 others were never used",
			simulator.Request{ID: 4, PromptTokens: 95, OutputTokens: 1, Blocks: keys(4, 9)},
			[][]simulator.BlockChange{{lost(1011), lost(1011), lost(1010), stored(4, 0, 9)}},
		},
	} {
		add(t, e, c.prompt)
		if diff := cmp.Diff(c.want, blocks()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestResetTellsWithTheNextStep: an engine that has nothing to do says nothing.
func TestResetTellsWithTheNextStep(t *testing.T) {
	e := simulator.New(plain, simulator.Options{BlockTokens: 10})
	add(t, e, simulator.Request{ID: 1, PromptTokens: 25, OutputTokens: 2, Blocks: keys(1, 2)})
	step(t, e, 26*time.Millisecond)
	if e.ResetCache() {
		t.Error("the cache was reset under a request that runs")
	}
	run(e)
	if !e.ResetCache() {
		t.Error("the cache of an idle engine was not reset")
	}
	idle(t, e)
	add(t, e, simulator.Request{ID: 2, PromptTokens: 25, OutputTokens: 1, Blocks: keys(1, 2)})
	res := step(t, e, 26*time.Millisecond)
	if res.Outputs[0].Cached != 0 {
		t.Errorf("%d tokens cached after the reset", res.Outputs[0].Cached)
	}
	told := []simulator.BlockChange{{Kind: simulator.CacheReset}, {ID: 2, Last: 2}}
	if diff := cmp.Diff(told, res.Blocks); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	add(t, e, simulator.Request{ID: 3, PromptTokens: 25, OutputTokens: 1, Blocks: keys(1, 2)})
	if res := step(t, e, 11*time.Millisecond); res.Blocks != nil || res.Outputs[0].Cached != 20 {
		t.Errorf("told %v, %d cached; want nothing more and 20", res.Blocks, res.Outputs[0].Cached)
	}
}
