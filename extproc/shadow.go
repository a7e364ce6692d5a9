package extproc

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	lru "github.com/hashicorp/golang-lru/v2"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// ShadowConfig sets what is done with requests that Envoy only shows us
// (observability_mode, "firsttoken envoy bootstrap --shadow"): the service decides,
// and changes nothing.
type ShadowConfig struct {
	// ServedHeader is the response header in which another router, behind Envoy,
	// names the engine that served: its address (ip:port, with or without
	// http://) or its name here. Envoy must show response headers for that. Where
	// Envoy itself dials the engines it tells by itself. Empty: there is none.
	ServedHeader string `yaml:"served_header"`
	// Streams is how many requests are watched at a time, each from its first
	// byte to its first token; those beyond are not.
	Streams int `yaml:"streams"`
	// BodyBytes is how many bytes of their bodies are kept at a time, all
	// together; requests beyond are not watched.
	BodyBytes int `yaml:"body_bytes"`
}

// DefaultShadowConfig is what holds where the operator says nothing.
func DefaultShadowConfig() ShadowConfig { return ShadowConfig{Streams: 1000, BodyBytes: 256 << 20} }

// Validate joins all faults, each beginning with its path below path.
func (c ShadowConfig) Validate(path string) error {
	var faults []error
	if strings.ContainsAny(c.ServedHeader, " :\t\r\n") {
		faults = append(faults, fmt.Errorf("%s.served_header: %q is no header's name; write one such as x-served-by", path, c.ServedHeader))
	}
	if c.Streams < 0 {
		faults = append(faults, fmt.Errorf("%s.streams: is %d; write 0 (no request is watched) or more", path, c.Streams))
	}
	if c.BodyBytes < 1 {
		faults = append(faults, fmt.Errorf("%s.body_bytes: is %d; write 1 or more", path, c.BodyBytes))
	}
	return errors.Join(faults...)
}

// shadows is what all requests that are only shown share.
type shadows struct {
	streams, bytes atomic.Int64 // at present, at most as ShadowConfig says
	// byRequest joins streams with the access log by x-request-id. A client may
	// write it: whoever writes one twice is joined with nothing. The longest
	// unused are forgotten.
	byRequest *lru.Cache[string, *shadow]
	// joins: such requests have come with an id. Before that no record can be of one.
	joins atomic.Bool
	// logged: the access log has told of such requests.
	logged   atomic.Bool
	warnOnce sync.Once
}

// maxJoined bounds byRequest: requests that are under way at a time, 200 bytes
// each.
const maxJoined = 1 << 14

func newShadows() *shadows {
	byRequest, err := lru.New[string, *shadow](maxJoined)
	if err != nil {
		panic(err) // only a size that is not positive
	}
	return &shadows{byRequest: byRequest}
}

// shadow is one request that is only shown to us. Its stream and the access log
// tell of it, each from its own goroutine.
type shadow struct {
	server  *Server
	request string // x-request-id; empty: none; set once

	// The following belong to the stream.
	kept    int64     // bytes of the body, counted in shadows.bytes
	arrived time.Time // when all of the request had come
	skipped bool

	doubled atomic.Bool // another request has the same x-request-id

	// telling guards told: the decision was told of, before anything else of it is.
	// It is held while observers are told, so that it does not move meanwhile. It
	// comes before the ledger's lock; nobody who is told takes it.
	telling sync.Mutex
	told    bool

	mu sync.Mutex // guards the following fields
	id string     // the decision's, empty until it is made
	// address serves the request, as far as the access log told; empty: nothing.
	// outcome is how it ended, if that was told while the stream was open.
	address string
	outcome scoring.Outcome
	// begun and closed are the stream's. The access log may come first, at noted.
	begun, closed bool
	noted         time.Time
}

// showsRequest reports whether a stream's first message begins a request that
// nobody asks us about. A filter that watches the answers to our own choices
// (its metadata names one) shows requests in vain.
func showsRequest(d dialect, first *extprocv3.ProcessingRequest) bool {
	if !d.observed || decisionID(first.GetMetadataContext().GetFilterMetadata()[envoy.Metadata]) != "" {
		return false
	}
	return (first.GetRequestHeaders() != nil || first.GetRequestBody() != nil) && (!d.declared || d.request != bodyNone)
}

// skipCause says why a request that was shown is not watched. The values label a
// metric.
type skipCause string

const (
	skipStreams  skipCause = "streams"   // more at a time than server.shadow.streams
	skipBytes    skipCause = "bytes"     // more than server.shadow.body_bytes
	skipTooLarge skipCause = "too_large" // longer than server.body_limit_bytes
	skipNoBody   skipCause = "no_body"   // Envoy's mode shows no bodies
	skipRefused  skipCause = "refused"   // no endpoint would have been chosen
	skipCut      skipCause = "cut"       // its client left, or we lag behind: Envoy ended the stream
)

// beginShadow makes the stream a shadow's. The error is errDone where it is not to
// be watched.
func (st *stream) beginShadow() error {
	st.shadow = &shadow{server: st.Server}
	if n := st.shadows.streams.Add(1); n > int64(st.cfg.Shadow.Streams) {
		return st.skip(skipStreams)
	}
	if st.dialect.declared && st.dialect.request != bodyStreamed {
		// Envoy takes the other modes in observability mode and then shows nothing.
		st.shadows.warnOnce.Do(func() {
			st.log.Warn("Envoy shows requests without their bodies, so they are not watched",
				"fix", "set request_body_mode: STREAMED in the ext_proc filter with observability_mode")
		})
		return st.skip(skipNoBody)
	}
	return nil
}

// endShadow frees what the stream held as a shadow.
func (st *stream) endShadow() {
	if st.shadow == nil {
		return
	}
	st.freeBody()
	st.shadows.streams.Add(-1)
	w := st.shadow
	w.mu.Lock()
	w.closed = true
	outcome := w.outcome
	w.mu.Unlock()
	if outcome != "" {
		st.shadows.byRequest.Remove(w.request)
	}
	if st.booking == nil {
		if !w.skipped {
			_ = st.skip(skipCut)
		}
		return
	}
	if outcome != "" {
		w.tell(st.booking)
		st.release(outcome)
	}
}

func (st *stream) freeBody() {
	st.shadows.bytes.Add(-st.shadow.kept)
	st.shadow.kept, st.body = 0, nil
}

// skip gives the request up.
func (st *stream) skip(cause skipCause) error {
	st.metrics.shadowSkipped.WithLabelValues(string(cause)).Inc()
	st.shadow.skipped = true
	return errDone
}

// shownHeaders takes the headers of a request that is only shown.
func (st *stream) shownHeaders(msg *extprocv3.ProcessingRequest, h *extprocv3.HttpHeaders) error {
	if st.shadow == nil || st.decided || st.responded || st.head.seen {
		return nil
	}
	st.head.seen = true
	st.head.readHeaders(h.GetHeaders(), st.cfg.SessionKey)
	st.head.readAttributes(msg)
	for _, kv := range h.GetHeaders().GetHeaders() {
		if strings.EqualFold(kv.GetKey(), requestIDHeader) {
			st.join(headerValue(kv))
		}
	}
	if h.GetEndOfStream() {
		return st.watch()
	}
	return nil
}

// requestIDHeader is the header by which Envoy names each request in its access
// log; it makes one where the client sent none.
const requestIDHeader = "x-request-id"

// maxRequestID is the longest id that is kept; Envoy's own have 36 bytes.
const maxRequestID = 128

// join lets the access log find the request.
func (st *stream) join(request string) {
	if request == "" || len(request) > maxRequestID || st.shadow.request != "" {
		return
	}
	st.shadows.joins.Store(true)
	w := &shadow{server: st.Server, request: request, begun: true}
	if other, known, _ := st.shadows.byRequest.PeekOrAdd(request, w); known {
		if !other.begin() {
			other.doubled.Store(true)
			return
		}
		w = other
	}
	st.shadow = w
}

// maxLag is how much later than the access log a stream is taken in at most: what
// it told before is of another request with the same id.
const maxLag = 10 * time.Second

// begin takes what the access log told for the stream's, unless another stream has.
func (w *shadow) begin() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.begun || time.Since(w.noted) > maxLag {
		return false
	}
	w.begun = true
	w.server.shadows.logged.Store(true)
	return true
}

// shownBody takes a part of the body of a request that is only shown.
func (st *stream) shownBody(msg *extprocv3.ProcessingRequest, b *extprocv3.HttpBody) error {
	if st.shadow == nil || st.decided || st.responded {
		return nil
	}
	if !st.head.seen {
		st.head.readAttributes(msg)
	}
	n := int64(len(b.GetBody()))
	if len(st.body)+len(b.GetBody()) > st.cfg.BodyLimit {
		return st.skip(skipTooLarge)
	}
	st.shadow.kept += n
	if st.shadows.bytes.Add(n) > int64(st.cfg.Shadow.BodyBytes) {
		return st.skip(skipBytes)
	}
	if st.body == nil && b.GetEndOfStream() {
		st.body = b.GetBody() // one chunk is the whole body
	} else {
		st.body = append(st.body, b.GetBody()...)
	}
	if b.GetEndOfStream() {
		return st.watch()
	}
	return nil
}

// shownTrailers ends the body of a request that is only shown.
func (st *stream) shownTrailers() error {
	if st.shadow == nil || st.decided || st.responded {
		return nil
	}
	return st.watch()
}

// watch decides for the request as if we had been asked.
func (st *stream) watch() error {
	st.decided, st.shadow.arrived = true, time.Now()
	st.enter(phaseDeciding)
	defer st.enter(phaseWaiting)
	d, err := st.decide(true)
	st.freeBody()
	switch {
	case err != nil && st.conn.Context().Err() != nil:
		return err
	case err != nil:
		// No endpoint for it, or no engine would take it.
		return st.skip(skipRefused)
	case d == nil:
		return st.skip(skipRefused)
	}
	st.booking = d.Reservation
	if address := st.shadow.decided(d.ID); address != "" {
		st.shadow.place(st.booking, address)
	}
	return nil
}

// decided notes the decision's id and returns what the access log told before it
// was made.
func (w *shadow) decided(id string) (address string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.id = id
	return w.address
}

// place takes in who serves the request: the first time it is booked there, later
// on it has been sent again. A decision that was told of without stays as it was
// told: what observers keep by its endpoint must go by the same one.
func (w *shadow) place(r *scoring.Reservation, address string) {
	w.telling.Lock()
	placed := !w.told && r.Place(address) != nil
	if placed {
		w.tellLocked(r)
	}
	w.telling.Unlock()
	if !placed {
		w.server.served(r, address)
	}
}

// tell tells of the decision, once. It comes before anything else of the request
// is told, and after it is known who serves it, if that is known in time.
func (w *shadow) tell(r *scoring.Reservation) {
	w.telling.Lock()
	defer w.telling.Unlock()
	w.tellLocked(r)
}

// tellLocked is tell. Caller must hold telling.
func (w *shadow) tellLocked(r *scoring.Reservation) {
	if w.told {
		return
	}
	w.told = true
	d := r.Decision()
	w.server.metrics.shadow(d)
	// Observers were told of the end of one that has expired: whatever they began to
	// keep now they would keep for ever.
	if w.server.observer != nil && w.server.picker.Find(d.ID) != nil {
		w.server.observer.Decided(d)
	}
}

// placeByResponse takes in who serves the request from the first part of the
// response.
func (st *stream) placeByResponse(msg *extprocv3.ProcessingRequest) {
	if st.booking == nil {
		return
	}
	st.shadow.place(st.booking, attribute(msg, envoy.AttributeUpstream).GetStringValue())
	if name := st.cfg.Shadow.ServedHeader; name != "" {
		for _, kv := range msg.GetResponseHeaders().GetHeaders().GetHeaders() {
			if strings.EqualFold(kv.GetKey(), name) {
				st.shadow.place(st.booking, addressOf(st.booking.Decision(), headerValue(kv)))
			}
		}
	}
	st.shadow.tell(st.booking)
}

// addressOf is the address of the candidate that a router names by address, URL or
// name; empty: none of them.
func addressOf(d *scoring.Decision, named string) string {
	named = strings.TrimSuffix(named, "/")
	if _, rest, ok := strings.Cut(named, "://"); ok {
		named = rest
	}
	for i := range d.Candidates {
		if e := &d.Candidates[i].Endpoint; named == e.Address || named == e.Name {
			return e.Address
		}
	}
	return ""
}

// recordShadow takes in an access-log record of a request that was only shown: that
// it was sent to an endpoint, or that it is over.
func (s *Server) recordShadow(entry *datav3.HTTPAccessLogEntry, upstream string) recordFate {
	request := entry.GetRequest().GetRequestId()
	if request == "" || len(request) > maxRequestID || !s.shadows.joins.Load() {
		return recordForeign
	}
	w := &shadow{server: s, request: request, noted: time.Now()}
	if first, known, _ := s.shadows.byRequest.PeekOrAdd(request, w); known {
		w = first
	}
	over := entry.GetCommonProperties().GetAccessLogType() != datav3.AccessLogType_UpstreamPoolReady
	w.mu.Lock()
	if w.begun {
		s.shadows.logged.Store(true)
	}
	if over && w.begun {
		s.shadows.byRequest.Remove(request)
	}
	if w.doubled.Load() {
		w.mu.Unlock()
		return recordForeign
	}
	id := w.id
	w.address = upstream
	later := over && !w.closed
	if later {
		// The stream lags behind: what it has yet to see, the first token above
		// all, comes first.
		w.outcome = outcomeOf(entry)
	}
	w.mu.Unlock()
	r := s.picker.Find(id)
	switch {
	case id == "":
		return recordForeign // or of a stream that lags behind
	case r == nil:
		return recordUnknown
	}
	if upstream != "" {
		w.place(r, upstream)
	}
	if over && !later {
		w.tell(r)
		s.end(r, outcomeOf(entry))
	}
	return recordMatched
}

// shownEnded is called when Envoy ended the stream of a request that has a booking.
// That says nothing of the answer: Envoy does not wait for us to see it. It reports
// whether the access log tells of the end, or has told.
func (st *stream) shownEnded() bool {
	w := st.shadow
	w.mu.Lock()
	told := w.outcome != "" || w.request != "" && !w.doubled.Load() && st.shadows.logged.Load()
	w.mu.Unlock()
	if !told {
		w.tell(st.booking)
	}
	return told
}
