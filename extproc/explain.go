package extproc

import (
	"context"
	"errors"
	"time"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// errUnread says that the body is none that the encoder reads.
var errUnread = errors.New("the body could not be read as a request; it would be routed by its length alone")

// Explain says what would be chosen for a request now, and books nothing: as if it
// had come by Envoy with its whole body and no header but session, the value of its
// session key's; empty: it has none. It is not held. notes say where a request of a
// client may fare otherwise. A *prompt.RequestError is the answer that it would get
// instead. Safe for concurrent use.
func (s *Server) Explain(ctx context.Context, r prompt.Request, session string) (d *scoring.Decision, notes []string, err error) {
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
	if !s.Choosing() {
		notes = append(notes, "choosing is off: every request is left to Envoy")
	}
	if err == nil {
		if st.generation() {
			notes = append(notes, st.explainArm(p)...)
		}
		done := st.askSources(ctx, p)
		defer done()
		d, err = s.picker.Explain(p)
	}
	if err != nil && !errors.Is(err, errUnread) {
		fault, _ := faultOf(err, st.model, s.picker.Endpoints(), s.cfg.BodyLimit)
		return nil, nil, fault
	}
	return d, notes, err
}

// explainArm puts a prompt into its arm where its session decides that, counts
// nothing, and says what else may.
func (st *stream) explainArm(p *scoring.Prompt) (notes []string) {
	if p.Only != nil {
		return nil // What is restricted has no arm.
	}
	split := st.split.Load()
	r := canary.Request{Model: p.Model, Alias: p.Alias, Session: p.Session, Header: func(string) string { return "" }}
	arm, ok := split.Assign(r, 0)
	switch {
	case !ok:
	case !split.Knows(r):
		notes = append(notes, "an arm of canary.arms takes the request, by chance or by headers, which are not known here: this is as without arms")
		return notes
	case arm.Policy == canary.PolicyEnvoy:
		notes = append(notes, "the request is in arm "+arm.Name+", which is left to Envoy: this is as without arms")
	default:
		p.Arm = arm.Name
		if arm.Policy != "" {
			p.Policy = arm.Policy
		}
	}
	if len(split.Headers()) > 0 {
		notes = append(notes, "headers of the request may put it into another arm of canary.arms")
	}
	return notes
}

// nobody is the client of a request that did not come by Envoy.
type nobody struct {
	conn
	ctx context.Context //nolint:containedctx // that of the question
}

func (n nobody) Context() context.Context { return n.ctx }
