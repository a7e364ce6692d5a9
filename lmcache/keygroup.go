package lmcache

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// KeyGroup is everything that decides which chunk keys an engine's LMCache
// makes of given token ids. Engines that share these settings are a group.
// Empty fields are filled in by Or.
type KeyGroup struct {
	// LMCacheVersion is the LMCache release in the engines, such as 0.5.6.
	LMCacheVersion string `yaml:"lmcache_version"`
	// VLLMVersion is the vLLM release of the engines, such as 0.33.0; none where
	// LMCache cannot import vLLM.
	VLLMVersion string `yaml:"vllm_version"`
	// PythonVersion is the engines' CPython, such as 3.12.
	PythonVersion string `yaml:"python_version"`
	// PythonHashSeed is PYTHONHASHSEED in the engines' environment; unset where
	// it is not set there.
	PythonHashSeed string `yaml:"pythonhashseed"`
	// Algorithm is LMCache's pre_caching_hash_algorithm: builtin, sha256,
	// sha256_cbor, sha256_cbor_64bit, xxhash or xxhash_cbor. As in LMCache, an
	// algorithm that the engine's vLLM does not offer is builtin.
	Algorithm string `yaml:"algorithm"`
	// ChunkSize is LMCache's chunk_size in tokens, 1 to 8192.
	ChunkSize int `yaml:"chunk_size"`
	// SaveUnfullChunk is LMCache's save_unfull_chunk: whether the end of a prompt
	// that does not fill a chunk is kept too. Left out: what LMCache does by
	// itself, true up to 0.3.10 and false from then on.
	SaveUnfullChunk *bool `yaml:"save_unfull_chunk"`
	// NoneHash is the hash that begins every chain of chunks, where it is random
	// in the engine and was read from it: a decimal integer, or the bytes in
	// hex. Empty: it follows from the other settings.
	NoneHash string `yaml:"none_hash"`
}

// Words of a KeyGroup for what is not there.
const (
	NoVLLM    = "none"  // LMCache cannot import vLLM
	SeedUnset = "unset" // PYTHONHASHSEED is not set
)

// maxChunkSize keeps a chunk below the 64 KiB at which Python's pickle begins a
// second frame.
const maxChunkSize = 8192

// DefaultKeyGroup is LMCache's own defaults in the engines of today, with the
// PYTHONHASHSEED=0 that LMCache asks for.
func DefaultKeyGroup() KeyGroup {
	return KeyGroup{
		LMCacheVersion: "0.5.6", VLLMVersion: "0.33.0", PythonVersion: "3.12", PythonHashSeed: "0",
		Algorithm: "builtin", ChunkSize: 256,
	}
}

// Or fills the empty fields of g with those of base, but for NoneHash: that
// was read from one engine and says nothing of another group's.
func (g KeyGroup) Or(base KeyGroup) KeyGroup {
	for _, f := range []struct{ to, from *string }{
		{&g.LMCacheVersion, &base.LMCacheVersion},
		{&g.VLLMVersion, &base.VLLMVersion},
		{&g.PythonVersion, &base.PythonVersion},
		{&g.PythonHashSeed, &base.PythonHashSeed},
		{&g.Algorithm, &base.Algorithm},
	} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
	if g.ChunkSize == 0 {
		g.ChunkSize = base.ChunkSize
	}
	if g.SaveUnfullChunk == nil {
		g.SaveUnfullChunk = base.SaveUnfullChunk
	}
	return g
}

// Validate joins all faults, each beginning with its path below path. Settings
// that are fine one by one but leave the keys unpredictable are a fault too.
func (g KeyGroup) Validate(path string) error {
	_, faults := g.Or(DefaultKeyGroup()).scheme()
	for i, f := range faults {
		if f.key == "" {
			faults[i].key = path
		} else {
			faults[i].key = path + "." + f.key
		}
	}
	return joinFaults(faults)
}

// fault is what is wrong with one setting, or with several where key is empty.
type fault struct {
	key, text string
}

func joinFaults(faults []fault) error {
	errs := make([]error, 0, len(faults))
	for _, f := range faults {
		if f.key == "" {
			errs = append(errs, errors.New(f.text))
		} else {
			errs = append(errs, errors.New(f.key+": "+f.text))
		}
	}
	return errors.Join(errs...)
}

// scheme is what a KeyGroup comes down to: key = function((previous, tokens,
// extra)), previous of the first chunk being none.
type scheme struct {
	function  *function
	extra     extra
	folded    bool // a digest becomes the integer of its first 8 bytes
	none      link
	noneText  string
	chunkSize int
	saveTail  bool
}

// extra is the third item that is hashed.
type extra int

const (
	extraAbsent extra = iota // a pair is hashed
	extraNone
	extraEmpty // the empty tuple
)

// scheme works the settings out; g has no empty field that must not be empty.
func (g KeyGroup) scheme() (scheme, []fault) {
	var faults []fault
	version := func(key, text, example string) (v version) {
		v, err := parseVersion(text, example)
		if err != nil {
			faults = append(faults, fault{key, err.Error()})
		}
		return v
	}
	e := environment{lmcache: version("lmcache_version", g.LMCacheVersion, "0.5.6"), python: version("python_version", g.PythonVersion, "3.12")}
	if e.hasVLLM = g.VLLMVersion != NoVLLM; e.hasVLLM {
		e.vllm = version("vllm_version", g.VLLMVersion, "0.33.0")
	}
	if len(faults) == 0 && e.python.before(3, 8, 0) {
		faults = append(faults, fault{"python_version", fmt.Sprintf("is %s; hashing of tuples is known from 3.8 on", g.PythonVersion)})
	}
	if e.hasSeed = g.PythonHashSeed != SeedUnset; e.hasSeed {
		e.seed = g.PythonHashSeed
		if _, err := strconv.ParseUint(e.seed, 10, 32); err != nil && e.seed != "random" {
			faults = append(faults, fault{"pythonhashseed", fmt.Sprintf("is %q; write a number from 0 to 4294967295, random, or unset", e.seed)})
		}
	}
	s := scheme{chunkSize: g.ChunkSize}
	if s.chunkSize < 1 || s.chunkSize > maxChunkSize {
		faults = append(faults, fault{"chunk_size", fmt.Sprintf("is %d; write a number from 1 to %d, such as 256", g.ChunkSize, maxChunkSize)})
	}
	if !slices.Contains(algorithms, g.Algorithm) {
		faults = append(faults, fault{"algorithm", fmt.Sprintf("is %q; write one of %s (LMCache itself takes any other name for builtin)", g.Algorithm, strings.Join(algorithms, ", "))})
	}
	if len(faults) > 0 {
		return s, faults
	}

	s.function = e.function(g.Algorithm)
	switch {
	case e.lmcache.before(0, 3, 4):
		s.extra = extraAbsent
	case e.lmcache.before(0, 4, 0):
		s.extra = extraNone
	default:
		s.extra = extraEmpty
	}
	s.folded = !e.lmcache.before(0, 4, 6)
	s.saveTail = e.lmcache.before(0, 3, 11)
	if g.SaveUnfullChunk != nil {
		s.saveTail = *g.SaveUnfullChunk
	}
	if s.function == builtin && s.extra == extraNone && e.python.before(3, 12, 0) {
		return s, []fault{{"", fmt.Sprintf("builtin keys of LMCache 0.3.4 to 0.3.15 (here %s) hash None, which Python below 3.12 (here %s) "+
			"does by its address in memory: every engine process has other keys; use algorithm sha256_cbor, Python 3.12, or LMCache 0.4.1 or newer",
			g.LMCacheVersion, g.PythonVersion)}}
	}
	var err error
	if g.NoneHash != "" {
		if s.none, s.noneText, err = s.parseNone(g.NoneHash); err != nil {
			faults = []fault{{"none_hash", err.Error()}}
		}
	} else if s.none, s.noneText, err = s.deriveNone(e); err != nil {
		faults = []fault{{"", err.Error()}}
	}
	return s, faults
}

// version is the numbers that a release begins with.
type version [3]int

// parseVersion reads 3.12, 0.5.6, v0.5.6, 0.3.9.post2, 0.11.0+cu128 and the
// like; what follows the third number is of no concern here. The example is for
// the error.
func parseVersion(text, example string) (version, error) {
	var v version
	rest, parts := strings.TrimPrefix(text, "v"), 0
	for parts < len(v) {
		digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
		n, err := strconv.Atoi(digits)
		if err != nil {
			break
		}
		v[parts] = n
		parts++
		rest = rest[len(digits):]
		if !strings.HasPrefix(rest, ".") {
			break
		}
		rest = rest[1:]
	}
	if parts < 2 {
		return version{}, fmt.Errorf("is %q; write a release such as %s", text, example)
	}
	return v, nil
}

func (v version) before(major, minor, patch int) bool {
	return slices.Compare(v[:], []int{major, minor, patch}) < 0
}
