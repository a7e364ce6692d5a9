package extproc

import (
	"context"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// askSources lets the sources that must ask somebody else ask before the
// choice, until ctx ends: then the choice is made without them. done is to be
// called once the choice is made; it is never nil.
func (st *stream) askSources(ctx context.Context, p *scoring.Prompt) (done func()) {
	done = func() {}
	if st.ask == nil || !slices.ContainsFunc(p.Sequences, func(q scoring.Sequence) bool { return q.Usable > 0 }) {
		return done
	}
	began := time.Now()
	answered, left := make(chan func()), make(chan struct{})
	go func() { // ends with the source, which may outlive the stream
		done := st.callAsk(ctx, p)
		select {
		case answered <- done:
		case <-left:
			done()
		}
	}()
	select {
	case done = <-answered:
	case <-ctx.Done():
		close(left)
	case <-st.period.over:
		close(left)
	}
	st.metrics.stage(stageAsk, time.Since(began))
	if ctx.Err() != nil && st.conn.Context().Err() == nil {
		st.metrics.fallback(causeAsk)
	}
	return done
}

// callAsk: a panic in there must cost one request its cached prefix, not all
// requests their service.
func (s *Server) callAsk(ctx context.Context, p *scoring.Prompt) (done func()) {
	defer func() {
		if fault := recover(); fault != nil {
			s.log.Error("asking a cache source panicked", "panic", fmt.Sprint(fault), "stack", string(debug.Stack()))
			s.metrics.fallback(causeAsk)
			done = func() {}
		}
	}()
	return s.ask(ctx, p)
}
