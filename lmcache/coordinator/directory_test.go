package coordinator_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/coordinator"
	"github.com/firsttoken/firsttoken/scoring"
)

const chunkSize = 4

func small(c *coordinator.Config) { c.ChunkSize = chunkSize }

// tokens is a prompt of so many chunks and two tokens more.
func tokens(chunks int) []uint32 {
	ids := make([]uint32, chunks*chunkSize+2)
	for i := range ids {
		ids[i] = uint32(i)
	}
	return ids
}

// keys are those of the chunks of tokens, for one rank of worldSize.
func keys(chunks, worldSize, rank int) []coordinator.ObjectKey {
	hasher, err := lmcache.NewTokenHasher(chunkSize)
	if err != nil {
		panic(err)
	}
	var list []coordinator.ObjectKey
	for _, hash := range hasher.Keys(nil, tokens(chunks)) {
		list = append(list, coordinator.ObjectKey{ChunkHash: hash.String(), ModelName: "m", KVRank: coordinator.KVRank(worldSize, rank)})
	}
	return list
}

func prompt(chunks int) *scoring.Prompt {
	ids := tokens(chunks)
	return &scoring.Prompt{Model: "m", Sequences: []scoring.Sequence{{TokenIDs: ids, Length: scoring.Tokens(len(ids)), Usable: scoring.Tokens(len(ids)), Copies: 1}}}
}

// endpoints are one for each named server; two where it is named twice.
func endpoints(servers ...string) []scoring.Endpoint {
	var list []scoring.Endpoint
	for i, s := range servers {
		list = append(list, scoring.Endpoint{
			ID: scoring.EndpointID(i + 1), Name: fmt.Sprintf("e%d", i), Address: fmt.Sprintf("10.0.0.%d:8000", i+1),
			Models: []string{"m"}, Ready: true, Cache: scoring.CacheIdentity{Server: s},
		})
	}
	return list
}

// report is one batch as a server sends it.
type report map[string]any

func (r report) with(pairs ...any) report {
	c := maps.Clone(r)
	for i := 0; i < len(pairs); i += 2 {
		c[pairs[i].(string)] = pairs[i+1]
	}
	return c
}

// store is a report of keys in a tier.
func store(server string, seq int, tier string, ks []coordinator.ObjectKey) report {
	var entries []any
	for _, k := range ks {
		entries = append(entries, map[string]any{"key": k, "size_bytes": 10})
	}
	return report{
		"instance_id": server, "incarnation": 1, "seq": seq, "event_type": "store", "tier": tier, "backend": "b", "shared": false, "ts": 1.0,
		"entries": entries,
	}
}

// tell reports and returns applied, duplicates, stale.
func tell(t *testing.T, d *coordinator.Directory, batches ...report) [3]int {
	t.Helper()
	body, err := json.Marshal(map[string]any{"batches": batches})
	if err != nil {
		t.Fatal(err)
	}
	status, text := call(t, d, http.MethodPost, "/events", string(body))
	if status != http.StatusOK {
		t.Fatalf("%d %s", status, text)
	}
	var a struct{ Applied, Duplicates, Stale int }
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		t.Fatal(err)
	}
	return [3]int{a.Applied, a.Duplicates, a.Stale}
}

// spans are a row as text: "l1:8 l2:12", "-" where nothing is held, "?" where
// nothing is known.
func spans(rows [][]scoring.Match) string {
	var list []string
	for _, row := range rows {
		text := "?"
		if row != nil {
			text = "-"
			var parts []string
			for _, s := range row[0].Spans {
				parts = append(parts, fmt.Sprintf("%s:%d", s.Location, s.End))
			}
			if len(parts) > 0 {
				text = strings.Join(parts, "+")
			}
		}
		list = append(list, text)
	}
	return strings.Join(list, " ")
}

func wantMatch(t *testing.T, d *coordinator.Directory, p *scoring.Prompt, e []scoring.Endpoint, want string) {
	t.Helper()
	if got := spans(d.Match(p, e)); got != want {
		t.Errorf("match %q, want %q", got, want)
	}
}

func TestMatch(t *testing.T) {
	d := newDirectory(t, small, func(c *coordinator.Config) { c.SecondsPerToken = coordinator.TierSeconds{L1: 1e-6, L2: 1e-5} })
	e := endpoints("a", "b", "c", "a", "")
	d.SetEndpoints(e)
	wantMatch(t, d, prompt(4), e, "? ? ? ? ?")
	k := keys(4, 1, 0)
	tell(t, d, store("a", 1, "l1", k[:2]), store("a", 2, "l2", k), store("b", 1, "l1", k[1:]), store("c", 1, "l1", k[:1]))
	wantMatch(t, d, prompt(4), e, "l1:8+l2:16 - l1:4 l1:8+l2:16 ?")
	row := d.Match(prompt(4), e)[0][0]
	if diff := cmp.Diff(scoring.Match{Cached: 16, Spans: []scoring.Span{{End: 8, Location: "l1", SecondsPerToken: 1e-6}, {End: 16, Location: "l2", SecondsPerToken: 1e-5}}}, row); diff != "" {
		t.Error(diff)
	}
	// Storage that all mount serves all who report, from wherever they stand.
	tell(t, d, store("c", 2, "l2", k[:1]).with("shared", true))
	wantMatch(t, d, prompt(4), e, "l1:8+l2:16 l2:4+l1:16 l1:4 l1:8+l2:16 ?")

	salted := prompt(4)
	salted.Salt = "s"
	wantMatch(t, d, salted, e, "- - - - ?")
	for i := range k {
		k[i].CacheSalt = "s"
	}
	tell(t, d, store("b", 2, "l1", k[:3]))
	wantMatch(t, d, salted, e, "- l1:12 - - ?")
	salted.Salt = "a/b"
	wantMatch(t, d, salted, e, "- - - - ?")

	short := prompt(4)
	short.Sequences[0].Usable = 9
	wantMatch(t, d, short, e, "l1:8 l2:4+l1:8 l1:4 l1:8 ?")
	short.NoCache = true
	wantMatch(t, d, short, e, "- - - - ?")
	other := prompt(4)
	other.Model = "n"
	wantMatch(t, d, other, e, "? ? ? ? ?")
}

// A chunk counts only with the parts of all ranks, and in all object groups.
func TestRanksAndGroups(t *testing.T) {
	d := newDirectory(t, small, func(c *coordinator.Config) {
		c.Models = map[string]coordinator.Model{"served": {Name: "m", WorldSize: 2}}
	})
	e := endpoints("a", "b")
	for i := range e {
		e[i].Models = []string{"served", "alias"}
	}
	d.SetEndpoints(e)
	p := prompt(3)
	p.Model = "alias"
	first, second := keys(3, 2, 0), keys(3, 2, 1)
	tell(t, d, store("a", 1, "l1", first), store("b", 1, "l1", first), store("a", 2, "l1", second[:1]), store("a", 3, "l2", second[1:2]), store("b", 2, "l1", second[1:]))
	wantMatch(t, d, p, e, "l1:4+l2:8 -")
	// A second object group of one chunk, that only b has.
	grouped := second[0]
	grouped.ObjectGroup = 1
	tell(t, d, store("b", 3, "l1", []coordinator.ObjectKey{grouped, second[0]}))
	wantMatch(t, d, p, e, "- l1:12")
	tell(t, d, store("a", 4, "l1", []coordinator.ObjectKey{grouped}))
	wantMatch(t, d, p, e, "l1:4+l2:8 l1:12")
}

// "per-(instance_id, incarnation) monotonic batch counter, starting at 1"; "a
// higher value fences off all placements reported by lower values".
func TestIncarnations(t *testing.T) {
	d := newDirectory(t, small)
	e := endpoints("a")
	d.SetEndpoints(e)
	k := keys(4, 1, 0)
	if got := tell(t, d, store("a", 1, "l1", k[:2]), store("a", 1, "l1", k), store("a", 2, "l2", k[:1])); got != [3]int{2, 1, 0} {
		t.Errorf("applied, duplicates, stale %v", got)
	}
	wantMatch(t, d, prompt(4), e, "l1:8")
	if got := tell(t, d, store("a", 1, "l1", k[1:]).with("incarnation", 2), store("a", 9, "l1", k)); got != [3]int{1, 0, 1} {
		t.Errorf("applied, duplicates, stale %v", got)
	}
	wantMatch(t, d, prompt(4), e, "l2:4+l1:16")
	tell(t, d, store("a", 2, "l1", k[3:]).with("incarnation", 2, "event_type", "delete"), store("a", 3, "l1", k[:1]).with("incarnation", 2, "event_type", "access", "backend", ""))
	wantMatch(t, d, prompt(4), e, "l2:4+l1:12")
	tell(t, d, report{"instance_id": "a", "incarnation": 2, "seq": 4, "event_type": "config", "tier": "l1", "backend": "dram", "capacity_bytes": 5, "capacity_revision": 1, "ts": 1.0})
	if c := d.Counts(); c.Applied != 6 || c.Gaps != 0 || c.Restarts != 1 || c.Stored != 6 || c.Deleted != 1 || c.Accessed != 1 {
		t.Errorf("%+v", c)
	}
	if s := d.Status(); len(s) != 1 || s[0].L1 != 2 || s[0].Held != 3 || s[0].Gap || s[0].Late {
		t.Errorf("%+v", s)
	}
}

// What began before we listened is not known to be absent.
func TestLate(t *testing.T) {
	d := newDirectory(t, small)
	e := endpoints("a")
	d.SetEndpoints(e)
	tell(t, d, store("a", 7, "l1", keys(2, 1, 0)))
	other := prompt(3)
	other.Sequences[0].TokenIDs[0] = 99
	wantMatch(t, d, prompt(3), e, "l1:8")
	wantMatch(t, d, other, e, "?")
	if s := d.Status()[0]; !s.Gap || !s.Late {
		t.Errorf("%+v", s)
	}
}

func TestMembership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirectory(t, small)
		e := endpoints("", "", "named")
		e[1].Address = "10.0.0.1:8001"
		d.SetEndpoints(e)
		register := func(body string) (int, string) { return call(t, d, http.MethodPost, "/instances", body) }
		if status, text := register(`{"ip":" ","http_port":1}`); status != http.StatusUnprocessableEntity {
			t.Errorf("%d %s", status, text)
		}
		if status, text := register(`{"ip":"10.0.0.1","http_port":70000}`); status != http.StatusUnprocessableEntity {
			t.Errorf("%d %s", status, text)
		}
		if status, text := register(`{"instance_id":" a ","ip":"10.0.0.1","http_port":8080}`); status != http.StatusOK || !strings.Contains(text, `"instance_id":"a"`) {
			t.Errorf("%d %s", status, text)
		}
		if status, text := register(`{"ip":"10.0.0.9","http_port":8080}`); status != http.StatusOK || !strings.Contains(text, `"instance_id":"mp-`) {
			t.Errorf("%d %s", status, text)
		}
		wantMatch(t, d, prompt(2), e, "? ? ?")
		k := keys(2, 1, 0)
		tell(t, d, store("a", 1, "l1", k), store("named", 1, "l1", k[:1]), store("a", 2, "l2", k[:1]))
		// All engines of a node have its server.
		wantMatch(t, d, prompt(2), e, "l1:8 l1:8 l1:4")
		if at := d.Heard(e[0].ID); !at.Equal(time.Now()) {
			t.Errorf("heard %s", at)
		}
		if n := d.Held(e[0].ID); n != 3 {
			t.Errorf("%d held", n)
		}
		go d.Run(t.Context())
		time.Sleep(25 * time.Second)
		if status, _ := call(t, d, http.MethodPut, "/instances/a/heartbeat", ""); status != http.StatusOK {
			t.Error(status)
		}
		time.Sleep(25 * time.Second)
		wantMatch(t, d, prompt(2), e, "l1:8 l1:8 l1:4")
		if servers := d.Servers(); len(servers) != 1 || servers[0].Instance != "a" {
			t.Errorf("%+v", servers)
		}
		time.Sleep(25 * time.Second)
		// Who never registered is not missed; who did and is silent is gone,
		// whatever it left in storage.
		wantMatch(t, d, prompt(2), e, "? ? l1:4")
		if status, _ := call(t, d, http.MethodPut, "/instances/a/heartbeat", ""); status != http.StatusNotFound {
			t.Error(status)
		}
		if c := d.Counts(); c.TimedOut != 2 {
			t.Errorf("%+v", c)
		}
		if _, text := call(t, d, http.MethodGet, "/directory/stats", ""); !strings.Contains(text, `"l1_count":1,"l1_size_bytes":10,"l2_count":1`) {
			t.Error(text)
		}
		// It may come back and count from anywhere.
		register(`{"instance_id":"a","ip":"10.0.0.1","http_port":8080}`)
		tell(t, d, store("a", 1, "l1", k[1:]))
		wantMatch(t, d, prompt(2), e, "l2:4+l1:8 l2:4+l1:8 l1:4")
		// Two servers at one address are one too many.
		register(`{"instance_id":"b","ip":"10.0.0.1","http_port":8081}`)
		wantMatch(t, d, prompt(2), e, "? ? l1:4")
		if u := d.Mapping().Unmapped; len(u) != 4 || !strings.Contains(u[0].Reason, `["a" "b"]`) {
			t.Errorf("%+v", u)
		}
	})
}

// TestStrays: a server that still reports after it has left is not kept for
// ever, one that an endpoint names is.
func TestStrays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDirectory(t, small)
		d.SetEndpoints(endpoints("named"))
		go d.Run(t.Context())
		k := keys(2, 1, 0)
		tell(t, d, store("named", 1, "l1", k), store("stray", 1, "l1", k))
		call(t, d, http.MethodDelete, "/instances/stray", "")
		tell(t, d, store("stray", 2, "l1", k))
		time.Sleep(50 * time.Minute)
		if s := d.Status(); len(s) != 2 {
			t.Errorf("%+v", s)
		}
		time.Sleep(20 * time.Minute)
		if s := d.Status(); len(s) != 1 || s[0].Instance != "named" || s[0].L1 != 2 {
			t.Errorf("%+v", s)
		}
	})
}

// TestLongReport: a report longer than what is applied at once is applied whole
// and in order, while others report and leave, and prompts are looked up.
func TestLongReport(t *testing.T) {
	d := newDirectory(t, small, func(c *coordinator.Config) { c.BodyLimit = 1 << 20 })
	e := endpoints("a", "b")
	d.SetEndpoints(e)
	k := keys(300, 1, 0)
	var others sync.WaitGroup
	others.Go(func() {
		for i := range 5 {
			tell(t, d, store("b", i+1, "l1", k[:100]))
			call(t, d, http.MethodDelete, "/instances/b", "")
		}
	})
	others.Go(func() {
		for range 50 {
			d.Match(prompt(300), e)
		}
	})
	for i := range 3 {
		tell(t, d, store("a", 2*i+1, "l1", k), store("a", 2*i+2, "l1", k[200:]).with("event_type", "delete"))
	}
	others.Wait()
	wantMatch(t, d, prompt(300), e, fmt.Sprintf("l1:%d ?", 200*chunkSize))
}

// The memory is bounded: the longest unused go, and leave nothing behind.
func TestBounds(t *testing.T) {
	d := newDirectory(t, small, func(c *coordinator.Config) { c.MaxKeys = 3 })
	e := endpoints("a")
	d.SetEndpoints(e)
	k := keys(5, 1, 0)
	tell(t, d, store("a", 1, "l1", k[:3]), store("a", 2, "l1", k[:1]).with("event_type", "access", "backend", ""), store("a", 3, "l1", k[3:4]))
	wantMatch(t, d, prompt(5), e, "l1:4") // k[1] went
	if s := d.Status()[0]; s.L1 != 3 || s.Held != 3 || d.Counts().Forgotten != 1 {
		t.Errorf("%+v %+v", s, d.Counts())
	}
	call(t, d, http.MethodDelete, "/instances/a", "")
	if s := d.Status(); len(s) != 0 {
		t.Errorf("%+v", s)
	}
	if _, text := call(t, d, http.MethodGet, "/directory/stats", ""); !strings.Contains(text, `"num_keys":0,"num_placements":0,"l1_keys_by_instance":{}`) {
		t.Error(text)
	}
}

func TestRefusals(t *testing.T) {
	d := newDirectory(t, small, func(c *coordinator.Config) { c.BodyLimit = 8000 })
	good := store("a", 1, "l1", keys(1, 1, 0))
	bad := func(pairs ...any) string {
		body, _ := json.Marshal(map[string]any{"batches": []report{good, good.with(pairs...)}})
		return string(body)
	}
	key := func(k coordinator.ObjectKey) any { return []any{map[string]any{"key": k}} }
	hash := keys(1, 1, 0)[0].ChunkHash
	for name, c := range map[string]struct {
		path, body string
		want       int
	}{
		"no JSON":          {"/events", `{"batches":`, 422},
		"two values":       {"/events", `{"batches":[]} {}`, 422},
		"no instance":      {"/events", bad("instance_id", ""), 422},
		"an event":         {"/events", bad("event_type", "move"), 422},
		"no backend":       {"/events", bad("backend", ""), 422},
		"full config":      {"/events", bad("event_type", "config"), 422},
		"incarnation":      {"/events", bad("incarnation", -1), 422},
		"seq":              {"/events", bad("seq", 0), 422},
		"tier":             {"/events", bad("tier", "all"), 422},
		"hash":             {"/events", bad("entries", key(coordinator.ObjectKey{ChunkHash: "xyz"})), 422},
		"model":            {"/events", bad("entries", key(coordinator.ObjectKey{ChunkHash: hash, ModelName: "m@n"})), 422},
		"group":            {"/events", bad("entries", key(coordinator.ObjectKey{ChunkHash: hash, ObjectGroup: -1})), 422},
		"salt":             {"/events", bad("entries", key(coordinator.ObjectKey{ChunkHash: hash, CacheSalt: "a/b"})), 422},
		"size":             {"/events", bad("entries", []any{map[string]any{"key": keys(1, 1, 0)[0], "size_bytes": -1}}), 422},
		"offset":           {"/events", bad("entries", []any{map[string]any{"key": keys(1, 1, 0)[0], "token_offset": -2}}), 422},
		"long instance":    {"/events", bad("instance_id", strings.Repeat("x", 5000)), 422},
		"long backend":     {"/events", bad("backend", strings.Repeat("x", 5000)), 422},
		"long model":       {"/events", bad("entries", key(coordinator.ObjectKey{ChunkHash: hash, ModelName: strings.Repeat("x", 5000)})), 422},
		"long server":      {"/instances", `{"ip":"::1","http_port":1,"metadata":{"a":"` + strings.Repeat("x", 5000) + `"}}`, 422},
		"long":             {"/events", bad("backend", strings.Repeat("x", 8000)), 413},
		"lookup of none":   {"/directory/lookup", `{}`, 422},
		"lookup unnamed":   {"/directory/lookup", `{"token_ids":[1]}`, 422},
		"lookup of both":   {"/directory/lookup", `{"token_ids":[1],"model_name":"m","keys":[{"chunk_hash_hex":""}]}`, 422},
		"lookup, ranks":    {"/directory/lookup", `{"token_ids":[1],"model_name":"m","world_size":256}`, 422},
		"lookup, a salt":   {"/directory/lookup", `{"token_ids":[1],"model_name":"m","cache_salt":"@"}`, 400},
		"lookup, bad keys": {"/directory/lookup", `{"keys":[{"chunk_hash_hex":"x"}]}`, 422},
	} {
		if status, text := call(t, d, http.MethodPost, c.path, c.body); status != c.want || !strings.Contains(text, `"detail":`) {
			t.Errorf("%s: %d %s, want %d", name, status, text, c.want)
		}
	}
	if c := d.Counts(); c != (coordinator.Counts{}) {
		t.Errorf("something was applied: %+v", c)
	}
	for _, path := range []string{"?limit=0", "?offset=-1", "?tier=l3"} {
		if status, _ := call(t, d, http.MethodGet, "/directory/keys"+path, ""); status != http.StatusUnprocessableEntity {
			t.Errorf("keys%s: %d", path, status)
		}
	}
}

// Keys that no prompt can match are noticed by the tokens they come with.
func TestChecks(t *testing.T) {
	d := newDirectory(t, small)
	entry := func(key coordinator.ObjectKey, ids []uint32, offset int) any {
		return []any{map[string]any{"key": key, "token_ids": ids, "token_offset": offset}}
	}
	k, ids := keys(2, 1, 0), tokens(2)
	short := k[0]
	short.ChunkHash = "0011223344556677"
	far := k[0]
	far.ObjectGroup = 64
	for i, e := range []any{
		entry(k[0], ids[:4], 0),  // right
		entry(k[1], ids[4:8], 4), // cannot be told
		entry(k[1], ids[:4], 0),  // another hash
		entry(k[0], ids[:3], 0),  // another chunk size
		entry(short, nil, -1), entry(far, nil, -1),
	} {
		tell(t, d, store("a", i+1, "l1", nil).with("entries", e))
	}
	if c := d.Counts(); c.Checked != 3 || c.Mismatched != 2 || c.Foreign != 2 || c.Stored != 4 {
		t.Errorf("%+v", c)
	}
	reg := prometheus.NewPedanticRegistry()
	coordinator.NewMetrics(reg, d)
	if err := testutil.GatherAndCompare(reg, strings.NewReader(`
# HELP firsttoken_lmcache_coordinator_checked_chunks_total Chunks whose key was made anew from their tokens, by result: same, other (chunk size or hash differ).
# TYPE firsttoken_lmcache_coordinator_checked_chunks_total counter
firsttoken_lmcache_coordinator_checked_chunks_total{result="other"} 2
firsttoken_lmcache_coordinator_checked_chunks_total{result="same"} 1
`), "firsttoken_lmcache_coordinator_checked_chunks_total"); err != nil {
		t.Error(err)
	}
}

// Whatever is reported in whatever order, Match says what LookupResponse.Held
// makes of the directory's own answer to a lookup, and the books are those of
// the keys that are listed.
func TestTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	servers := []string{"a", "b", "c"}
	pick := func(list ...any) any { return list[rng.IntN(len(list))] }
	for range 60 {
		d := newDirectory(t, small, func(c *coordinator.Config) {
			c.MaxKeys = 20 + rng.IntN(60)
			c.Models = map[string]coordinator.Model{"m": {WorldSize: 2}}
		})
		e := endpoints(servers...)
		d.SetEndpoints(e)
		seqs := map[string]int{}
		for range 150 {
			server := servers[rng.IntN(3)]
			if rng.IntN(40) == 0 {
				call(t, d, http.MethodDelete, "/instances/"+server, "")
				continue
			}
			seqs[server]++
			k := keys(6, 2, rng.IntN(2))
			low := rng.IntN(5)
			k = k[low : low+1+rng.IntN(6-low)]
			if rng.IntN(8) == 0 {
				for i := range k {
					k[i].ObjectGroup = 1
				}
			}
			tell(t, d, store(server, seqs[server], pick("l1", "l1", "l2").(string), k).with(
				"event_type", pick("store", "store", "store", "delete", "access"), "backend", pick("x", "y"),
				"shared", rng.IntN(6) == 0, "incarnation", 1+seqs[server]/60))
		}
		p := prompt(6)
		body, _ := json.Marshal(coordinator.LookupRequest{TokenIDs: tokens(6), ModelName: "m", WorldSize: 2})
		_, text := call(t, d, http.MethodPost, "/directory/lookup", string(body))
		var answer coordinator.LookupResponse
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			t.Fatal(err)
		}
		twin := answer.Held(servers)
		for i, row := range d.Match(p, e) {
			cfg := coordinator.DefaultConfig().Fleet
			cfg.ChunkSize = chunkSize
			if row == nil {
				continue // said to be unknown, which is TestLate's
			}
			if diff := cmp.Diff(cfg.Match(twin[i]), row[0]); diff != "" {
				t.Fatalf("server %s (-twin +got):\n%s\n%s", servers[i], diff, text)
			}
		}
		var list struct {
			Total int
			Keys  []struct {
				Placements []coordinator.Placement
			}
		}
		_, text = call(t, d, http.MethodGet, "/directory/keys", "")
		if err := json.Unmarshal([]byte(text), &list); err != nil {
			t.Fatal(err)
		}
		held, l1, placements := map[string]int{}, map[string]int{}, 0
		for _, k := range list.Keys {
			in := map[string]bool{}
			for _, p := range k.Placements {
				placements++
				held[p.Instance]++
				if p.Tier == coordinator.TierL1 && !in[p.Instance] {
					in[p.Instance] = true
					l1[p.Instance]++
				}
			}
		}
		for _, s := range d.Status() {
			if s.Held != held[s.Instance] || s.L1 != l1[s.Instance] {
				t.Fatalf("%+v, listed are %d and %d", s, held[s.Instance], l1[s.Instance])
			}
		}
		_, text = call(t, d, http.MethodGet, "/directory/stats", "")
		if !strings.Contains(text, fmt.Sprintf(`"num_keys":%d,"num_placements":%d,`, list.Total, placements)) {
			t.Fatalf("%d keys, %d placements are listed: %s", list.Total, placements, text)
		}
	}
}

// Whatever comes, the directory answers as the protocol has it and its books
// hold.
func FuzzEvents(f *testing.F) {
	for _, r := range []report{
		store("a", 1, "l1", keys(2, 1, 0)),
		store("a", 2, "l2", keys(2, 1, 0)).with("shared", true, "event_type", "delete"),
		{"instance_id": "a", "seq": 3, "event_type": "config", "tier": "l1", "backend": "dram", "capacity_bytes": 5},
	} {
		body, _ := json.Marshal(map[string]any{"batches": []report{r}})
		f.Add(string(body))
	}
	f.Fuzz(func(t *testing.T, body string) {
		d := newDirectory(t, small, func(c *coordinator.Config) { c.MaxKeys = 4 })
		d.SetEndpoints(endpoints("a"))
		for range 2 {
			status, text := call(t, d, http.MethodPost, "/events", body)
			if status != http.StatusOK && status != http.StatusUnprocessableEntity || !json.Valid([]byte(text)) {
				t.Fatalf("%d %s", status, text)
			}
		}
		d.Match(prompt(2), endpoints("a"))
		call(t, d, http.MethodDelete, "/instances/a", "")
		if c := d.Counts(); c.Mismatched > c.Checked {
			t.Errorf("%+v", c)
		}
	})
}

func FuzzLookup(f *testing.F) {
	f.Add(`{"token_ids":[1,2,3,4],"model_name":"m","world_size":2}`)
	f.Add(`{"keys":[{"chunk_hash_hex":"00","model_name":"m","kv_rank":1}]}`)
	f.Fuzz(func(t *testing.T, body string) {
		status, text := call(t, newDirectory(t, small), http.MethodPost, "/directory/lookup", body)
		if status != 200 && status != 400 && status != 422 || !json.Valid([]byte(text)) {
			t.Fatalf("%d %s", status, text)
		}
	})
}
