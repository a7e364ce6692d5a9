package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"

	"github.com/firsttoken/firsttoken/scoring"
)

// blockNamer names the blocks of prompts for decision records: equal names at
// equal places are equal prefixes, and that is all they tell. The hashes that
// the service itself compares will not do: whoever has a record could compute
// those of a guessed prompt, block by block. So names are keyed with a secret
// that this process made and never shows. Safe for concurrent use.
type blockNamer struct {
	secret [32]byte // set once
}

func newBlockNamer() *blockNamer {
	n := new(blockNamer)
	_, _ = rand.Read(n.secret[:]) // never fails
	return n
}

// namedBlocks is what a record needs to name a prompt's blocks, and its session,
// later. It keeps no token id alive.
type namedBlocks struct {
	model, salt, session string
	chain                []uint64
	size                 scoring.Tokens
}

// blocksOf are those of a request's first prompt.
func blocksOf(p *scoring.Prompt, model string) namedBlocks {
	b := namedBlocks{model: model, salt: p.Salt, session: p.Session}
	if len(p.Sequences) > 0 && len(p.Sequences[0].Chain) > 0 {
		b.chain, b.size = p.Sequences[0].Chain, p.BlockTokens
	}
	return b
}

// names are those of a prompt's blocks. Prompts for different models, or with
// different cache_salts, have none in common.
func (n *blockNamer) names(b namedBlocks) []uint64 {
	mac := hmac.New(sha256.New, n.secret[:])
	_, _ = mac.Write([]byte(b.model + "\x00" + b.salt)) // never fails; a model's name has no zero byte
	// One block of SHA-256 a name: the key of this model and salt, which the
	// secret hides, before the hash, cut to what tells blocks apart.
	var keyed [40]byte
	mac.Sum(keyed[:0])
	names := make([]uint64, len(b.chain))
	for i, hash := range b.chain {
		binary.LittleEndian.PutUint64(keyed[32:], hash)
		sum := sha256.Sum256(keyed[:])
		names[i] = binary.LittleEndian.Uint64(sum[:])
	}
	return names
}

// session names the request's session; 0: it has none.
func (n *blockNamer) session(b namedBlocks) uint64 {
	if b.session == "" {
		return 0
	}
	mac := hmac.New(sha256.New, n.secret[:])
	_, _ = mac.Write([]byte("\x00session\x00" + b.session)) // never fails; no block's name begins with a zero byte
	var sum [sha256.Size]byte
	mac.Sum(sum[:0])
	return max(1, binary.LittleEndian.Uint64(sum[:]))
}
