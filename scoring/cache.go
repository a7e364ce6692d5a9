package scoring

// Match is what one endpoint holds of one sequence.
type Match struct {
	// Cached is the number of leading tokens held without a gap.
	Cached Tokens
	// Spans say where they are held, in order of position; the last one's End
	// equals Cached. Nil where nothing is held.
	Spans []Span
	// Source names the source whose word counts, and Claims are what each said,
	// where several were asked.
	Source string
	Claims []Claim
}

// Claim is what one source says that an endpoint holds of a sequence.
type Claim struct {
	Source string
	Cached Tokens
	// Used is false where the source is not believed of this endpoint, or
	// where it speaks only for endpoints that nobody else tells of.
	Used bool
}

// Span is a run of cached tokens in one storage location.
type Span struct {
	// End is the position after the run's last token; the run begins where the
	// span before it ends, the first at 0.
	End Tokens
	// Location is the source's name for the place, such as LocalCPUBackend.
	Location string
	// SecondsPerToken is how long the engine takes to bring one of its tokens
	// to where it computes; 0: they are there, or the cost is not known.
	SecondsPerToken float64
	// Remote: the tokens are held by another engine, or in a store of all of
	// them, and have to be fetched from there.
	Remote bool
}

// CacheIndex is one source of cache truth: LMCache's controller, engine events
// and the like. Implementations are safe for concurrent use and must not
// block on I/O.
type CacheIndex interface {
	// Match reports what each endpoint holds of each sequence. The result is
	// indexed [endpoint][sequence] in the order of the arguments; a nil row
	// says that the source knows nothing of that endpoint, which is not the
	// same as knowing that it holds nothing. The caller owns the result.
	Match(p *Prompt, endpoints []Endpoint) [][]Match
}
