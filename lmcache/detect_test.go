package lmcache_test

import (
	"encoding/hex"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// detected is a fleet whose settings are learnt, with a clock of its own.
type detected struct {
	*fleet
	*lmcache.Detector
	endpoints []scoring.Endpoint
	now       time.Time
	rng       *rand.Rand
}

// newDetected has one endpoint for each instance named.
func newDetected(tb testing.TB, cfg lmcache.Config, instances ...string) *detected {
	tb.Helper()
	d := &detected{fleet: newFleet(tb, cfg), now: time.Unix(1_000_000, 0), rng: rand.New(rand.NewPCG(1, 2))}
	d.Detector = lmcache.NewDetector(d.Source, d.index, slog.New(slog.NewTextHandler(&d.log, nil)), prometheus.NewRegistry())
	for i, name := range instances {
		d.endpoints = append(d.endpoints, endpoint(i+1, fmt.Sprintf("%s 10.0.0.%d:8000 instance=%s", name, i+1, name)))
		d.index.Register(worker(name, 0))
	}
	d.SetEndpoints(d.endpoints)
	return d
}

// prompt is n random tokens.
func (d *detected) prompt(n int) []uint32 {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = uint32(d.rng.IntN(150_000))
	}
	return ids
}

func asPrompt(tokens []uint32) *scoring.Prompt {
	n := scoring.Tokens(len(tokens))
	return &scoring.Prompt{Sequences: []scoring.Sequence{{TokenIDs: tokens, Length: n, Usable: n, Copies: 1}}}
}

// serve lets the endpoint numbered i compute a prompt: its instance reports
// keys, which the Detector then looks for until it has nothing to do.
func (d *detected) serve(i int, tokens []uint32, keys []lmcache.Key) {
	d.index.Admit(worker(d.endpoints[i].Name, 0), cpu, keys)
	d.Computed(d.endpoints[i].ID, asPrompt(tokens), d.now)
	d.pass(10 * time.Second)
}

// pass lets time pass.
func (d *detected) pass(long time.Duration) {
	for end := d.now.Add(long); d.now.Before(end); {
		d.now = d.now.Add(500 * time.Millisecond)
		d.Step(d.now)
	}
}

// state is that of the only instance there is.
func (d *detected) state(tb testing.TB) lmcache.HashingStatus {
	tb.Helper()
	rows := d.Status()
	if len(rows) != 1 {
		tb.Fatalf("%d rows of status, want 1: %+v", len(rows), rows)
	}
	return rows[0]
}

func hasher(tb testing.TB, g lmcache.KeyGroup) *lmcache.Hasher {
	tb.Helper()
	h, err := lmcache.NewHasher(g)
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

// TestDetectSettings: whatever an engine's settings are, they are found within
// a few prompts, and matched by from then on.
func TestDetectSettings(t *testing.T) {
	no, yes := false, true
	// The settings that are tried end with the prompt's length, so that small
	// chunks on both sides save most of the work where their size is no matter.
	const small = 32
	type engine struct {
		name  string
		group lmcache.KeyGroup
		state string
	}
	var engines []engine
	for _, algorithm := range []string{"builtin", "sha256", "sha256_cbor", "xxhash", "xxhash_cbor"} {
		for _, seed := range []string{"0", "42", "123", "1234", "777"} {
			for _, version := range []string{"0.5.6", "0.4.1", "0.3.12", "0.3.3"} {
				g := lmcache.KeyGroup{Algorithm: algorithm, PythonHashSeed: seed, LMCacheVersion: version, ChunkSize: small}
				state := lmcache.HashingDetected
				switch {
				case algorithm == "builtin" && seed == "0" && (version == "0.5.6" || version == "0.4.1"):
					state = lmcache.HashingConfigured
				case algorithm == "builtin" && seed == "777":
					state = lmcache.HashingLearnt
				case seed == "777" && version != "0.5.6":
					// The engine reports half of each digest, so that nothing follows from it.
					state = lmcache.HashingUnmatched
				}
				engines = append(engines, engine{algorithm + " " + seed + " " + version, g, state})
			}
		}
	}
	for _, size := range []int{16, 48, 64, 512, 528, 2048, 8192} {
		engines = append(engines, engine{fmt.Sprint("chunk ", size), lmcache.KeyGroup{ChunkSize: size}, lmcache.HashingDetected})
	}
	engines = append(engines,
		engine{"no vLLM", lmcache.KeyGroup{VLLMVersion: lmcache.NoVLLM}, lmcache.HashingDetected},
		engine{"python 3.10", lmcache.KeyGroup{PythonVersion: "3.10"}, lmcache.HashingDetected},
		engine{"unset", lmcache.KeyGroup{Algorithm: "sha256_cbor", PythonHashSeed: lmcache.SeedUnset}, lmcache.HashingDetected},
		engine{"vLLM 0.9", lmcache.KeyGroup{LMCacheVersion: "0.3.3", VLLMVersion: "0.9.2", PythonHashSeed: "42"}, lmcache.HashingDetected},
		engine{"unset builtin", lmcache.KeyGroup{NoneHash: "-1234567890123456789"}, lmcache.HashingLearnt},
		engine{"unset sha256_cbor before 0.29", lmcache.KeyGroup{Algorithm: "sha256_cbor", NoneHash: "1234567890123456789", ChunkSize: small}, lmcache.HashingUnmatched},
		engine{"sha256_cbor 777", lmcache.KeyGroup{Algorithm: "sha256_cbor", PythonHashSeed: "777"}, lmcache.HashingDetected},
		engine{"tails", lmcache.KeyGroup{SaveUnfullChunk: &yes}, lmcache.HashingDetected},
		engine{"tails, chunk 64", lmcache.KeyGroup{SaveUnfullChunk: &yes, ChunkSize: 64}, lmcache.HashingDetected},
		engine{"old without tails", lmcache.KeyGroup{LMCacheVersion: "0.3.3", SaveUnfullChunk: &no}, lmcache.HashingDetected},
	)
	for _, e := range engines {
		t.Run(e.name, func(t *testing.T) {
			cfg := lmcache.DefaultConfig()
			if e.group.ChunkSize == small {
				cfg.Keys.ChunkSize = small
			}
			d := newDetected(t, cfg, "x")
			h := hasher(t, e.group)
			for range 6 {
				tokens := d.prompt(2*h.ChunkSize() + 1 + d.rng.IntN(h.ChunkSize()-2))
				d.serve(0, tokens, h.Keys(nil, tokens))
			}
			s := d.state(t)
			if s.State != e.state {
				t.Fatalf("state %s, want %s: %+v\n%s", s.State, e.state, s, d.log.String())
			}
			if s.State == lmcache.HashingUnmatched || s.State == lmcache.HashingLearnt {
				if s.Fault == "" || !strings.Contains(s.Fix, "PYTHONHASHSEED=0") {
					t.Errorf("no fault or no fix: %+v", s)
				}
			} else if s.Fault+s.Fix != "" {
				t.Errorf("a fault for nothing: %+v", s)
			}
			tokens := d.prompt(2*h.ChunkSize() + 7)
			d.index.Admit(worker("x", 0), cpu, h.Keys(nil, tokens))
			want := strconv.Itoa(2 * h.ChunkSize())
			if h.SavesTail() {
				want = strconv.Itoa(len(tokens))
			}
			if e.state == lmcache.HashingUnmatched {
				want = "?"
			}
			if got := matched(d.Match(asPrompt(tokens), d.endpoints)); got != want {
				t.Errorf("%s tokens matched, want %s: %+v", got, want, s)
			}
		})
	}
}

// TestRecoverNamesTheUsual: keys that arrive while the usual settings are tried
// are not taken for those of a random NONE_HASH.
func TestRecoverNamesTheUsual(t *testing.T) {
	for _, g := range []lmcache.KeyGroup{
		{ChunkSize: 64, PythonHashSeed: "0"}, {PythonHashSeed: "123"}, {VLLMVersion: "0.9.2"}, {LMCacheVersion: "0.3.15", PythonHashSeed: "42"},
	} {
		d := newDetected(t, lmcache.DefaultConfig(), "x")
		tokens := d.prompt(2000)
		d.index.Admit(worker("x", 0), cpu, hasher(t, g).Keys(nil, tokens))
		got := d.Recovered(lmcache.DefaultKeyGroup(), "x", tokens)
		if want := g.Or(lmcache.DefaultKeyGroup()); got.NoneHash != "" || got.String() != want.String() {
			t.Errorf("settings {%s}, want {%s}", got, want)
		}
	}
}

// TestDetectGoldens: the keys of real LMCache are recognised, whatever made
// them.
func TestDetectGoldens(t *testing.T) {
	records, lists := loadGolden(t)
	type setting struct {
		group lmcache.KeyGroup
		none  goldenValue
		tail  bool
	}
	reported := make(map[setting]map[string][]lmcache.Key)
	for _, r := range records {
		s := setting{r.group(), r.NoneHash, r.SaveUnfullChunk}
		s.group.SaveUnfullChunk = nil
		if reported[s] == nil {
			reported[s] = make(map[string][]lmcache.Key)
		}
		keys := []lmcache.Key{}
		for _, c := range r.Chunks {
			keys = append(keys, goldenKey(t, c))
		}
		reported[s][r.Tokens] = keys
	}
	states := make(map[string]int)
	for s, prompts := range reported {
		d := newDetected(t, lmcache.DefaultConfig(), "x")
		comparable := 0
		for range 3 {
			comparable = 0
			for list, keys := range prompts {
				if d.serve(0, lists[list], keys); len(lists[list]) > s.group.ChunkSize {
					comparable++
				}
			}
		}
		if comparable < 2 {
			continue // One prompt proves nothing.
		}
		status := d.state(t)
		states[status.State]++
		if status.State == lmcache.HashingUnmatched {
			// Only a digest that begins with random bytes cannot be known.
			if _, err := lmcache.NewHasher(s.group); err == nil || s.group.Algorithm == "builtin" {
				t.Errorf("%+v: %+v", s, status)
			}
			continue
		}
		for list, keys := range prompts {
			want := min(len(keys)*s.group.ChunkSize, len(lists[list]))
			if got := matched(d.Match(asPrompt(lists[list]), d.endpoints)); got != strconv.Itoa(want) {
				t.Errorf("%+v: %s of %s matched, want %d; %+v", s, got, list, want, status)
			}
		}
	}
	t.Logf("settings by state: %v", states)
	if states[lmcache.HashingDetected] == 0 || states[lmcache.HashingConfigured] == 0 {
		t.Error("nothing was detected")
	}
}

func goldenKey(t *testing.T, v goldenValue) lmcache.Key {
	t.Helper()
	if v.Bytes != "" {
		digest, err := hex.DecodeString(v.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		var key lmcache.Key
		for _, b := range digest[:8] {
			key = key<<8 | lmcache.Key(b)
		}
		return key
	}
	if n, err := strconv.ParseInt(v.Int, 10, 64); err == nil {
		return lmcache.Key(n)
	}
	n, err := strconv.ParseUint(v.Int, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return lmcache.Key(n)
}

// TestDetectNothing: keys that no settings explain are never adopted, and the
// endpoint is left to other sources.
func TestDetectNothing(t *testing.T) {
	d := newDetected(t, lmcache.DefaultConfig(), "x")
	for i := range 8 {
		keys := make([]lmcache.Key, 500)
		for i := range keys {
			keys[i] = lmcache.Key(d.rng.Uint64())
		}
		// Only so many chunk sizes are tried as fit the prompt: one prompt is long
		// enough for all, the others are for chance to come often.
		n := 1100
		if i > 0 {
			n = 300
		}
		d.serve(0, d.prompt(n), keys)
		if s := d.state(t); s.State != lmcache.HashingUnmatched {
			t.Fatalf("%+v", s)
		}
	}
	if got := matched(d.Match(asPrompt(d.prompt(1000)), d.endpoints)); got != "?" {
		t.Errorf("matched %s, want nothing known", got)
	}
	if n := strings.Count(d.log.String(), "level=WARN"); n != 1 {
		t.Errorf("%d warnings, want one:\n%s", n, d.log.String())
	}
}

// TestDetectSilent: an instance that reports nothing says nothing of settings.
func TestDetectSilent(t *testing.T) {
	d := newDetected(t, lmcache.DefaultConfig(), "x")
	for range 5 {
		d.serve(0, d.prompt(1000), nil)
	}
	if rows := d.Status(); len(rows) != 1 || rows[0].State != lmcache.HashingUntested {
		t.Errorf("%+v", rows)
	}
	if got := matched(d.Match(asPrompt(d.prompt(1000)), d.endpoints)); got != "0" {
		t.Errorf("matched %s, want 0", got)
	}
}

// TestDetectTailsMislead: the tails of short prompts look like chunks of their
// size, to prompts that go on where they end.
func TestDetectTailsMislead(t *testing.T) {
	yes := true
	d := newDetected(t, lmcache.DefaultConfig(), "x")
	h := hasher(t, lmcache.KeyGroup{Algorithm: "sha256_cbor", SaveUnfullChunk: &yes})
	system := d.prompt(64)
	for range 8 {
		d.serve(0, system, h.Keys(nil, system))
		tokens := append(append([]uint32{}, system...), d.prompt(50+d.rng.IntN(100))...)
		d.serve(0, tokens, h.Keys(nil, tokens))
		if s := d.state(t); s.State == lmcache.HashingDetected {
			t.Fatalf("a tail was taken for a chunk: %+v", s)
		}
	}
	for range 2 {
		tokens := append(append([]uint32{}, system...), d.prompt(600)...)
		d.serve(0, tokens, h.Keys(nil, tokens))
	}
	if s := d.state(t); s.State != lmcache.HashingDetected {
		t.Errorf("%+v", s)
	}
}

// TestDetectOtherBeginning: where all prompts begin alike and the engine's ids
// differ from ours there (another date, say), a NONE_HASH that makes up for it
// could be worked out, and would be wrong.
func TestDetectOtherBeginning(t *testing.T) {
	d := newDetected(t, lmcache.DefaultConfig(), "x")
	h := hasher(t, lmcache.KeyGroup{})
	system, date := d.prompt(300), d.prompt(5)
	for range 10 {
		rest := d.prompt(500)
		ours := append(append([]uint32{}, system...), rest...)
		theirs := append(append(append([]uint32{}, date...), system[5:]...), rest...)
		d.serve(0, ours, h.Keys(nil, theirs))
	}
	if s := d.state(t); s.State != lmcache.HashingUnmatched {
		t.Errorf("%+v", s)
	}
}

// TestDetectChange: an engine that comes back with other settings is found
// again, and so is one whose NONE_HASH is random.
func TestDetectChange(t *testing.T) {
	d := newDetected(t, lmcache.DefaultConfig(), "x")
	for i, g := range []lmcache.KeyGroup{
		{}, {Algorithm: "sha256_cbor"}, {NoneHash: "77"}, {NoneHash: "78"}, {}, {ChunkSize: 64},
	} {
		d.index.Register(worker("x", 0)) // All that it reported is forgotten.
		h := hasher(t, g)
		d.pass(time.Minute)
		for range 6 {
			tokens := d.prompt(1000)
			d.serve(0, tokens, h.Keys(nil, tokens))
		}
		tokens := d.prompt(777)
		d.index.Admit(worker("x", 0), cpu, h.Keys(nil, tokens))
		if got, want := matched(d.Match(asPrompt(tokens), d.endpoints)), strconv.Itoa(777/h.ChunkSize()*h.ChunkSize()); got != want {
			t.Errorf("settings %d: %s matched, want %s: %+v\n%s", i, got, want, d.state(t), d.log.String())
		}
	}
}

// TestDetectPatience: a proven instance is not doubted for a prompt or two that
// it did not keep.
func TestDetectPatience(t *testing.T) {
	d := newDetected(t, lmcache.DefaultConfig(), "x")
	h := hasher(t, lmcache.KeyGroup{})
	for range 10 {
		for range 2 {
			tokens := d.prompt(520)
			d.serve(0, tokens, h.Keys(nil, tokens))
		}
		for range 2 {
			d.serve(0, d.prompt(520), nil)
			if s := d.state(t); s.State != lmcache.HashingConfigured {
				t.Fatalf("%+v", s)
			}
		}
	}
}

// TestDetectShared: with a shared cache, the endpoints without an instance are
// matched by what was found for the others.
func TestDetectShared(t *testing.T) {
	cfg := lmcache.DefaultConfig()
	cfg.SharedCache = true
	d := newDetected(t, cfg, "x", "y")
	d.endpoints = append(d.endpoints, endpoint(3, "z 10.0.0.3:8000"))
	d.SetEndpoints(d.endpoints)
	h := hasher(t, lmcache.KeyGroup{Algorithm: "xxhash"})
	tokens := d.prompt(600)
	for range 3 {
		for i := range 2 {
			d.serve(i, tokens, h.Keys(nil, tokens))
			tokens = d.prompt(600)
		}
	}
	d.index.Admit(worker("y", 0), cpu, h.Keys(nil, tokens))
	if got := matched(d.Match(asPrompt(tokens), d.endpoints)); got != "512 512 512" {
		t.Errorf("%s matched, want 512 everywhere: %+v", got, d.Status())
	}
}

// TestDetectRanks: ranks that begin their hashes each with another NONE_HASH
// hold no chunk together, and it is said why.
func TestDetectRanks(t *testing.T) {
	d := newDetected(t, lmcache.DefaultConfig(), "x")
	d.index.Register(worker("x", 1))
	one, other := hasher(t, lmcache.KeyGroup{NoneHash: "1"}), hasher(t, lmcache.KeyGroup{NoneHash: "2"})
	for range 4 {
		tokens := d.prompt(520)
		d.index.Admit(worker("x", 1), cpu, other.Keys(nil, tokens))
		d.serve(0, tokens, one.Keys(nil, tokens))
	}
	if s := d.state(t); s.State != lmcache.HashingUnmatched || !strings.Contains(s.Fault, "ranks") {
		t.Errorf("%+v", s)
	}
}

// TestDetectForgets what is gone.
func TestDetectForgets(t *testing.T) {
	d := newDetected(t, lmcache.DefaultConfig(), "x")
	h := hasher(t, lmcache.KeyGroup{})
	tokens := d.prompt(1000)
	d.serve(0, tokens, h.Keys(nil, tokens))
	d.SetEndpoints(nil)
	d.Computed(1, asPrompt(tokens), d.now)
	d.pass(10 * time.Second)
	if rows := d.Status(); len(rows) != 0 {
		t.Errorf("%+v", rows)
	}
}
