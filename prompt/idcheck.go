package prompt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/scoring"
)

// IDCheck compares the token ids that an Encoder makes with those of the
// engines themselves: of a few prompts of its own when a model is loaded, and
// of a small sample of requests, out of band and on its own connections. A
// model whose ids differ is encoded by the engines until they are equal again.
// Safe for concurrent use.
type IDCheck struct {
	// Set once by NewIDCheck.
	encoder  *Encoder
	engines  *renderer
	interval time.Duration
	log      *slog.Logger
	outcomes *prometheus.CounterVec
	remote   *prometheus.GaugeVec
	models   []*checked
}

// checked is one model whose ids are compared.
type checked struct {
	served *served

	mu     sync.Mutex // guards the following fields
	sample *sampled   // the next request to compare; nil: none waits
	status IDStatus

	// Step owns the following fields.

	// probes are what is left to compare of our own prompts.
	probes []probe
	// next is when the next comparison may be.
	next time.Time
	// bad is what last differed: it has to be equal again before this process
	// encodes the model's prompts.
	bad *sampled
	// rounds counts how often bad and all probes were equal in a row.
	rounds int
}

// sampled is a request that is compared.
type sampled struct {
	Request
	// probe is the name of a prompt of our own; empty: a client sent it, and
	// nothing of its text may be shown.
	probe string
}

// Bounds of an IDCheck.
const (
	// maxSampledBytes is the largest body that is kept for a comparison.
	maxSampledBytes = 256 << 10
	// checkTimeout bounds one call to an engine.
	checkTimeout = 5 * time.Second
	// recheckInterval is how often a model whose ids differed is compared, in
	// intervals.
	recheckInterval = 4
	// roundsToReturn is how often in a row all must be equal before this process
	// encodes the model's prompts again.
	roundsToReturn = 3
	// unknownInterval is when engines without the endpoints are asked again, in
	// intervals.
	unknownInterval = 12
	// restShare: after what took an engine a second the next comparison comes no
	// sooner than so many seconds, whatever the interval.
	restShare = 50
	// confirmations is how often a difference must be seen: a template may print
	// the time, which went on in between.
	confirmations = 3
)

// IDStatus is how one model's token ids compare with its engines'.
type IDStatus struct {
	Model string `json:"model"`
	// Checked prompts were compared, Equal and Differing of them so found.
	Checked   uint64 `json:"checked"`
	Equal     uint64 `json:"equal"`
	Differing uint64 `json:"differing"`
	// Unknown is why the ids cannot be compared; empty where they can.
	Unknown string `json:"unknown,omitempty"`
	// RemoteSince is when the engines were asked for all ids because ours
	// differed; null while this process makes them.
	RemoteSince *time.Time `json:"remote_since"`
	// Difference is the last one found; null: none since they were equal.
	Difference *Difference `json:"difference"`
}

// NewIDCheck makes an IDCheck of the encoder's models that have a tokenizer. An
// interval of 0 compares nothing. o is what the Encoder was made with.
func NewIDCheck(e *Encoder, o Options, reg prometheus.Registerer) *IDCheck {
	c := &IDCheck{
		encoder: e, interval: e.cfg.CheckInterval, log: e.log,
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_prompt_id_checks_total",
			Help: "Prompts whose token ids were compared with an engine's, by outcome: equal, differing, unknown (the engine has no endpoint for it), refused, failed.",
		}, []string{"model", "outcome"}),
		remote: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "firsttoken_prompt_ids_differ",
			Help: "1 where the model's token ids are not those of its engines, so that these are asked for them.",
		}, []string{"model"}),
	}
	reg.MustRegister(c.outcomes, c.remote)
	if o.Endpoint == nil || c.interval == 0 {
		return c
	}
	c.engines = newRenderer(o, 1)
	for _, m := range e.cfg.Models {
		s := e.models[m.Name]
		if s.cfg.Tokenizer == "" || s.cfg.Mode == "remote" {
			continue
		}
		c.remote.WithLabelValues(m.Name).Set(0)
		c.models = append(c.models, &checked{served: s, probes: probesOf(m.Name), status: IDStatus{Model: m.Name}})
	}
	return c
}

// Offer tells of a request that was encoded as p. A few are kept, copied, to be
// compared; it never waits.
func (c *IDCheck) Offer(r Request, p *scoring.Prompt) {
	if p.Source != scoring.TokensNative || len(r.Body) > maxSampledBytes {
		return
	}
	for _, m := range c.models {
		if p.Model != "" && m.served != c.encoder.models[p.Model] || p.Model == "" && m.served != c.encoder.only {
			continue
		}
		m.mu.Lock()
		if m.sample == nil {
			r.Body = bytes.Clone(Rename(r.Body, p))
			m.sample = &sampled{Request: r}
		}
		m.mu.Unlock()
	}
}

// Status has a row for each model whose ids are compared.
func (c *IDCheck) Status() []IDStatus {
	rows := []IDStatus{}
	for _, m := range c.models {
		m.mu.Lock()
		rows = append(rows, m.status)
		m.mu.Unlock()
	}
	return rows
}

// Run compares until ctx ends.
func (c *IDCheck) Run(ctx context.Context) error {
	if len(c.models) == 0 {
		return nil
	}
	defer c.engines.client.CloseIdleConnections()
	ticker := time.NewTicker(min(c.interval, time.Second))
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-ticker.C:
			c.Step(ctx, now)
		}
	}
}

// Step compares at most one request of each model, where it is time. Only one
// goroutine calls it.
func (c *IDCheck) Step(ctx context.Context, now time.Time) {
	for _, m := range c.models {
		if now.Before(m.next) || c.encoder.Model(m.served.cfg.Name) == nil {
			continue
		}
		if base, ok := c.engines.endpoint(m.served.cfg.Name); ok {
			begin := c.encoder.now()
			c.step(ctx, now, m, strings.TrimSuffix(base, "/"))
			if rested := now.Add(restShare * c.encoder.now().Sub(begin)); rested.After(m.next) {
				m.next = rested
			}
		}
	}
}

func (c *IDCheck) step(ctx context.Context, now time.Time, m *checked, base string) {
	m.next = now.Add(c.interval)
	switch {
	case m.bad != nil:
		m.next = now.Add(recheckInterval * c.interval)
		c.recheck(ctx, m, base)
	case len(m.probes) > 0:
		p := m.probes[0]
		outcome, difference := c.compare(ctx, m, base, &sampled{p.request, p.name})
		if outcome == checkFailed {
			return // The engine may be starting.
		}
		m.probes = m.probes[1:]
		if len(m.probes) > 0 {
			m.next = now // At the start there is no reason to wait.
		}
		c.result(now, m, &sampled{p.request, p.name}, outcome, difference)
	default:
		m.mu.Lock()
		s := m.sample
		m.sample = nil
		m.mu.Unlock()
		if s == nil {
			m.next = now
			return
		}
		outcome, difference := c.compare(ctx, m, base, s)
		c.result(now, m, s, outcome, difference)
	}
}

// result takes in how one comparison came out.
func (c *IDCheck) result(now time.Time, m *checked, s *sampled, outcome checkOutcome, difference *Difference) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if outcome == checkUnknown {
		m.next = now.Add(unknownInterval * c.interval)
		m.status.Unknown = "the engine offers neither " + s.Path + "/render nor /tokenize"
		return
	}
	if outcome != checkDiffering {
		if outcome == checkEqual {
			m.status.Unknown = ""
		}
		return
	}
	m.status.Unknown, m.status.Difference = "", difference
	m.bad, m.rounds = s, 0
	args := []any{
		"model", m.status.Model, "request", difference.Request, "engine", difference.Engine, "position", difference.Position,
		"cause", difference.Cause, "fix", difference.Fix, "ours", difference.Ours, "engines", difference.Theirs,
	}
	if !c.encoder.canAsk(m.served) {
		c.log.Error("token ids differ from the engine's; cached prefixes will not match", args...)
		return
	}
	m.served.differs.Store(true)
	m.status.RemoteSince = &now
	c.remote.WithLabelValues(m.status.Model).Set(1)
	c.log.Error("token ids differ from the engine's; engines are asked for all ids of the model until they are equal", args...)
}

// recheck compares what differed and our own prompts; after some rounds in
// which all are equal this process encodes again.
func (c *IDCheck) recheck(ctx context.Context, m *checked, base string) {
	all := []*sampled{m.bad}
	for _, p := range probesOf(m.served.cfg.Name) {
		all = append(all, &sampled{p.request, p.name})
	}
	for _, s := range all {
		switch outcome, difference := c.compare(ctx, m, base, s); outcome {
		case checkDiffering:
			m.mu.Lock()
			m.bad, m.rounds, m.status.Difference = s, 0, difference
			m.mu.Unlock()
			return
		case checkFailed, checkUnknown:
			return
		case checkEqual, checkRefused:
		}
	}
	if m.rounds++; m.rounds < roundsToReturn {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	since := m.status.RemoteSince
	m.bad, m.rounds, m.status.RemoteSince, m.status.Difference = nil, 0, nil, nil
	m.served.differs.Store(false)
	c.remote.WithLabelValues(m.status.Model).Set(0)
	c.log.Info("token ids are equal to the engine's again", "model", m.status.Model, "remote_since", since)
}

// checkOutcome is what a comparison has shown. The values label metrics.
type checkOutcome string

const (
	checkEqual     checkOutcome = "equal"
	checkDiffering checkOutcome = "differing"
	checkUnknown   checkOutcome = "unknown" // the engine has no endpoint for it
	checkRefused   checkOutcome = "refused" // by the engine or by us: no ids to compare
	checkFailed    checkOutcome = "failed"  // the engine did not answer
)

// compare asks the engine for the ids of one request and compares them with
// ours, and again where they differ.
func (c *IDCheck) compare(ctx context.Context, m *checked, base string, s *sampled) (checkOutcome, *Difference) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	outcome, seen := c.compareOnce(ctx, m, base, s)
	for range confirmations - 1 {
		if outcome == checkDiffering {
			outcome, seen = c.compareOnce(ctx, m, base, s)
		}
	}
	var difference *Difference
	if outcome == checkDiffering {
		difference = seen.explain(ctx)
	}
	c.outcomes.WithLabelValues(m.served.cfg.Name, string(outcome)).Inc()
	m.mu.Lock()
	defer m.mu.Unlock()
	switch outcome {
	case checkEqual:
		m.status.Checked++
		m.status.Equal++
	case checkDiffering:
		m.status.Checked++
		m.status.Differing++
	case checkUnknown, checkRefused, checkFailed:
	}
	return outcome, difference
}

// compareOnce encodes before and after the engine does: where a template prints
// the time, one of both is the engine's.
func (c *IDCheck) compareOnce(ctx context.Context, m *checked, base string, s *sampled) (checkOutcome, *differing) {
	model := m.served.model.Load()
	ours := func(now time.Time) ([][]uint32, bool) {
		encoded, err := model.Encode(ctx, s.Request, now)
		if err != nil || encoded.Remote != RemoteNone {
			return nil, false
		}
		var lists [][]uint32
		for _, p := range encoded.Prompts {
			if p.UsablePrefix != len(p.TokenIDs) || p.media > 0 {
				return nil, false
			}
			lists = append(lists, p.TokenIDs)
		}
		return lists, true
	}
	now := c.encoder.now().In(m.served.zone)
	before, ok := ours(now)
	if !ok {
		return checkRefused, nil
	}
	theirs, outcome := c.askIDs(ctx, base, s.Request, len(before) == 1)
	if outcome != checkEqual {
		return outcome, nil
	}
	if slices.EqualFunc(before, theirs, slices.Equal[[]uint32]) {
		return checkEqual, nil
	}
	after, ok := ours(c.encoder.now().In(m.served.zone))
	if ok && slices.EqualFunc(after, theirs, slices.Equal[[]uint32]) {
		return checkEqual, nil
	}
	return checkDiffering, &differing{
		check: c, model: model, served: m.served, base: base, request: s, ours: before, theirs: theirs, now: now, encode: ours,
	}
}

// askIDs gets the engine's ids of the request's prompts; the outcome is
// checkEqual where it got them.
func (c *IDCheck) askIDs(ctx context.Context, base string, r Request, single bool) ([][]uint32, checkOutcome) {
	path := generationPath(r.Path)
	prompts, err := c.engines.ask(ctx, base, path, r.Body, single && tokenizable(path, r.Body))
	var refused *statusError
	switch {
	case err == nil:
	case !errors.As(err, &refused), refused.code >= http.StatusInternalServerError:
		return nil, checkFailed
	case refused.code == http.StatusNotFound, refused.code == http.StatusMethodNotAllowed:
		return nil, checkUnknown
	default:
		return nil, checkRefused
	}
	var lists [][]uint32
	for _, p := range prompts {
		lists = append(lists, p.TokenIDs)
	}
	return lists, checkEqual
}

// tokenizable is fields.tokenizable of a body.
func tokenizable(path string, body []byte) bool {
	d := documents.Get().(*document) //nolint:forcetypeassert // the pool holds nothing else
	defer d.release()
	if parseBody(d, body) != nil {
		return false
	}
	f := readFields(d.root())
	return f.tokenizable(path)
}

// detokenize is the engine's text of ids.
func (c *IDCheck) detokenize(ctx context.Context, base, model string, ids []uint32) (string, error) {
	body, err := json.Marshal(map[string]any{"model": model, "tokens": ids})
	if err != nil {
		return "", err
	}
	answer, status, err := c.engines.post(ctx, base+"/detokenize", body)
	if err != nil {
		return "", err
	}
	if status != http.StatusOK {
		return "", fmt.Errorf("%s: detokenize: status %d", base, status)
	}
	var text struct{ Prompt *string }
	if err := json.Unmarshal(answer, &text); err != nil || text.Prompt == nil {
		return "", errors.Join(errors.New("detokenize: answer without prompt"), err)
	}
	return *text.Prompt, nil
}
