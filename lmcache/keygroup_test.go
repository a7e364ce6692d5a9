package lmcache_test

import (
	"math"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/lmcache"
)

// TestNoneHash has one row for each rule of where a chain of chunks begins.
func TestNoneHash(t *testing.T) {
	const (
		zeroBytes = "1973e23848344dc43a988a9b478663803cfffe1243480253f9a3cf004b14aa7c"
		unset     = lmcache.SeedUnset
	)
	for _, test := range []struct {
		lmcache, vllm, python, seed, algorithm string
		want                                   string // or the begin of the error
	}{
		{"0.5.6", "none", "3.12", unset, "builtin", "0"},
		{"0.5.6", "none", "3.12", "0", "sha256_cbor", "0"}, // vLLM is missing: Python's hash()
		{"0.3.4", "0.9.2", "3.12", unset, "builtin", "0"},
		{"0.3.3", "0.9.2", "3.12", "0", "builtin", "11512569939066563460446379600789296176438808911994074490255290397072634980988"},
		{"0.3.3", "0.9.2", "3.12", unset, "builtin", "error: NONE_HASH of LMCache up to 0.3.3 with vLLM 0.9 is random"},
		{"0.5.6", "0.33.0", "3.12", "0", "builtin", "5313149338359954478"},
		{"0.5.6", "0.33.0", "3.12", "123", "builtin", "-6197052367682486848"},
		{"0.5.6", "0.33.0", "3.11", "0", "builtin", "5313149338359954478"},
		{"0.5.6", "0.10.0", "3.12", unset, "builtin", "error: NONE_HASH of vLLM 0.10 to 0.28 is random"},
		{"0.5.6", "0.28.1", "3.12", unset, "sha256", "error: NONE_HASH of vLLM 0.10 to 0.28 is random"},
		{"0.5.6", "0.29.0", "3.12", unset, "builtin", "error: NONE_HASH of algorithm builtin is random"},
		{"0.5.6", "0.29.0", "3.12", unset, "xxhash", "error: NONE_HASH of algorithm xxhash is random"},
		{"0.5.6", "0.33.0", "3.12", unset, "sha256", "462496962774574867"},
		{"0.5.6", "0.33.0", "3.12", unset, "sha256_cbor_64bit", "11230124004819357437"},
		{"0.4.5", "0.33.0", "3.12", "0", "sha256", zeroBytes},
		{"0.4.6", "0.33.0", "3.12", "0", "sha256", "1834058204627357124"},
		{"0.5.6", "0.33.0", "3.12", "random", "builtin", "error: PYTHONHASHSEED=random gives every engine process another NONE_HASH"},
		{"0.5.6", "0.13.0", "3.12", "0", "xxhash", "5313149338359954478"}, // vLLM knows xxhash from 0.14 on
		{"0.3.4", "0.10.0", "3.11.9", "0", "builtin", "error: builtin keys of LMCache 0.3.4 to 0.3.15 (here 0.3.4) hash None"},
		{"0.3.15", "none", "3.10", "0", "builtin", "error: builtin keys of LMCache 0.3.4 to 0.3.15 (here 0.3.15) hash None"},
		{"0.3.15", "0.11.0", "3.11", "0", "sha256", zeroBytes},
		{"0.3.9.post2", "0.11.0+cu128", "v3.12.1", "0", "builtin", "5313149338359954478"},
	} {
		g := lmcache.KeyGroup{LMCacheVersion: test.lmcache, VLLMVersion: test.vllm, PythonVersion: test.python, PythonHashSeed: test.seed, Algorithm: test.algorithm}
		h, err := lmcache.NewHasher(g)
		prefix, fails := strings.CutPrefix(test.want, "error: ")
		switch {
		case fails && (err == nil || !strings.HasPrefix(err.Error(), prefix)):
			t.Errorf("%+v: error %v, want %q", g, err, prefix)
		case !fails && err != nil:
			t.Errorf("%+v: %v", g, err)
		case !fails && h.NoneHash() != test.want:
			t.Errorf("%+v: %s, want %s", g, h.NoneHash(), test.want)
		}
		if got, want := g.Validate("x") == nil, !fails; got != want {
			t.Errorf("%+v: valid %v, want %v: %v", g, got, want, g.Validate("x"))
		}
	}
}

// TestNoneHashGiven: where it was read from an engine, nothing else must be
// known, and it must have the form that the engine has it in.
func TestNoneHashGiven(t *testing.T) {
	bytes32, bytes16 := strings.Repeat("ff", 32), strings.Repeat("0f", 16)
	for _, test := range []struct{ lmcache, algorithm, given, want string }{
		{"0.5.6", "builtin", "-7", "-7"},
		{"0.5.6", "builtin", bytes32, "18446744073709551615"},
		{"0.4.5", "builtin", bytes32, "error: is bytes"},
		{"0.5.6", "builtin", "seven", "error: "},
		{"0.5.6", "sha256", "18446744073709551615", "18446744073709551615"},
		{"0.5.6", "sha256", "18446744073709551616", "error: "},
		{"0.5.6", "sha256", "-1", "error: "},
		{"0.5.6", "sha256", bytes32, "18446744073709551615"},
		{"0.4.5", "sha256", bytes32, bytes32},
		{"0.4.5", "sha256", "7", "error: "},
		{"0.4.5", "sha256", strings.Repeat("zz", 32), "error: "},
		{"0.4.5", "xxhash", bytes16, bytes16},
		{"0.5.6", "xxhash", bytes16, "1085102592571150095"},
	} {
		g := lmcache.KeyGroup{LMCacheVersion: test.lmcache, PythonHashSeed: lmcache.SeedUnset, Algorithm: test.algorithm, NoneHash: test.given}
		h, err := lmcache.NewHasher(g)
		switch fails := strings.HasPrefix(test.want, "error: "); {
		case fails && err == nil:
			t.Errorf("%+v: no error, want one", g)
		case fails && !strings.Contains(err.Error(), strings.TrimPrefix(test.want, "error: ")):
			t.Errorf("%+v: %v", g, err)
		case !fails && err != nil:
			t.Errorf("%+v: %v", g, err)
		case !fails && h.NoneHash() != test.want:
			t.Errorf("%+v: %s, want %s", g, h.NoneHash(), test.want)
		}
	}
}

// TestSavesTail: what LMCache does by itself changed with 0.3.11.
func TestSavesTail(t *testing.T) {
	yes, no := true, false
	for _, test := range []struct {
		lmcache string
		set     *bool
		want    bool
	}{{"0.3.10", nil, true}, {"0.3.11", nil, false}, {"0.3.10", &no, false}, {"0.5.6", &yes, true}} {
		h, err := lmcache.NewHasher(lmcache.KeyGroup{LMCacheVersion: test.lmcache, SaveUnfullChunk: test.set})
		if err != nil {
			t.Fatal(err)
		}
		if h.SavesTail() != test.want || len(h.Keys(nil, make([]uint32, 300))) != 1+map[bool]int{true: 1}[test.want] {
			t.Errorf("%s: saves tail %v, want %v", test.lmcache, h.SavesTail(), test.want)
		}
	}
}

func TestConfigFaults(t *testing.T) {
	if err := lmcache.DefaultConfig().Validate("lmcache"); err != nil {
		t.Errorf("the default is not valid: %v", err)
	}
	c := lmcache.DefaultConfig()
	c.Keys.PythonHashSeed = lmcache.SeedUnset
	c.Groups = map[string]lmcache.KeyGroup{
		"old":  {LMCacheVersion: "0.3.3x.1", PythonVersion: "3", ChunkSize: -1, Algorithm: "md5", PythonHashSeed: "-1", VLLMVersion: "new"},
		"none": {NoneHash: "x"},
		"good": {PythonHashSeed: "0"},
		"2.7":  {PythonVersion: "2.7"},
	}
	c.Models = map[string]string{"m": "good", "n": "gone"}
	c.MaxKeys = 0
	c.Transfer = lmcache.TransferSeconds{CPU: -1, Remote: math.NaN(), P2P: 2}
	err := c.Validate("lmcache")
	if err == nil {
		t.Fatal("no error")
	}
	lines := strings.Split(err.Error(), "\n")
	for i, want := range []string{
		`lmcache.keys: NONE_HASH of algorithm builtin is random`,
		`lmcache.transfer_seconds_per_token.cpu: is -1; `,
		`lmcache.transfer_seconds_per_token.remote: is NaN; `,
		`lmcache.transfer_seconds_per_token.p2p: is 2; `,
		`lmcache.groups.2.7.python_version: is 2.7; `,
		`lmcache.groups.none.none_hash: is "x"; `,
		`lmcache.groups.old.python_version: is "3"; `,
		`lmcache.groups.old.vllm_version: is "new"; `,
		`lmcache.groups.old.pythonhashseed: is "-1"; `,
		`lmcache.groups.old.chunk_size: is -1; `,
		`lmcache.groups.old.algorithm: is "md5"; `,
		`lmcache.models.n: names the group "gone", which is not among the groups ["2.7" "good" "none" "old"]`,
		`lmcache.max_keys: is 0; `,
	} {
		if i >= len(lines) || !strings.HasPrefix(lines[i], want) {
			t.Fatalf("line %d is not %q of:\n%s", i, want, err)
		}
	}
	if len(lines) != 13 {
		t.Errorf("%d lines:\n%s", len(lines), err)
	}
}
