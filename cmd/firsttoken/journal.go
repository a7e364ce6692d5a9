package main

import (
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/firsttoken/firsttoken/extproc"
	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
	"github.com/firsttoken/firsttoken/scoring"
)

// journal keeps the last decisions and what became of them, for /decisions. It
// is an extproc.Observer, safe for concurrent use.
//
// A record holds numbers only: keeping the decisions themselves would keep
// their token ids, which for a thousand long prompts are hundreds of megabytes.
type journal struct {
	alternates int         // addresses told to Envoy after the choice; set once
	namer      *blockNamer // set once

	// file gets each record when its request has ended; nil: none. Set once.
	file *decisionFile

	mu sync.Mutex // guards the following fields
	// ring has the records in order of decision, the oldest at next once it is
	// full. Its length is what bounds the journal.
	ring []*journalEntry
	next int
	// byID has exactly the records of ring, and with a file those whose requests
	// have not ended, which the ledger bounds by their age.
	byID map[string]*journalEntry
}

// journalEntry is a record, and the blocks of its prompt, which are named only
// for whoever asks: eight bytes for 64 tokens of the prompt.
type journalEntry struct {
	record *firsttokenv1.Decision // without the names
	blocks namedBlocks
	kept   bool // in the ring
}

// journalSize is how many decisions /decisions looks back: enough to find a
// request of the last minutes, or on a busy service of the last seconds. A
// record takes about 130 bytes for each endpoint that was weighed.
const journalSize = 1000

func newJournal(size, alternates int) *journal {
	return &journal{
		alternates: alternates,
		namer:      newBlockNamer(),
		ring:       make([]*journalEntry, 0, size),
		byID:       make(map[string]*journalEntry, size),
	}
}

// Decided records a decision in place of the oldest one.
func (j *journal) Decided(d *scoring.Decision) {
	record := j.record(d)
	entry := &journalEntry{record, blocksOf(d.Prompt, d.Model), true}
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.ring) < cap(j.ring) {
		j.ring = append(j.ring, entry)
	} else {
		oldest := j.ring[j.next]
		if oldest.kept = false; j.file == nil || oldest.record.GetEnded() != nil {
			delete(j.byID, oldest.record.GetId())
		}
		j.ring[j.next] = entry
		j.next = (j.next + 1) % len(j.ring)
	}
	j.byID[record.GetId()] = entry
}

// FirstToken completes a record that is still there.
func (j *journal) FirstToken(d *scoring.Decision, ttft time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.byID[d.ID]; e != nil {
		e.record.TtftSeconds = new(ttft.Seconds())
	}
}

// Ended completes a record that is still there. served is the address that
// answered, empty where it is not known.
func (j *journal) Ended(d *scoring.Decision, outcome scoring.Outcome, served string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.byID[d.ID]
	if e == nil {
		return
	}
	e.record.Outcome = new(string(outcome))
	e.record.Ended = timestamppb.Now()
	if served != "" {
		noteServed(e.record, served)
	}
	if j.file == nil {
		return
	}
	j.file.add(e.copy())
	if !e.kept {
		delete(j.byID, d.ID)
	}
}

// noteServed notes the address that answered, and what was weighed for it.
func noteServed(record *firsttokenv1.Decision, served string) {
	record.ServedAddress = new(served)
	for i, c := range record.GetCandidates() {
		if c.GetAddress() != served {
			continue
		}
		record.ServedEndpoint = new(c.GetEndpoint())
		if i > 0 {
			record.ServedEstimateSeconds, record.ServedCachedTokens = new(c.GetEstimateSeconds()), c.CachedTokens
			record.ExpectedGainSeconds = new(c.GetEstimateSeconds() - record.GetCandidates()[0].GetEstimateSeconds())
		}
	}
}

// Rescued completes a record that is still there with its tries.
func (j *journal) Rescued(id string, r extproc.Rescue) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.byID[id]
	if e == nil {
		return
	}
	record := e.record
	record.DeadlineSeconds, record.Tries, record.MissedEndpoints = new(r.Deadline.Seconds()), count32(r.Tries), r.Missed
	if r.Outcome != "" {
		record.Rescue = new(string(r.Outcome))
	}
}

// copy is an entry with a record of its own. Caller must hold the journal's mu.
func (e *journalEntry) copy() journalEntry {
	own := *e
	own.record = proto.CloneOf(e.record)
	return own
}

// open are the entries whose requests have not ended, with copies of their records.
func (j *journal) open() []journalEntry {
	j.mu.Lock()
	defer j.mu.Unlock()
	var entries []journalEntry
	for _, e := range j.byID {
		if e.record.GetEnded() == nil {
			entries = append(entries, e.copy())
		}
	}
	return entries
}

// last are the records, the newest first, in copies that nothing changes; with
// the names of their prompts' blocks if asked for.
func (j *journal) last(blocks bool) []*firsttokenv1.Decision {
	entries := j.copies()
	records := make([]*firsttokenv1.Decision, len(entries))
	for i, e := range entries {
		if records[i] = e.record; blocks {
			j.name(e.record, e.blocks)
		}
	}
	return records
}

// name writes the names of a prompt's blocks and of its session into a record.
func (j *journal) name(record *firsttokenv1.Decision, blocks namedBlocks) {
	record.PrefixBlocks, record.BlockTokens = j.namer.names(blocks), count32(blocks.size)
	record.Session = j.namer.session(blocks)
}

// copies are the entries, the newest first, with copies of their records.
func (j *journal) copies() []journalEntry {
	j.mu.Lock()
	defer j.mu.Unlock()
	entries := make([]journalEntry, 0, len(j.ring))
	for i := range j.ring {
		// next is the oldest one, so the newest is just before it.
		entries = append(entries, j.ring[(j.next-1-i+2*len(j.ring))%len(j.ring)].copy())
	}
	return entries
}

// find is a copy of one record; nil where it is unknown or too old.
func (j *journal) find(id string) *firsttokenv1.Decision {
	j.mu.Lock()
	defer j.mu.Unlock()
	if e := j.byID[id]; e != nil {
		return proto.CloneOf(e.record)
	}
	return nil
}

func (j *journal) record(d *scoring.Decision) *firsttokenv1.Decision {
	r := &firsttokenv1.Decision{
		Id:           d.ID,
		Time:         timestamppb.New(d.Time),
		Model:        d.Model,
		Policy:       d.Policy,
		Arm:          d.Arm,
		Reason:       string(d.Reason),
		PromptTokens: count32(d.Prompt.Length()),
		TokenSource:  string(d.Prompt.Source),
		Candidates:   make([]*firsttokenv1.Candidate, len(d.Candidates)),
	}
	if !d.Prompt.Received.IsZero() {
		r.DecisionSeconds = (d.Time.Sub(d.Prompt.Received) - d.Held).Seconds()
	}
	r.Kappa, r.SecondsPerToken, r.SecondsPerStep = d.Pool.Kappa, d.Pool.SecondsPerToken, d.Pool.SecondsPerStep
	if d.Prompt.Alias != "" {
		r.Alias = new(d.Prompt.Alias)
	}
	if d.Held > 0 {
		r.HeldSeconds = new(d.Held.Seconds())
	}
	for i := range d.Candidates {
		c := &d.Candidates[i]
		r.Candidates[i] = &firsttokenv1.Candidate{
			Endpoint:         c.Endpoint.Name,
			Address:          c.Endpoint.Address,
			Work:             float64(c.Area),
			QueuedWork:       float64(c.QueuedArea),
			UncachedTokens:   count32(c.Uncached),
			OptimisticTokens: count32(c.Optimistic),
			RoutedTokens:     count32(c.Routed),
			HeldTokens:       count32(c.HeldTokens),
			WorkSeconds:      c.Work,
			BacklogSeconds:   c.Backlog,
			KvWaitSeconds:    c.KVWait,
			LoadSeconds:      c.Load,
			Cost:             c.Cost,
			Waiting:          count32(c.Waiting),
			Decoding:         count32(c.Decoding),
			EstimateSeconds:  c.Estimate.Seconds(),
		}
		if c.Known {
			r.Candidates[i].CachedTokens = new(count32(c.Cached))
			r.Candidates[i].Source, r.Candidates[i].Claims = said(c.Matches)
		}
		if i > 0 && i <= j.alternates {
			r.Alternates = append(r.Alternates, c.Endpoint.Address)
		}
	}
	if d.Shadow != nil {
		recordShadow(r, d)
	}
	return r
}

// recordShadow puts what would have been chosen first, as in every record; the
// decision has the endpoint that serves there.
func recordShadow(r *firsttokenv1.Decision, d *scoring.Decision) {
	r.Shadow, r.Alternates = true, nil
	if !d.Shadow.Placed {
		return
	}
	at := slices.IndexFunc(d.Candidates, func(c scoring.Candidate) bool { return c.Endpoint.ID == d.Shadow.Choice.Endpoint.ID })
	candidates := r.GetCandidates()
	candidates[0], candidates[at] = candidates[at], candidates[0]
	noteServed(r, d.Endpoint().Address)
}

// said is whose word counts of an endpoint, and what each source said, summed
// over the prompts.
func said(matches []scoring.Match) (source string, claims []*firsttokenv1.Claim) {
	most := scoring.Tokens(-1)
	for i := range matches {
		if m := &matches[i]; m.Cached > most {
			most, source = m.Cached, m.Source
		}
		for _, said := range matches[i].Claims {
			at := slices.IndexFunc(claims, func(c *firsttokenv1.Claim) bool { return c.GetSource() == said.Source })
			if at < 0 {
				at = len(claims)
				claims = append(claims, &firsttokenv1.Claim{Source: said.Source, Used: said.Used})
			}
			claims[at].CachedTokens += count32(said.Cached)
		}
	}
	return source, claims
}

// count32 is n as the record holds it. Counts are never negative, and far
// below the limit: a body of 1 GiB has fewer tokens.
func count32[T ~int](n T) uint32 { return uint32(min(max(0, n), 1<<32-1)) }
