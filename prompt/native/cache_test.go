//go:build cgo && !nonative

package native_test

import (
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/firsttoken/firsttoken/prompt/native"
)

func loadCached(tb testing.TB, dir string, bytes int) *native.Tokenizer {
	tb.Helper()
	tokenizer, err := native.LoadTokenizer(dir, native.Options{CacheBytes: bytes})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(tokenizer.Close)
	return tokenizer
}

// conversations are texts with special tokens between pieces that come back, as
// chats are, some of the pieces too large for a small cache.
func conversations(rng *rand.Rand, n int) []string {
	var pieces []string
	for range 40 {
		pieces = append(pieces, randomText(rng))
	}
	pieces = append(pieces, "", " ", strings.Repeat("a long piece ", 2000))
	marks := []string{"<|im_start|>", "<|im_end|>", "<|im_start|>user\n", "<|im_end|>\n", "<|endoftext|>", "<|im_end", ""}
	var texts []string
	for range n {
		var text strings.Builder
		for range rng.IntN(12) {
			text.WriteString(marks[rng.IntN(len(marks))])
			text.WriteString(pieces[rng.IntN(len(pieces))])
		}
		texts = append(texts, text.String())
	}
	return texts
}

// The ids with a segment cache are those without, also while the cache turns
// over and many threads use it.
func TestSegmentCacheIsExact(t *testing.T) {
	plain := load(t, small, native.Fastokens)
	texts := conversations(rand.New(rand.NewPCG(11, 12)), 300)
	want := make([][]uint32, len(texts))
	for i, text := range texts {
		var err error
		if want[i], err = plain.Encode(t.Context(), text, false); err != nil {
			t.Fatal(err)
		}
	}
	if _, on := plain.CacheStats(); on {
		t.Error("a cache that nobody asked for")
	}
	for _, size := range []int{64 << 10, 8 << 20} {
		cached := loadCached(t, small, size)
		var threads sync.WaitGroup
		for thread := range 4 {
			threads.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(thread), 13))
				for range 1000 {
					i := rng.IntN(len(texts))
					got, err := cached.Encode(t.Context(), texts[i], false)
					if err != nil || !slices.Equal(got, want[i]) {
						t.Errorf("cache of %d bytes, text %.200q: error %v,\n got %.200v\nwant %.200v", size, texts[i], err, got, want[i])
						return
					}
				}
			})
		}
		threads.Wait()
		stats, on := cached.CacheStats()
		if !on || stats.Hits == 0 || stats.Misses == 0 || stats.HitBytes == 0 || stats.Bytes == 0 || stats.Bytes > uint64(size) {
			t.Errorf("cache of %d bytes: %+v, %v", size, stats, on)
		}
	}
}

// A conversation that goes on costs the pieces that are new.
func TestSegmentCacheSparesWhatWasThere(t *testing.T) {
	cached := loadCached(t, small, 1<<20)
	encode := func(text string) native.CacheStats {
		t.Helper()
		if _, err := cached.Encode(t.Context(), text, false); err != nil {
			t.Fatal(err)
		}
		stats, _ := cached.CacheStats()
		return stats
	}
	talk := "<|im_start|>user\nWhat is cached need not be computed.<|im_end|>\n<|im_start|>assistant\nI see."
	encode(talk)
	before := encode(talk) // the first time the last piece was not closed
	const turn = "<|im_start|>user\nAnd now?"
	after := encode(talk + turn)
	if after.MissBytes-before.MissBytes != uint64(len("user\nAnd now?")) {
		t.Errorf("%d bytes tokenized, want those of the new turn: before %+v, after %+v", after.MissBytes-before.MissBytes, before, after)
	}
}

// The reference engine has no cache and says so.
func TestReferenceHasNoSegmentCache(t *testing.T) {
	tokenizer, err := native.LoadTokenizer(small, native.Options{Engine: native.Tokenizers, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer tokenizer.Close()
	if stats, on := tokenizer.CacheStats(); on {
		t.Errorf("stats %+v", stats)
	}
}

// FuzzSegmentCache: a text in two pieces, with the cache and without.
func FuzzSegmentCache(f *testing.F) {
	for _, piece := range pieces {
		f.Add(piece+" x", "<|im_end|>", "y "+piece)
	}
	plain, cached := load(f, small, native.Fastokens), loadCached(f, small, 64<<10)
	f.Fuzz(func(t *testing.T, before, mark, after string) {
		text := strings.ToValidUTF8(before+mark+after, "?")
		want, err := plain.Encode(t.Context(), text, false)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if got, err := cached.Encode(t.Context(), text, false); err != nil || !slices.Equal(got, want) {
				t.Fatalf("%q: error %v,\n got %v\nwant %v", text, err, got, want)
			}
		}
	})
}
