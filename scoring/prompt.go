package scoring

import "time"

// Tokens counts tokens.
type Tokens int

// Prompt is the prefill work of one HTTP request as the engine will see it.
// Whoever built it must not change it after handing it to Pick; readers share
// it without copying.
type Prompt struct {
	// Model is the name the client asked for, or where that is an alias the model
	// behind it; empty where it named none.
	Model string
	// Alias is the name that the client used in place of Model, which engines do
	// not know; empty: it used Model. AliasAt is where it stands in the request's
	// body, quotes included: the first byte's index, and the one after the last.
	Alias   string
	AliasAt [2]int
	// Sequences are the prompts of the request, one for chat, one per element
	// for a completion with a list of prompts. Empty: the request has no
	// prefill that we can size (another path, no body); it is routed by load.
	Sequences []Sequence
	// Streamed: the first chunk of the answer's body is the first token. False:
	// the body comes when everything is generated.
	Streamed bool
	// NoCache: the engine computes every position anew (prompt_logprobs), so
	// nothing that is cached counts.
	NoCache bool
	// Salt is the request's cache_salt: only prompts with the same salt share
	// blocks in the engine's own cache. Empty: none.
	Salt string
	// Source says where the token ids come from, or why there are none.
	Source TokenSource
	// BlockTokens is the size of the blocks of the sequences' Chain; 0: there is
	// none. FillChain sets both.
	BlockTokens Tokens
	// Received is when the first part of the request came; zero: not known. The
	// choice does not depend on it.
	Received time.Time
	// Policy is the id of the policy that ranks this request; empty: its model's,
	// else the configured one. It must be one of PolicyIDs; any other counts as
	// empty.
	Policy string
	// Session is the value of the session key: requests with the same one belong
	// together. Empty: none was sent.
	Session string
	// Arm labels the part of the traffic that the request is counted with; empty:
	// none. The choice does not depend on it.
	Arm string
	// Only restricts the choice to endpoints with one of these addresses or names;
	// nil: any.
	Only []string
}

// Sequence is one prompt of a request.
type Sequence struct {
	// TokenIDs are the prompt's token ids, as the engine's own tokenizer gives
	// them. Nil where only the length is estimated.
	TokenIDs []uint32
	// Length is len(TokenIDs), or the estimate.
	Length Tokens
	// Usable is the number of leading token ids that a cache entry can be
	// compared with; what follows (from the first image on) is not
	// predictable. 0 where TokenIDs is nil.
	Usable Tokens
	// Copies is the number of answers wanted for it (n, at least 1): one
	// prefill, and Copies-1 that find everything but the last token cached.
	Copies int
	// Chain has the hash of each whole block of the usable token ids, together
	// with all before it: ChainBlock from 0 on. What must not be shared, by
	// adapter and salt, is told apart by BlockKey.
	Chain []uint64
}

// TokenSource says how a prompt got its tokens. The values label metrics.
type TokenSource string

// The sources, from best to worst.
const (
	// TokensNative: rendered and encoded in this process.
	TokensNative TokenSource = "native"
	// TokensGiven: the client sent token ids.
	TokensGiven TokenSource = "given"
	// TokensRemote: an engine's render or tokenize endpoint was asked.
	TokensRemote TokenSource = "remote"
	// TokensEstimated: the length is guessed from the bytes, no token ids.
	TokensEstimated TokenSource = "estimated"
	// TokensNone: the request has no prompt (another path, no body).
	TokensNone TokenSource = "none"
)

// Length is the number of prompt tokens over all sequences, each counted once
// whatever its Copies.
func (p *Prompt) Length() Tokens {
	var n Tokens
	for i := range p.Sequences {
		n += p.Sequences[i].Length
	}
	return n
}

// chainBlock is the block size of FillChain: four blocks of vLLM's default.
// Smaller ones cost more than the last tokens of a prefix are worth.
const chainBlock = 64

// FillChain hashes the token ids, once for all who compare prompts. It is for
// whoever built the prompt, before it is handed to anybody.
func (p *Prompt) FillChain() {
	p.BlockTokens = chainBlock
	for i := range p.Sequences {
		s := &p.Sequences[i]
		ids := s.TokenIDs[:min(len(s.TokenIDs), int(s.Usable))]
		s.Chain = make([]uint64, 0, len(ids)/chainBlock)
		var prev uint64
		for end := chainBlock; end <= len(ids); end += chainBlock {
			prev = ChainBlock(prev, ids[end-chainBlock:end])
			s.Chain = append(s.Chain, prev)
		}
	}
}
