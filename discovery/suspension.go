package discovery

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// suspension keeps requests from an engine that may hang: it let a request wait
// for longer than the deadline of its first token and gave nobody else one. Its
// health says nothing of that, since the process that answers /health is not the
// one that computes. It ends when the engine gives a first token, to whomever: to
// a request that is still there, or to a trial of our own, a prompt of one token
// that risks no client's request. The zero value is an engine that nothing is
// held against.
type suspension struct {
	on bool
	// wait is the time from the suspension, and from each trial that failed, to the
	// next trial.
	wait time.Duration
	// trial is when that is, lifted when the last suspension ended.
	trial, lifted time.Time
}

const (
	// The first trial comes soon, since an engine that only stalled should not be
	// missed for long; an engine that keeps failing is left alone for longer and
	// longer, which also bounds how often one is lost to it that answers trials
	// and hangs on longer prompts.
	firstSuspension = 5 * time.Second
	maxSuspension   = 5 * time.Minute
	// An engine that went well for as long begins anew.
	suspensionMemory = 2 * maxSuspension
)

// begin suspends. That several requests missed their deadline there counts once.
// It reports whether that was news.
func (s *suspension) begin(now time.Time) bool {
	if s.on {
		return false
	}
	if s.wait == 0 || now.Sub(s.lifted) > suspensionMemory {
		s.wait = firstSuspension
	} else {
		s.wait = min(2*s.wait, maxSuspension)
	}
	s.on, s.trial = true, now.Add(s.wait)
	return true
}

// due reports whether a trial may be made.
func (s *suspension) due(now time.Time) bool { return s.on && !now.Before(s.trial) }

// failed takes in a trial without a first token.
func (s *suspension) failed(now time.Time) {
	s.wait = min(2*s.wait, maxSuspension)
	s.trial = now.Add(s.wait)
}

// restarted takes in that the engine was down meanwhile: it is another process
// by now, whose trial need not wait.
func (s *suspension) restarted(now time.Time) { s.trial = now }

// lift ends it and reports whether that was news.
func (s *suspension) lift(now time.Time) bool {
	was := s.on
	s.on = false
	if was {
		s.lifted = now
	}
	return was
}

// suspend takes the suspended members out of a list of endpoints, which are in
// the same order, but for those that nobody could stand in for: where all that
// serve a model are suspended, each of them is better than none.
func (r *roster) suspend(list []scoring.Endpoint) {
	able := func(model string) bool {
		for i, m := range r.members {
			if e := &list[i]; e.TakesRequests() && !m.suspension.on && e.Serves(model) {
				return true
			}
		}
		return false
	}
	var out []int
	for i, m := range r.members {
		if !m.suspension.on || !list[i].Ready {
			continue
		}
		spared := len(list[i].Models) == 0 && !able("")
		for _, model := range list[i].Models {
			spared = spared || !able(model)
		}
		if !spared {
			out = append(out, i)
		}
	}
	for _, i := range out {
		list[i].Ready = false
	}
}

// Missed tells that the endpoint at address (ip:port) gave a request no first
// token before its deadline; silent: nor any other request since. Then it gets no
// more until it gives one. An address that is no endpoint's is ignored.
func (w *Watcher) Missed(address string, silent bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.roster.at(address)
	if m == nil {
		return
	}
	e, _ := w.publishedLocked(m.id)
	w.metrics.missed(e.Name, silent)
	if !silent || !m.suspension.begin(time.Now()) {
		return
	}
	w.log.Warn("endpoint may hang: it gave no first token in time; it gets no requests until it answers a trial",
		"endpoint", e.Name, "address", address, "first_trial_in", m.suspension.wait.String())
	w.publishLocked()
}

// Alive tells that the endpoint at address gave a first token: it does not hang.
func (w *Watcher) Alive(address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m := w.roster.at(address); m != nil {
		w.liftLocked(m, "a request's first token")
	}
}

// liftLocked ends a suspension. Caller must hold mu.
func (w *Watcher) liftLocked(m *member, because string) {
	if !m.suspension.lift(time.Now()) {
		return
	}
	w.publishLocked()
	if e, ok := w.publishedLocked(m.id); ok {
		w.log.Info("endpoint computes again; it gets requests", "endpoint", e.Name, "address", e.Address, "shown_by", because)
	}
}

// trialTimeout is how long an engine may take for one token: other requests may
// be before it, and a step of theirs may be long.
const trialTimeout = 10 * time.Second

// try asks a suspended engine for one token, once its time has come. It is called
// after a good probe, by the one goroutine that probes it.
func (w *Watcher) try(ctx context.Context, id scoring.EndpointID, e engine) {
	w.mu.Lock()
	m := w.roster.member(id)
	if m == nil || !m.suspension.due(time.Now()) {
		w.mu.Unlock()
		return
	}
	model := ""
	if published, ok := w.publishedLocked(id); ok && len(published.Models) > 0 {
		model = published.Models[0]
	}
	w.mu.Unlock()

	_, err := within(ctx, trialTimeout, func(ctx context.Context) (struct{}, error) { return struct{}{}, e.try(ctx, model) })
	if ctx.Err() != nil {
		return
	}
	w.metrics.trials.WithLabelValues(result(err)).Inc()
	w.mu.Lock()
	defer w.mu.Unlock()
	if m = w.roster.member(id); m == nil {
		return
	}
	var refusal *statusError
	switch {
	case err == nil:
		w.liftLocked(m, "a trial")
		return
	case errors.As(err, &refusal) && refusal.status >= 400 && refusal.status <= 499:
		// It does not take our trials, so nothing of ours can ever show that it
		// computes. The next request will, or suspends it for longer.
		w.liftLocked(m, "nothing; it refused the trial with status "+strconv.Itoa(refusal.status))
		return
	}
	if m.suspension.on {
		m.suspension.failed(time.Now())
		if published, ok := w.publishedLocked(id); ok {
			w.log.Warn("suspended endpoint failed its trial", "endpoint", published.Name, "address", published.Address,
				"error", err, "next_trial_in", m.suspension.wait.String())
		}
	}
}
