package extproc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

var (
	errBodyTooLarge = errors.New("the request body is too large")
	errEncoder      = errors.New("the encoder failed")
	errOverdue      = errors.New("the encoder overran its deadline")
)

// decideThen makes the choice and sends the answer that carries it: the one
// that reply builds, or a refusal, which ends the stream. whole is false where
// the body is not known to its end.
func (st *stream) decideThen(whole bool, reply func(*scoring.Decision) *extprocv3.ProcessingResponse) error {
	st.decided = true
	st.enter(phaseDeciding)
	d, err := st.decide(whole)
	if err != nil {
		if st.conn.Context().Err() != nil {
			return err // nobody is left to be answered
		}
		fault, details := faultOf(err, st.model, st.picker.Endpoints(), st.cfg.BodyLimit)
		st.metrics.refused(fault.Status)
		st.metrics.arms.answered(st.arm.name)
		st.metrics.arms.refused(st.arm.name)
		if err := st.send(refuse(st.wording(fault), fault.Status, details)); err != nil {
			return err
		}
		st.traced(nil, details)
		return errDone
	}
	var tries *tries
	if d != nil {
		st.booking = d.Reservation
		tries = st.follow(d)
	}
	st.enter(phaseWaiting)
	st.metrics.arms.answered(st.arm.name)
	if err := st.send(st.renaming(st.labelled(d, reply(d)))); err != nil {
		// The request cannot have left by our word.
		if d == nil {
			st.metrics.arms.ended(st.arm.name, scoring.OutcomeCancelled)
		}
		tries.unsent()
		st.release(scoring.OutcomeCancelled)
		return err
	}
	if st.booking != nil && !st.headersWait {
		st.booking.Sent()
	}
	st.traced(d, "")
	return nil
}

// decide chooses an endpoint and books the request there. A nil decision
// without error leaves the choice to Envoy. An error refuses the request.
func (st *stream) decide(whole bool) (*scoring.Decision, error) {
	if !st.beginPeriod() {
		return st.alone(leftOff)
	}
	st.metrics.stage(stageReceive, time.Since(st.began))
	generation := st.generation()
	ctx, cancel := context.WithTimeout(st.conn.Context(), st.cfg.DecisionDeadline)
	defer cancel()
	p, err := st.size(ctx, whole)
	if errors.Is(err, errOff) {
		return st.alone(leftOff)
	}
	if err != nil {
		return nil, err
	}
	if generation && st.assign(p) {
		return st.alone(leftArm)
	}
	d, err := st.pick(ctx, p)
	if errors.Is(err, errOff) {
		return st.alone(leftOff)
	}
	if gone := st.conn.Context().Err(); gone != nil && d == nil {
		return nil, gone
	}
	if err != nil && !generation && p.Only == nil {
		// Whether such a request needs an endpoint at all is not ours to say.
		st.metrics.fallback(causeOf(err))
		return st.alone(leftCause(causeOf(err)))
	}
	return d, err
}

// size makes the prompt of what came of the request, with what is known of it when
// ctx, the decision deadline, ends. An error refuses the request.
func (st *stream) size(ctx context.Context, whole bool) (*scoring.Prompt, error) {
	received := time.Now()
	var p *scoring.Prompt
	switch {
	case len(st.body) > st.cfg.BodyLimit && st.generation():
		return nil, errBodyTooLarge
	case len(st.body) > st.cfg.BodyLimit:
		st.metrics.fallback(causeTooLarge)
		p = unsized()
	case len(st.body) == 0:
		p = unsized()
	default:
		encoded, err := st.encode(ctx, whole)
		if err != nil {
			return nil, err
		}
		p = encoded
		st.rename(p)
		p.FillChain()
		st.metrics.stage(stageEncode, time.Since(received))
	}
	st.model, p.Received = p.Model, st.began
	st.tellSession(p)
	return p, st.restrict(p)
}

// pick asks for the decision, waits for it where the request is held, and tells
// everybody who wants to know.
func (st *stream) pick(ctx context.Context, p *scoring.Prompt) (*scoring.Decision, error) {
	o, err := st.weigh(ctx, p)
	if err != nil {
		return nil, err
	}
	d, err := st.await(o)
	if err != nil {
		return nil, err
	}
	if st.shadow == nil {
		st.metrics.decision(d)
	}
	if st.sampler.take(time.Now()) {
		logDecision(ctx, st.log, d)
	}
	if st.observer != nil && st.shadow == nil {
		st.observer.Decided(d)
	}
	return d, nil
}

// weigh offers the prompt to the picker, with what is cached of it as far as that
// is known when ctx, the decision deadline, ends.
func (st *stream) weigh(ctx context.Context, p *scoring.Prompt) (offered, error) {
	done := st.askSources(ctx, p)
	defer done()
	if gone := st.conn.Context().Err(); gone != nil {
		return offered{}, gone
	}
	if st.period.ended() {
		return offered{}, errOff
	}
	began := time.Now()
	o := st.offer(p)
	if errors.Is(o.err, scoring.ErrModelRequired) && st.unread {
		// The model is not missing from the request, only unknown to us.
		sized := p
		p = unsized()
		p.Received, p.Policy, p.Session, p.Arm, p.Only = st.began, sized.Policy, sized.Session, sized.Arm, sized.Only
		o = st.offer(p)
	}
	if o.err == nil {
		st.metrics.stage(stagePick, time.Since(began))
	}
	return o, o.err
}

// encode sizes the request before ctx, the decision deadline, ends. Where that
// fails the request is routed by the length of its body; only a request that no
// engine would take is an error.
func (st *stream) encode(ctx context.Context, whole bool) (*scoring.Prompt, error) {
	p, err := st.tokens(ctx)
	if gone := st.conn.Context().Err(); gone != nil {
		return nil, gone
	}
	if st.period.ended() {
		return nil, errOff
	}
	var fault *prompt.RequestError
	switch {
	case err == nil && ctx.Err() != nil && p.Source == scoring.TokensEstimated:
		st.metrics.fallback(causeDeadline)
		return p, nil
	case err == nil:
		return p, nil
	case errors.As(err, &fault) && whole && st.generation():
		return nil, err
	case errors.Is(err, errOverdue):
		st.metrics.fallback(causeDeadline)
	default:
		st.metrics.fallback(causeOf(err))
	}
	st.unread = true
	return estimated(len(st.body)), nil
}

// encoderGrace is how long after the decision deadline the encoder may still say
// what it knows by then, which is more than the length of the body.
const encoderGrace = 100 * time.Millisecond

// tokens asks the encoder, and stops waiting for one that does not return when
// it should: where Envoy's own timeout does not apply, nothing else would.
func (st *stream) tokens(ctx context.Context) (*scoring.Prompt, error) {
	type result struct {
		prompt *scoring.Prompt
		err    error
	}
	encoded := make(chan result, 1)
	request := prompt.Request{
		Method:          st.head.method,
		Path:            st.head.path,
		ContentType:     st.head.contentType,
		ContentEncoding: st.head.contentEncoding,
		SessionKey:      st.cfg.SessionKey,
		Body:            st.body, // not written to from here on
	}
	st.encoders.Go(func() { // ends with the encoder, which may outlive the stream
		p, err := st.callEncoder(ctx, request)
		encoded <- result{p, err}
	})
	select {
	case r := <-encoded:
		return r.prompt, r.err
	case <-st.period.over:
		return nil, errOff
	case <-ctx.Done():
	}
	grace := time.NewTimer(encoderGrace)
	defer grace.Stop()
	select {
	case r := <-encoded:
		return r.prompt, r.err
	case <-st.period.over:
		return nil, errOff
	case <-grace.C:
		return nil, errOverdue
	}
}

// callEncoder: a panic in there must cost one request its cached prefix, not all
// requests their service.
func (s *Server) callEncoder(ctx context.Context, r prompt.Request) (p *scoring.Prompt, err error) {
	defer func() {
		if fault := recover(); fault != nil {
			s.log.Error("encoder panicked", "panic", fmt.Sprint(fault), "stack", string(debug.Stack()))
			p, err = nil, errEncoder
		}
	}()
	return s.encoder.Encode(ctx, r)
}

// generation reports whether the request asks an engine for tokens: only there
// is an answer of ours what the client can understand.
func (st *stream) generation() bool {
	if st.head.method != "" && st.head.method != http.MethodPost {
		return false
	}
	return prompt.Generates(st.head.path)
}

// unsized is a request of which nothing is known: it is routed by load.
func unsized() *scoring.Prompt { return &scoring.Prompt{Source: scoring.TokensNone} }

// bytesPerToken is what English text and JSON around it come to with the
// vocabularies of today; it sizes what could not be encoded.
const bytesPerToken = 4

// estimated is a prompt of which only the body's length is known.
func estimated(bytes int) *scoring.Prompt {
	return &scoring.Prompt{
		Source:    scoring.TokensEstimated,
		Sequences: []scoring.Sequence{{Length: scoring.Tokens(bytes/bytesPerToken + 1), Copies: 1}},
	}
}
