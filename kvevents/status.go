package kvevents

import (
	"maps"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Status is what is known of one rank of one endpoint, for people.
type Status struct {
	Endpoint string `json:"endpoint"`
	Rank     int    `json:"rank"`
	// Address is where we listen for the engine, or connect to it.
	Address string `json:"address"`
	// Fault is why we do not; empty: we do.
	Fault string `json:"fault,omitempty"`
	// Known is true once the engine has told anything.
	Known bool `json:"known"`
	// LastBatch is when it last did; null: never. An engine without work is
	// silent.
	LastBatch *time.Time `json:"last_batch"`
	// Blocks are held by medium, all groups together; Unmatched of them hold
	// tokens that are not known, or more than tokens (images, embeddings, adapters
	// told without a name).
	Blocks    map[string]int            `json:"blocks"`
	Tokens    map[string]scoring.Tokens `json:"tokens"`
	Unmatched int                       `json:"unmatched_blocks"`
	// StoreOnly are the media of which the engine tells what it stores and never
	// what it removes: its oldest blocks there are taken to be gone once the medium
	// is full. Empty where removals are told, or nothing was full yet.
	StoreOnly []string `json:"store_only,omitempty"`
	Counts    Counts   `json:"counts"`
}

// Counts are totals since the endpoint is followed.
type Counts struct {
	Batches uint64 `json:"batches"`
	// Events are by kind: stored, removed, cleared, other.
	Events    map[string]uint64 `json:"events"`
	BadFrames uint64            `json:"bad_frames"`
	// Gaps are messages missing; Restarts are new lives of the engine.
	Gaps     uint64 `json:"gaps"`
	Restarts uint64 `json:"restarts"`
	// Replays are questions for missed messages; FailedReplays got no answer.
	Replays       uint64 `json:"replays"`
	FailedReplays uint64 `json:"failed_replays"`
	// Cleared is how often all that was known was forgotten, by reason:
	// restart, gap (that no replay filled), bad_frame.
	Cleared map[string]uint64 `json:"cleared"`
	// Aged are blocks forgotten because their medium is full, though the engine did
	// not tell that they are gone.
	Aged uint64 `json:"aged_blocks"`
	// Prefills are requests whose prompt the events told to be computed.
	Prefills uint64 `json:"prefills"`
	// Ignored are events of media and groups past what is followed.
	Ignored uint64 `json:"ignored"`
}

// Status tells of every rank that is followed, in the order of the endpoints.
func (s *Subscriber) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]Status, 0, len(s.taps))
	for _, t := range s.taps {
		row := t.stream.view.status()
		row.Endpoint, row.Rank, row.Address, row.Fault = t.endpoint.Name, t.rank, t.live, t.fault
		if t.bound != "" {
			row.Address = t.bound
		}
		list = append(list, row)
	}
	return list
}

// Strays is the number of messages under a topic that is no endpoint's.
func (s *Subscriber) Strays() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.strays
}

func (v *view) status() Status {
	v.mu.RLock()
	defer v.mu.RUnlock()
	a := &v.account
	row := Status{
		Known: v.known, Blocks: make(map[string]int), Tokens: make(map[string]scoring.Tokens),
		Counts: Counts{
			Batches: a.batches, Events: make(map[string]uint64), BadFrames: a.badFrames, Gaps: a.gaps, Restarts: a.restarts,
			Replays: a.replays, FailedReplays: a.failed, Cleared: maps.Clone(a.cleared), Ignored: a.ignored, Aged: a.aged, Prefills: a.prefills,
		},
	}
	if !a.lastBatch.IsZero() {
		last := a.lastBatch
		row.LastBatch = &last
	}
	for k, n := range a.events {
		if n > 0 {
			row.Counts.Events[kindNames[k]] = n
		}
	}
	for _, s := range v.shelves {
		row.Blocks[s.medium] += len(s.blocks)
		row.Tokens[s.medium] += s.tokens
		row.Unmatched += len(s.blocks) - s.matched
		if s.storeOnly() && !slices.Contains(row.StoreOnly, s.medium) {
			row.StoreOnly = append(row.StoreOnly, s.medium)
		}
	}
	return row
}
