package engine

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/simulator"
)

// life is what a restart of the engine loses: the cache, the queue, the counters
// and the connections to whoever it reports to.
type life struct {
	loop    *loop
	metrics *metrics
	events  *publisher // nil: none are published
	// fingerprint is what every answer of this life carries.
	fingerprint string

	// stop ends ctx, and with it every request and every goroutine that wait
	// waits for.
	ctx  context.Context
	stop context.CancelFunc
	wait sync.WaitGroup
}

// newLife starts one with an empty cache. former is the one before, which has
// ended; nil: this is the first.
func (s *Server) newLife(former *life) (*life, error) {
	l := &life{metrics: newMetrics(&s.cfg, time.Now()), fingerprint: "vllm-" + Version + "-" + randomHex(4)}
	l.ctx, l.stop = context.WithCancel(s.ctx)
	if err := l.assemble(s, former); err != nil {
		l.end()
		return nil, err
	}
	return l, nil
}

// assemble makes the parts and starts the goroutines that end ends.
func (l *life) assemble(s *Server, former *life) error {
	profile, options := s.cfg.Profile, simulator.Options{BlockTokens: s.cfg.BlockTokens}
	reports := s.cfg.LMCache.complete(s.cfg.Models[0], profile)
	if s.hasher == nil {
		profile.HostTokens = 0
	} else {
		profile.HostTokens, options.ChunkTokens = reports.Tokens, s.hasher.ChunkSize()
	}
	l.loop = newLoop(simulator.New(profile, options), s.cfg.TimeScale, l.metrics)
	if s.hasher != nil {
		w, err := newWorker(reports, s.hasher, l.loop, s.log)
		if err != nil {
			return err
		}
		l.loop.report = w.report
		l.wait.Go(func() { w.run(l.ctx) })
	}
	if s.cfg.Events.Endpoint != "" {
		live, again := "", ""
		if former != nil {
			live, again = former.events.live, former.events.again
		}
		var err error
		if l.events, err = newPublisher(s.cfg.Events, s.form, live, again, s.log); err != nil {
			return err
		}
		l.loop.publish = l.events.step
		l.wait.Go(func() { l.events.run(l.ctx) })
	}
	l.wait.Go(func() { l.loop.run(l.ctx) })
	return nil
}

// end cuts every request short and waits for all goroutines.
func (l *life) end() {
	l.stop()
	l.wait.Wait()
}

// Restart ends every request, cuts all connections, and begins anew at the same
// addresses: the cache is empty, counters and sequence numbers begin at zero.
// The faults stay. After an error the engine is down.
func (s *Server) Restart() error {
	s.restart.Lock()
	defer s.restart.Unlock()
	if s.ctx.Err() != nil {
		return errors.New("engine: closed")
	}
	if err := s.setOpen(false); err != nil {
		return err
	}
	former := s.life.Load()
	former.end()
	next, err := s.newLife(former)
	if err != nil {
		return err
	}
	s.life.Store(next)
	faults := s.Faults()
	next.loop.setSlow(faults.Slow)
	return s.setOpen(!faults.Refuse)
}

// serveRestart answers before everything is cut, the connection of this request
// too.
func (s *Server) serveRestart(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, struct{}{})
	_ = http.NewResponseController(w).Flush() // who has gone wants no answer
	if err := s.Restart(); err != nil {
		s.log.Error("engine not restarted", "error", err)
	}
}

// serveReset forgets what is cached, unless requests hold memory. Who follows
// the KV events is told with the next step.
func (s *Server) serveReset(w http.ResponseWriter, _ *http.Request) {
	l := s.life.Load()
	done := l.loop.resetCache()
	l.metrics.resets.Inc()
	writeJSON(w, http.StatusOK, map[string]bool{"success": done})
}

// EventAddresses are where KV events are published and repeated, with the real
// ports; empty where they are not.
func (s *Server) EventAddresses() (live, replay string) {
	if p := s.life.Load().events; p != nil {
		return p.live, p.again
	}
	return "", ""
}
