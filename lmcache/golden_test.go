package lmcache_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/test/shared"
)

// goldenValue is a key as the vectors write it: an integer or bytes in hex.
type goldenValue struct{ Int, Bytes string }

func (v goldenValue) text() string { return v.Int + v.Bytes }

// goldenRecord is a row of keys that LMCache's own token database made.
type goldenRecord struct {
	ID              string        `json:"id"`
	LMCache         string        `json:"lmcache"`
	VLLM            *string       `json:"vllm"`
	Python          string        `json:"python"`
	PythonHashSeed  *string       `json:"pythonhashseed"`
	Algorithm       string        `json:"algorithm"`
	ChunkSize       int           `json:"chunk_size"`
	SaveUnfullChunk bool          `json:"save_unfull_chunk"`
	NoneHash        goldenValue   `json:"none_hash"`
	Tokens          string        `json:"tokens"`
	Chunks          []goldenValue `json:"chunks"`
}

func (r goldenRecord) group() lmcache.KeyGroup {
	g := lmcache.KeyGroup{
		LMCacheVersion: r.LMCache, VLLMVersion: lmcache.NoVLLM, PythonVersion: r.Python, PythonHashSeed: lmcache.SeedUnset,
		Algorithm: r.Algorithm, ChunkSize: r.ChunkSize, SaveUnfullChunk: &r.SaveUnfullChunk,
	}
	if r.VLLM != nil {
		g.VLLMVersion = *r.VLLM
	}
	if r.PythonHashSeed != nil {
		g.PythonHashSeed = *r.PythonHashSeed
	}
	return g
}

func (r goldenRecord) texts() []string {
	texts := []string{}
	for _, c := range r.Chunks {
		texts = append(texts, c.text())
	}
	return texts
}

func loadGolden(tb testing.TB) (records []goldenRecord, tokens map[string][]uint32) {
	tb.Helper()
	data, err := os.ReadFile(shared.File(tb, "golden", "lmcache-hash.json"))
	if err != nil {
		tb.Fatal(err)
	}
	var file struct {
		TokenLists map[string][]uint32 `json:"token_lists"`
		Records    []goldenRecord      `json:"records"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		tb.Fatal(err)
	}
	if len(file.Records) == 0 {
		tb.Fatal("no records")
	}
	return file.Records, file.TokenLists
}

// TestGoldenKeys makes every key that the real token databases made, and again
// with the NONE_HASH given instead of derived. The file's mp_records are
// TestMultiprocessGolden's.
func TestGoldenKeys(t *testing.T) {
	records, tokens := loadGolden(t)
	made, all := make(map[string]int), 0
	for _, r := range records {
		list, ok := tokens[r.Tokens]
		if !ok {
			t.Fatalf("%s: no token list %q", r.ID, r.Tokens)
		}
		for _, given := range []string{"", r.NoneHash.text()} {
			group := r.group()
			group.NoneHash = given
			h, err := lmcache.NewHasher(group)
			if err != nil {
				t.Errorf("%s %+v: %v", r.ID, group, err)
				continue
			}
			if got, want := h.NoneHash(), r.NoneHash.text(); got != want {
				t.Errorf("%s %+v: NONE_HASH %s, want %s", r.ID, group, got, want)
			}
			if diff := cmp.Diff(r.texts(), h.Texts(list)); diff != "" {
				t.Errorf("%s %+v (-want +got):\n%s", r.ID, group, diff)
			}
			if keys := h.Keys(nil, list); len(keys) != len(r.Chunks) {
				t.Errorf("%s: %d keys, want %d", r.ID, len(keys), len(r.Chunks))
			}
		}
		made[r.Algorithm]++
		all++
	}
	if all != len(records) {
		t.Errorf("%d records made of %d", all, len(records))
	}
	t.Logf("records by algorithm: %v", made)
}
