package lmcache_test

import (
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/zeebo/blake3"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/test/shared"
)

func tokenHasher(tb testing.TB, chunkSize int) *lmcache.TokenHasher {
	tb.Helper()
	h, err := lmcache.NewTokenHasher(chunkSize)
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

func digests(h *lmcache.TokenHasher, tokens []uint32) []string {
	texts := []string{}
	for _, key := range h.Keys(nil, tokens) {
		texts = append(texts, key.String())
	}
	return texts
}

// TestMultiprocessGolden makes every key that LMCache's own TokenHasher made.
func TestMultiprocessGolden(t *testing.T) {
	data, err := os.ReadFile(shared.File(t, "golden", "lmcache-hash.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		TokenLists map[string][]uint32 `json:"token_lists"`
		MP         struct {
			Records []struct {
				Algorithm string   `json:"algorithm"`
				ChunkSize int      `json:"chunk_size"`
				NoneHash  string   `json:"none_hash"`
				Tokens    string   `json:"tokens"`
				Chunks    []string `json:"chunks"`
			} `json:"records"`
		} `json:"mp_records"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	keys := 0
	for _, r := range file.MP.Records {
		if r.Algorithm != "blake3" {
			t.Fatalf("a record of algorithm %q: no test for it", r.Algorithm)
		}
		h := tokenHasher(t, r.ChunkSize)
		if h.NoneHash() != r.NoneHash {
			t.Errorf("none hash %s, want %s", h.NoneHash(), r.NoneHash)
		}
		if diff := cmp.Diff(r.Chunks, digests(h, file.TokenLists[r.Tokens])); diff != "" {
			t.Errorf("%s in chunks of %d (-want +got):\n%s", r.Tokens, r.ChunkSize, diff)
		}
		keys += len(r.Chunks)
	}
	if keys == 0 {
		t.Fatal("no records")
	}
	t.Logf("%d records, %d keys", len(file.MP.Records), keys)
}

// dumbDigests hashes piece by piece, with the streaming half of the library.
func dumbDigests(tokens []uint32, chunkSize int) []string {
	texts := []string{}
	prev := blake3.New()
	for range 12 {
		_, _ = prev.Write([]byte{0})
	}
	for chunk := range slices.Chunk(tokens, chunkSize) {
		if len(chunk) < chunkSize {
			break
		}
		next := blake3.New()
		_, _ = next.Write(prev.Sum(nil))
		for _, id := range chunk {
			_, _ = next.Write(binary.BigEndian.AppendUint32(nil, id))
		}
		texts = append(texts, lmcache.Digest(next.Sum(nil)).String())
		prev = next
	}
	return texts
}

func TestMultiprocessTwin(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		tokens := make([]uint32, rng.IntN(3000))
		for i := range tokens {
			tokens[i] = rng.Uint32()
		}
		chunkSize := 1 + rng.IntN(600)
		if diff := cmp.Diff(dumbDigests(tokens, chunkSize), digests(tokenHasher(t, chunkSize), tokens)); diff != "" {
			t.Fatalf("%d tokens in chunks of %d (-twin +got):\n%s", len(tokens), chunkSize, diff)
		}
	}
}

func TestTokenHasherRefusesChunkSizes(t *testing.T) {
	for _, size := range []int{-1, 0, 8193} {
		if h, err := lmcache.NewTokenHasher(size); err == nil {
			t.Errorf("chunks of %d: %v, want an error", size, h)
		}
	}
}

func BenchmarkMultiprocessKeys(b *testing.B) {
	for _, n := range []int{20_000, 131_072} {
		b.Run("tokens="+strconv.Itoa(n), func(b *testing.B) {
			h, tokens := tokenHasher(b, 256), make([]uint32, n)
			var keys []lmcache.Digest
			b.ReportAllocs()
			for b.Loop() {
				keys = h.Keys(keys[:0], tokens)
			}
			if len(keys) != n/256 {
				b.Fatal(len(keys))
			}
		})
	}
}
