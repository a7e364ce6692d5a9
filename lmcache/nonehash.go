package lmcache

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"strconv"
)

// environment is what the engine runs in.
type environment struct {
	lmcache, python, vllm version
	hasVLLM               bool
	seed                  string // PYTHONHASHSEED
	hasSeed               bool
}

// sipRounds is how Python hashes strings: SipHash-1-3 from 3.11 on, 2-4 before.
func (e environment) sipRounds() (c, d int) {
	if e.python.before(3, 11, 0) {
		return 2, 4
	}
	return 1, 3
}

// deriveNone is the NONE_HASH that LMCache takes from vLLM, or makes itself.
func (s *scheme) deriveNone(e environment) (link, string, error) {
	switch {
	case !e.hasVLLM, e.vllm.before(0, 10, 0) && !e.lmcache.before(0, 3, 4):
		return s.integer(new(big.Int))
	case e.vllm.before(0, 10, 0):
		if !e.hasSeed {
			return link{}, "", errors.New("NONE_HASH of LMCache up to 0.3.3 with vLLM 0.9 is random in every engine process that has no PYTHONHASHSEED; " +
				"set PYTHONHASHSEED=0 for the engines and pythonhashseed here, or give none_hash")
		}
		digest := sha256.Sum256(appendPickledString(nil, e.seed))
		return s.integer(new(big.Int).SetBytes(digest[:]))
	case e.hasSeed:
		return s.hashString(e, e.seed)
	case e.vllm.before(0, 29, 0):
		return link{}, "", errors.New("NONE_HASH of vLLM 0.10 to 0.28 is random in every engine process that has no PYTHONHASHSEED; " +
			"set PYTHONHASHSEED=0 for the engines and pythonhashseed here, or give none_hash")
	case s.function.steady:
		return s.hashString(e, "vllm-none-hash")
	default:
		return link{}, "", fmt.Errorf("NONE_HASH of algorithm %s is random in every engine process that has no PYTHONHASHSEED; "+
			"set PYTHONHASHSEED=0 for the engines and pythonhashseed here, use algorithm sha256_cbor, or give none_hash", s.function.name)
	}
}

// hashString is the function applied to a Python string.
func (s *scheme) hashString(e environment, text string) (link, string, error) {
	if s.function != builtin {
		return s.digest(s.function.sum(s.function.appendString(nil, text)))
	}
	if e.seed == "random" {
		return link{}, "", errors.New("PYTHONHASHSEED=random gives every engine process another NONE_HASH with algorithm builtin; " +
			"set PYTHONHASHSEED=0 for the engines and pythonhashseed here, or give none_hash")
	}
	seed, err := strconv.ParseUint(e.seed, 10, 32)
	if err != nil {
		return link{}, "", fmt.Errorf("PYTHONHASHSEED %q: %w", e.seed, err)
	}
	return s.integer(big.NewInt(hashString(uint32(seed), text, e.sipRounds)))
}

// parseNone reads a NONE_HASH that was read from an engine.
func (s *scheme) parseNone(text string) (link, string, error) {
	if size := len(text); size == 2*sha256.Size || s.function != builtin && size == 2*s.function.size {
		if digest, err := hex.DecodeString(text); err == nil {
			if s.function == builtin && !s.folded {
				return link{}, "", errors.New("is bytes, which builtin of LMCache before 0.4.6 hashes with a random key: nothing can match; set PYTHONHASHSEED=0 for the engines")
			}
			var l link
			l.size = copy(l.bytes[:], digest)
			return s.digest(l)
		}
	}
	n, ok := new(big.Int).SetString(text, 10)
	switch {
	case s.function == builtin && ok:
		return s.integer(n)
	case s.function == builtin:
		return link{}, "", fmt.Errorf("is %q; write a decimal integer", text)
	case !s.folded:
		return link{}, "", fmt.Errorf("is %q; write the bytes in hex, %d digits", text, 2*s.function.size)
	case ok && n.IsUint64():
		return s.integer(n)
	default:
		return link{}, "", fmt.Errorf("is %q; write a decimal integer below 2^64, or the bytes in hex, %d digits", text, 2*s.function.size)
	}
}

// integer is a NONE_HASH that is a number of any size.
func (s *scheme) integer(n *big.Int) (link, string, error) {
	if s.function == builtin {
		return link{n: uint64(hashBigInt(n))}, n.String(), nil //nolint:gosec // the bits of a signed integer
	}
	return link{n: n.Uint64()}, n.String(), nil
}

// digest is a NONE_HASH that is bytes.
func (s *scheme) digest(d link) (link, string, error) {
	if !s.folded {
		return d, hex.EncodeToString(d.bytes[:d.size]), nil
	}
	return s.integer(new(big.Int).SetUint64(binary.BigEndian.Uint64(d.bytes[:8])))
}
