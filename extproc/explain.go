package extproc

import (
	"context"
	"errors"
	"time"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// errUnread says that the body is none that the encoder reads.
var errUnread = errors.New("the body could not be read as a request; it would be routed by its length alone")

// Explain says what would be chosen for a request now, and books nothing: as if it
// had come by Envoy with its whole body, without being held and without arm. session
// is the value of its session key's header; empty: it has none. A
// *prompt.RequestError is the answer that it would get instead. Safe for concurrent
// use.
func (s *Server) Explain(ctx context.Context, r prompt.Request, session string) (*scoring.Decision, error) {
	st := &stream{
		Server: s, conn: nobody{ctx: ctx}, began: time.Now(), body: r.Body,
		head: head{method: r.Method, path: r.Path, contentType: r.ContentType, contentEncoding: r.ContentEncoding, session: session, seen: true},
		// It is answered, too, while no choices are made.
		period: newPeriod(),
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.DecisionDeadline)
	defer cancel()
	p, err := st.size(ctx, true)
	if err == nil && st.unread {
		err = errUnread
	}
	var d *scoring.Decision
	if err == nil {
		done := st.askSources(ctx, p)
		defer done()
		d, err = s.picker.Explain(p)
	}
	if err != nil && !errors.Is(err, errUnread) {
		fault, _ := faultOf(err, st.model, s.picker.Endpoints(), s.cfg.BodyLimit)
		return nil, fault
	}
	return d, err
}

// nobody is the client of a request that did not come by Envoy.
type nobody struct {
	conn
	ctx context.Context //nolint:containedctx // that of the question
}

func (n nobody) Context() context.Context { return n.ctx }
