package scoring

// Prefill is the work of computing a prompt of which cached leading tokens are
// held: the token at position i attends to i positions, so it is the sum of i
// for i = cached+1 .. prompt, a trapezoid. The engine always computes the last
// token anew, however much is cached; a prompt without tokens is no work.
func Prefill(prompt, cached Tokens) Work {
	if prompt <= 0 {
		return 0
	}
	cached = max(0, min(cached, prompt-1))
	return Work(cached+1+prompt) * Work(prompt-cached) / 2
}

// requestWork sums the prefills of all sequences of a request on an endpoint
// that holds matches of them (nil: nothing), as an area and as the tokens that
// it computes. shared is leadingShared(p); optimistic is how many leading tokens
// of each sequence requests under way bring (nil: none). saved is how many prompt
// tokens the endpoint's own cache saves.
func requestWork(p *Prompt, shared []Tokens, matches []Match, optimistic []Tokens) (area Work, uncached, saved Tokens) {
	for i := range p.Sequences {
		s := &p.Sequences[i]
		copies := max(1, s.Copies)
		if p.NoCache {
			// Every copy is computed in full too: they skip the cache as well.
			area += Work(copies) * Prefill(s.Length, 0)
			uncached += Tokens(copies) * max(0, s.Length)
			continue
		}
		if i < len(matches) {
			saved += max(0, min(matches[i].Cached, s.Length-1))
		}
		if s.Length > 0 {
			cached := beginning(p, shared, matches, optimistic, i)
			area += Prefill(s.Length, cached) + Work(copies-1)*Prefill(s.Length, s.Length-1)
			uncached += s.Length - cached + Tokens(copies-1)
		}
	}
	return area, uncached, saved
}

// beginning is how many leading tokens of a sequence need not be computed, of
// all but the last.
func beginning(p *Prompt, shared []Tokens, matches []Match, optimistic []Tokens, i int) Tokens {
	if p.NoCache {
		return 0
	}
	var n Tokens
	if i < len(matches) {
		n = matches[i].Cached
	}
	if shared != nil {
		n = max(n, shared[i])
	}
	if optimistic != nil {
		n = max(n, optimistic[i])
	}
	return max(0, min(n, p.Sequences[i].Length-1))
}

// loadSeconds is how long an endpoint takes to load what it holds of a request
// in slower tiers. An engine looks in its own memory up to the first token that
// is not there and loads all that follows, so a run that costs nothing behind
// one that does is loaded as that one is. What an earlier sequence of the
// request has in common is loaded once, and what requests under way bring not at
// all. A tier of the engine's own is taken for its memory below slow seconds a
// token; what another engine holds is fetched whatever it costs.
func loadSeconds(p *Prompt, shared []Tokens, matches []Match, optimistic []Tokens, slow float64) float64 {
	if p.NoCache {
		return 0
	}
	var seconds float64
	for i := range matches {
		if i == len(p.Sequences) {
			break
		}
		begin, brought := there(shared, optimistic, i)
		last := p.Sequences[i].Length - 1 // computed anew
		rate := 0.0
		for _, s := range matches[i].Spans {
			if s.End > brought && s.SecondsPerToken > 0 && (s.Remote || s.SecondsPerToken > slow) {
				rate = s.SecondsPerToken
			}
			if end := min(s.End, last); end > begin {
				seconds += rate * float64(end-begin)
				begin = end
			}
		}
	}
	return seconds
}

// there is how many leading tokens of a sequence are in the engine's memory once
// it comes to it, and how many of them are so before the request's first
// sequence.
func there(shared, optimistic []Tokens, i int) (begin, brought Tokens) {
	if optimistic != nil {
		brought = optimistic[i]
	}
	begin = brought
	if shared != nil {
		begin = max(begin, shared[i])
	}
	return begin, brought
}

// remoteTokens is how many of a request's cached tokens come from another
// engine: all from the first one on that does, since what is behind a gap of its
// own memory is fetched with the rest.
func remoteTokens(p *Prompt, shared []Tokens, matches []Match, optimistic []Tokens) (n Tokens) {
	if p.NoCache {
		return 0
	}
	for i := range matches {
		if i == len(p.Sequences) {
			break
		}
		begin, brought := there(shared, optimistic, i)
		remote := false
		last := p.Sequences[i].Length - 1
		for _, s := range matches[i].Spans {
			remote = remote || s.Remote && s.End > brought
			if end := min(s.End, last); end > begin {
				if remote {
					n += end - begin
				}
				begin = end
			}
		}
	}
	return n
}

// computedWork is how much of requestWork is over once the endpoint has computed
// so many leading tokens of each sequence (nil: none): the area, and the tokens
// that it stands for.
func computedWork(p *Prompt, shared []Tokens, matches []Match, optimistic, computed []Tokens) (area Work, tokens Tokens) {
	for i, done := range computed {
		n := p.Sequences[i].Length
		begin := beginning(p, shared, matches, optimistic, i)
		if done = min(done, n-1); done > begin {
			area += Prefill(n, begin) - Prefill(n, done)
			tokens += done - begin
		}
	}
	return area, tokens
}

// sharedBlock is the granularity at which the prompts of one request are
// compared: the engine's prefix cache shares whole blocks of 16 tokens.
const sharedBlock = 16

// leadingShared is, for each sequence, how many of its leading tokens an
// earlier sequence of the same request has too, in whole blocks: the engine
// computes those once. Nil where the request has one sequence. The cost is
// linear in the tokens, however many sequences there are.
func leadingShared(p *Prompt) []Tokens {
	if len(p.Sequences) < 2 {
		return nil
	}
	shared := make([]Tokens, len(p.Sequences))
	seen := make(map[uint64]struct{})
	for i := range p.Sequences {
		ids := p.Sequences[i].TokenIDs
		ids = ids[:min(len(ids), int(p.Sequences[i].Usable))]
		chain, leading := uint64(0), true
		for end := sharedBlock; end <= len(ids); end += sharedBlock {
			chain = ChainBlock(chain, ids[end-sharedBlock:end])
			if _, ok := seen[chain]; ok && leading {
				shared[i] = Tokens(end)
				continue
			}
			leading = false
			seen[chain] = struct{}{}
		}
	}
	return shared
}

// ChainBlock hashes a block of token ids together with everything before it:
// prev is the hash of the block before, 0 for the first. Two prompts with the
// same hash at the same block size share all tokens up to there. The hash is
// our own, independent of any engine's; a collision would misjudge one
// request's work, so 64 bits of mixing are plenty.
func ChainBlock(prev uint64, ids []uint32) uint64 {
	// A multiplication waits for the one before it in its lane, so there are four.
	a, b, c, d := prev^0x9e3779b97f4a7c15, uint64(0xbf58476d1ce4e5b9), uint64(0x94d049bb133111eb), uint64(0xd6e8feb86659fd93)
	for ; len(ids) >= 8; ids = ids[8:] {
		a = stir(a, uint64(ids[0])|uint64(ids[1])<<32)
		b = stir(b, uint64(ids[2])|uint64(ids[3])<<32)
		c = stir(c, uint64(ids[4])|uint64(ids[5])<<32)
		d = stir(d, uint64(ids[6])|uint64(ids[7])<<32)
	}
	for _, id := range ids {
		a = stir(a, uint64(id))
	}
	return stir(stir(stir(a, b), c), d)
}

// stir loses nothing: for either argument the result tells the other.
func stir(h, word uint64) uint64 {
	h = (h ^ word) * 0xff51afd7ed558ccd
	return h ^ h>>32
}
