package fidelity

import (
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// kind is a class of faults: a change of it is news, a change of the numbers in
// its words is not.
type kind uint8

// The kinds of faults, of a source and of an endpoint as a whole.
const (
	kindNone kind = iota

	kindSilent // the source never told of the endpoint
	kindStale  // it no longer does
	kindEmpty  // it tells of nothing held
	kindKeys   // its keys are not those of our token ids
	kindIDs    // it tells of other token ids than ours
	kindGone   // what it tells of is not there when it is asked for
	kindRoom   // memory believes in more than the engine holds

	kindOff     // the engine does not look up prefixes at all
	kindBypass  // the engine computes more prompts than we send
	kindLonger  // it counts some more tokens than we do
	kindShorter // it counts fewer
	kindUnder   // it finds more than anybody told of
	kindOver    // it finds less than anybody told of
)

// news is what others say of an endpoint, asked before its lock is taken.
type news struct {
	endpoint scoring.Endpoint
	// heard and held have one for each source; held is -1 where it is not told.
	heard []time.Time
	held  []int
	found []Finding
}

func (c *Checker) news(w *watched) news {
	n := news{endpoint: *w.endpoint.Load(), heard: make([]time.Time, len(c.sources)), held: make([]int, len(c.sources))}
	for s := range c.sources {
		source := &c.sources[s]
		n.held[s] = -1
		if source.Heard != nil {
			n.heard[s] = source.Heard(n.endpoint.ID)
		}
		if source.Held != nil {
			n.held[s] = source.Held(n.endpoint.ID)
		}
	}
	for _, find := range c.finders {
		n.found = append(n.found, find(n.endpoint.ID)...)
	}
	return n
}

// conclude draws what follows from the trials of an endpoint: which sources are
// left out, and one log line for each change.
func (c *Checker) conclude(w *watched) {
	w.mu.Lock()
	idle := !w.tried || w.quietLocked()
	w.tried = false
	w.mu.Unlock()
	if idle {
		return // Nobody needs to be asked for news.
	}
	n := c.news(w)
	for _, tell := range c.verdicts(w, n) {
		tell(c.log.With("endpoint", n.endpoint.Name))
	}
}

// quietLocked reports whether nothing is wrong, and nothing was. Caller must hold
// w.mu.
func (w *watched) quietLocked() bool {
	for s := range w.trials {
		if t := &w.trials[s]; t.echo.bad || t.over.bad || t.fault != kindNone {
			return false
		}
	}
	return w.hits.found == w.hits.told
}

// verdicts are drawn under the endpoint's lock; what there is to be told of them
// is returned.
func (c *Checker) verdicts(w *watched, n news) (tell []func(*slog.Logger)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for s := range w.trials {
		t := &w.trials[s]
		found := c.faultLocked(w, n, s)
		if found == t.fault {
			continue
		}
		t.fault = found
		source := c.source(s).Name
		if s < len(c.sources) {
			w.gates[s].out.Store(found != kindNone)
		}
		f := c.explainLocked(w, n, s)
		tell = append(tell, func(log *slog.Logger) {
			switch {
			case f == nil:
				log.Info("cache source is right again and counts", "source", source)
			case s == len(c.sources):
				log.Warn("memory believes an endpoint to hold more than it does", "fault", f.Fault, "fix", f.Fix)
			default:
				log.Warn("cache source is left out for an endpoint", "source", source, "fault", f.Fault, "fix", f.Fix)
			}
		})
	}
	if w.hits.found != w.hits.told {
		w.hits.told = w.hits.found
		f := w.hits.finding()
		tell = append(tell, func(log *slog.Logger) {
			if f == nil {
				log.Info("an engine's own counts are what was predicted")
			} else {
				log.Warn("an engine's own counts are not what was predicted", "fault", f.Fault, "fix", f.Fix)
			}
		})
	}
	return tell
}

func (c *Checker) source(s int) *Source {
	if s == len(c.sources) {
		return &c.memory
	}
	return &c.sources[s]
}

// faultLocked is what is wrong with source s, kindNone where nothing is. Caller
// must hold w.mu.
func (c *Checker) faultLocked(w *watched, n news, s int) kind {
	t := &w.trials[s]
	switch {
	case t.echo.bad && t.fault != kindNone && t.fault != kindGone && t.echo.fresh-t.judged < enough:
		// What it tells while it comes back is no other cause.
		return t.fault
	case t.echo.bad:
		found := c.missingLocked(w, n, s)
		t.judged, t.echo.missed = t.echo.fresh, time.Time{}
		return found
	case t.over.bad && s == len(c.sources):
		return kindRoom
	case t.over.bad:
		return kindGone
	}
	return kindNone
}

// missingLocked is why source s does not show what the endpoint computed. Caller
// must hold w.mu.
func (c *Checker) missingLocked(w *watched, n news, s int) kind {
	source, t, heard := &c.sources[s], &w.trials[s], n.heard[s]
	switch {
	case t.echo.unknown && heard.IsZero():
		return kindSilent
	case source.Heard != nil && !t.echo.missed.IsZero() && heard.Before(t.echo.missed):
		return kindStale
	case n.held[s] == 0:
		return kindEmpty
	case source.Keyed:
		return kindKeys
	case t.echo.unknown:
		return kindStale
	}
	return kindIDs
}

// explainLocked is the present fault of source s in words; nil where there is
// none. Caller must hold w.mu.
func (c *Checker) explainLocked(w *watched, n news, s int) *Finding {
	source, t := c.source(s), &w.trials[s]
	if t.fault == kindNone {
		return nil
	}
	hits, asked := t.echo.last(remembered)
	missing := fmt.Sprintf("it shows %d of the last %d prompts that were computed there", hits, asked)
	f := &Finding{Source: source.Name}
	switch t.fault {
	case kindSilent:
		f.Fault, f.Fix = "it has told nothing of this endpoint: "+missing, source.Fixes.Silent
	case kindStale:
		f.Fault, f.Fix = missing+", and nothing was heard since", source.Fixes.Stale
		if heard := n.heard[s]; !heard.IsZero() {
			f.Fault = fmt.Sprintf("%s; it was last heard at %s", missing, heard.UTC().Format(time.RFC3339))
		}
	case kindEmpty:
		f.Fault, f.Fix = "it tells of the endpoint, but of nothing held: "+missing, source.Fixes.Empty
	case kindKeys:
		f.Fault, f.Fix = "the keys it tells of are not those of our prompts: "+missing, source.Fixes.Keys
		if other := c.provenLocked(w, s); other != "" {
			f.Fault += "; " + other + " shows them, so our token ids are right and the key settings are wrong"
		} else if c.disprovedLocked(w, s) {
			f.Fault += "; no source shows them, so the token ids may be what differs"
			f.Fix += "; " + fixIDs
		}
	case kindIDs:
		f.Fault, f.Fix = "it tells of other token ids than ours: "+missing, fixIDs
		if source.Fixes.Keys != "" {
			f.Fix += "; " + source.Fixes.Keys
		}
	case kindGone, kindRoom:
		f.Fault, f.Fix = "the engine finds far less in its caches than was told"+w.hits.compared(s), source.Fixes.Gone
		if l := w.hits.last; l != nil && l.particular*4 > l.prompt {
			f.Fix = "much of the traffic has a cache_salt or is for a LoRA adapter, whose blocks are not shared; " + f.Fix
		}
	default: // The others are faults of the endpoint as a whole.
	}
	n.prefer(f, t.fault)
	return f
}

// fixIDs is what to look at where our token ids are not the engine's.
const fixIDs = "make token ids equal: prompt.models[].tokenizer is the engine's tokenizer and revision, chat_template its --chat-template, " +
	"time_zone the engine's time zone (TZ) where the template writes the date; firsttoken encode prints our ids, POST /tokenize on the engine its own"

// prefer takes what somebody else found out about the source, or about our token
// ids, in place of what is inferred from its misses.
func (n *news) prefer(f *Finding, fault kind) {
	ofBlocks := fault == kindKeys || fault == kindIDs
	for _, found := range n.found {
		if found.Source == f.Source && (ofBlocks || fault == kindSilent || fault == kindStale || fault == kindEmpty) ||
			found.Source == SourcePrompt && ofBlocks {
			f.Fault, f.Fix = f.Fault+"; "+found.Fault, found.Fix
			return
		}
	}
}

// SourcePrompt is the Source of a Finding about our own token ids.
const SourcePrompt = "prompt"

// provenLocked names a source that needs no keys and shows what source s does
// not; empty where there is none. Caller must hold w.mu.
func (c *Checker) provenLocked(w *watched, s int) string {
	for i := range c.sources {
		t := &w.trials[i]
		if i == s || c.sources[i].Keyed || t.echo.bad {
			continue
		}
		if hits, n := t.echo.last(enough); n > 0 && hits*2 > n {
			return c.sources[i].Name
		}
	}
	return ""
}

// disprovedLocked reports whether a source that needs no keys misses the same
// prompts. Caller must hold w.mu.
func (c *Checker) disprovedLocked(w *watched, s int) bool {
	for i := range c.sources {
		if i != s && !c.sources[i].Keyed && w.trials[i].fault == kindIDs {
			return true
		}
	}
	return false
}

// compared says what source s predicted in the last window and what was counted.
func (h *hits) compared(s int) string {
	if h.last == nil {
		return ""
	}
	return fmt.Sprintf(": of %d tokens it told of in the last %d requests the engine counted %d", h.last.said[s], h.last.requests, h.last.counted)
}

// finding is what is wrong with the endpoint as a whole; nil where nothing is.
func (h *hits) finding() *Finding {
	l := h.last
	if l == nil {
		return nil
	}
	numbers := fmt.Sprintf("in the last %d requests we sent %d prompt tokens and predicted %d cached; the engine counted %d and %d cached", l.requests, l.prompt, l.used, l.engine, l.counted)
	switch h.found {
	case kindOff:
		return &Finding{
			Fault: "the engine looks up no prefix: " + numbers,
			Fix:   "start the engine with --enable-prefix-caching (without --no-enable-prefix-caching); without it only load tells engines apart",
		}
	case kindBypass:
		return &Finding{
			Fault: "the engine serves prompts that did not come by us: " + numbers,
			Fix:   "send all traffic of this engine by one firsttoken; with several replicas or other clients, let the engine publish KV events, so that what others leave in its cache is known",
		}
	case kindLonger, kindShorter:
		return &Finding{Fault: "the engine's prompts are not as long as ours: " + numbers, Fix: fixIDs}
	case kindUnder:
		return &Finding{
			Fault: "the engine finds far more in its caches than anybody told of: " + numbers,
			Fix:   "let the engine publish KV events; if it does, " + fixIDs,
		}
	case kindOver:
		causes := []string{"the engine's cache is smaller than we believe: set memory.capacity_tokens to num_gpu_blocks times block_size and memory.host_tokens to its host tier", "or other traffic evicts it"}
		if l.particular*4 > l.prompt {
			causes = append(causes, "or blocks with a cache_salt or of a LoRA adapter are not shared")
		}
		return &Finding{Fault: "the engine finds far less in its caches than was predicted: " + numbers, Fix: strings.Join(causes, ", ")}
	default: // The others are faults of a source.
	}
	return nil
}
