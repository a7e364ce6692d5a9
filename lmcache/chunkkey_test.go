package lmcache_test

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"strconv"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/lmcache"
)

// dumbBuiltin is hash((prev, tuple(tokens), ())) straight from CPython's
// definition, in numbers without bounds.
func dumbBuiltin(prev *big.Int, tokens []uint32) *big.Int {
	number := func(text string) *big.Int {
		n, _ := new(big.Int).SetString(text, 10)
		return n
	}
	modulus := number("18446744073709551616")
	signed := func(n *big.Int) *big.Int {
		if n.Bit(63) == 1 {
			return new(big.Int).Sub(n, modulus)
		}
		return n
	}
	hashInt := func(n *big.Int) *big.Int {
		h := new(big.Int).Rem(n, number("2305843009213693951"))
		if h.Cmp(big.NewInt(-1)) == 0 {
			return big.NewInt(-2)
		}
		return h
	}
	hashTuple := func(items ...*big.Int) *big.Int {
		acc := number("2870177450012600261")
		for _, item := range items {
			lane := new(big.Int).Mod(item, modulus)
			acc.Add(acc, lane.Mul(lane, number("14029467366897019727"))).Mod(acc, modulus)
			high := new(big.Int).Rsh(acc, 33)
			acc.Lsh(acc, 31).Add(acc, high).Mod(acc, modulus)
			acc.Mul(acc, number("11400714785074694791")).Mod(acc, modulus)
		}
		end := new(big.Int).Xor(number("2870177450012600261"), big.NewInt(3527539))
		acc.Add(acc, end.Xor(end, big.NewInt(int64(len(items))))).Mod(acc, modulus)
		if acc.Cmp(number("18446744073709551615")) == 0 {
			return big.NewInt(1546275796)
		}
		return signed(acc)
	}
	ids := make([]*big.Int, len(tokens))
	for i, id := range tokens {
		ids[i] = hashInt(new(big.Int).SetUint64(uint64(id)))
	}
	return hashTuple(hashInt(prev), hashTuple(ids...), hashTuple())
}

// dumbCBOR is the folded SHA-256 of what a CBOR library makes of it.
func dumbCBOR(tb testing.TB, prev uint64, tokens []uint32) uint64 {
	tb.Helper()
	mode, err := cbor.CanonicalEncOptions().EncMode()
	if err != nil {
		tb.Fatal(err)
	}
	data, err := mode.Marshal([]any{prev, tokens, []any{}})
	if err != nil {
		tb.Fatal(err)
	}
	digest := sha256.Sum256(data)
	return binary.BigEndian.Uint64(digest[:])
}

// tokensOf reads token ids off fuzzer's bytes, small ones and large ones.
func tokensOf(data []byte) []uint32 {
	var tokens []uint32
	for ; len(data) >= 4; data = data[4:] {
		id := binary.LittleEndian.Uint32(data)
		tokens = append(tokens, id>>(id%32))
	}
	return tokens
}

// checkTwins compares the keys of tokens with those of the dumb twins.
func checkTwins(t *testing.T, tokens []uint32, chunkSize int, saveTail bool, none int64) {
	t.Helper()
	h, err := lmcache.NewHasher(lmcache.KeyGroup{ChunkSize: chunkSize, SaveUnfullChunk: &saveTail, NoneHash: strconv.FormatInt(none, 10)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := lmcache.NewHasher(lmcache.KeyGroup{ChunkSize: chunkSize, SaveUnfullChunk: &saveTail, NoneHash: strconv.FormatUint(uint64(none), 10), Algorithm: "sha256_cbor"})
	if err != nil {
		t.Fatal(err)
	}
	want, wantCBOR := []string{}, []string{}
	prev, prevCBOR := big.NewInt(none), uint64(none)
	for chunk := range slices.Chunk(tokens, chunkSize) {
		if len(chunk) < chunkSize && !saveTail {
			continue
		}
		prev, prevCBOR = dumbBuiltin(prev, chunk), dumbCBOR(t, prevCBOR, chunk)
		want, wantCBOR = append(want, prev.String()), append(wantCBOR, strconv.FormatUint(prevCBOR, 10))
	}
	if diff := cmp.Diff(want, h.Texts(tokens)); diff != "" {
		t.Errorf("builtin, chunks of %d (-twin +got):\n%s", chunkSize, diff)
	}
	if diff := cmp.Diff(wantCBOR, c.Texts(tokens)); diff != "" {
		t.Errorf("sha256_cbor, chunks of %d (-twin +got):\n%s", chunkSize, diff)
	}
	for _, h := range []*lmcache.Hasher{h, c} {
		texts := h.Texts(tokens)
		for i, key := range h.Keys([]lmcache.Key{99}, tokens)[1:] {
			signed, unsigned := strconv.FormatInt(int64(key), 10), strconv.FormatUint(uint64(key), 10)
			if texts[i] != signed && texts[i] != unsigned {
				t.Errorf("key %d is %s, its text %s", i, unsigned, texts[i])
			}
		}
	}
}

func TestKeysTwins(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		data := make([]byte, 4*rng.IntN(200))
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		checkTwins(t, tokensOf(data), 1+rng.IntN(70), rng.IntN(2) == 0, int64(rng.Uint64()))
	}
	for _, none := range []int64{-1, 0, 1, 1<<61 - 1, 1 << 61, -(1<<61 - 1), -1 << 63, 1<<63 - 1} {
		checkTwins(t, []uint32{0, 1<<32 - 1, 23, 24, 255, 256, 65535, 65536}, 3, true, none)
	}
}

func FuzzKeys(f *testing.F) {
	f.Add([]byte("0123456789abcdef"), 3, true, int64(-1))
	f.Fuzz(func(t *testing.T, data []byte, chunkSize int, saveTail bool, none int64) {
		checkTwins(t, tokensOf(data), 1+int(uint(chunkSize)%8192), saveTail, none)
	})
}

// TestDigestKeys: a digest that LMCache does not fold travels as bytes; its Key
// is the first eight of them.
func TestDigestKeys(t *testing.T) {
	h, err := lmcache.NewHasher(lmcache.KeyGroup{LMCacheVersion: "0.4.1", Algorithm: "sha256_cbor", ChunkSize: 2})
	if err != nil {
		t.Fatal(err)
	}
	tokens := []uint32{1, 2, 3, 4}
	for i, key := range h.Keys(nil, tokens) {
		digest, err := hex.DecodeString(h.Texts(tokens)[i])
		if err != nil || len(digest) != 32 {
			t.Fatalf("text %q: %v", h.Texts(tokens)[i], err)
		}
		if want := lmcache.Key(binary.BigEndian.Uint64(digest)); key != want {
			t.Errorf("key %d is %x, want %x", i, key, want)
		}
	}
}

// TestKeysAllocate: with room given, keys cost no memory.
func TestKeysAllocate(t *testing.T) {
	tokens := make([]uint32, 10_000)
	for _, algorithm := range []string{"builtin", "sha256_cbor", "sha256", "xxhash"} {
		h, err := lmcache.NewHasher(lmcache.KeyGroup{Algorithm: algorithm})
		if err != nil {
			t.Fatal(err)
		}
		var keys []lmcache.Key
		keys = h.Keys(keys, tokens)
		if n := testing.AllocsPerRun(100, func() { keys = h.Keys(keys[:0], tokens) }); n >= 1 && !raceDetector {
			t.Errorf("%s: %v allocations for each prompt", algorithm, n)
		}
	}
}

func BenchmarkKeys(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	tokens := make([]uint32, 100_000)
	for i := range tokens {
		tokens[i] = rng.Uint32N(152_064)
	}
	for _, algorithm := range []string{"builtin", "sha256_cbor", "sha256", "xxhash", "xxhash_cbor"} {
		b.Run(fmt.Sprintf("%s/tokens=%d", algorithm, len(tokens)), func(b *testing.B) {
			h, err := lmcache.NewHasher(lmcache.KeyGroup{Algorithm: algorithm})
			if err != nil {
				b.Fatal(err)
			}
			var keys []lmcache.Key
			b.ReportAllocs()
			for b.Loop() {
				keys = h.Keys(keys[:0], tokens)
			}
			if len(keys) != 390 {
				b.Fatal(len(keys))
			}
		})
	}
}
