package lmcache

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// APIPaths are the calls of LMCache's controller that API serves. Releases call
// the last but one /health; both names are taken.
var APIPaths = []string{"/lookup", "/query_instance", "/query_worker_info", "/health", "/health_check"}

// maxAPIBody bounds a request's body: over a million token ids.
const maxAPIBody = 8 << 20

// API serves those calls of the HTTP API of LMCache's own controller that only
// read, with its requests, answers and statuses, for tools that call it today.
// Where ours answers otherwise it knows more:
//
//   - lookup lists every instance that holds the begin of the prompt, each with
//     what it holds without a gap, the longest first; LMCache's lists for each
//     chunk the first instance that registered;
//   - lookup makes the keys by each instance's own settings;
//   - health asks no worker: an error code of 0 is a worker that was heard of
//     as expected, -1 one that has been silent ever since it registered.
func API(controller *Controller, source *Source) http.Handler {
	mux := http.NewServeMux()
	post := func(path string, serve func(body []byte) (any, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAPIBody))
			if err != nil {
				status := http.StatusBadRequest
				if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
					status = http.StatusRequestEntityTooLarge
				}
				writeAPI(w, status, map[string]any{"detail": err.Error()})
				return
			}
			answer, err := serve(body)
			switch invalid, ok := errors.AsType[*requestError](err); {
			case ok:
				writeAPI(w, http.StatusUnprocessableEntity, map[string]any{"detail": []*requestError{invalid}})
			case err != nil:
				// As LMCache does: whatever it cannot answer is a 500.
				writeAPI(w, http.StatusInternalServerError, map[string]any{"detail": err.Error()})
			default:
				writeAPI(w, http.StatusOK, answer)
			}
		})
	}
	post("/lookup", func(body []byte) (any, error) { return serveLookup(source, body) })
	post("/query_instance", func(body []byte) (any, error) { return serveInstance(controller, body) })
	post("/query_worker_info", func(body []byte) (any, error) { return serveWorkers(controller, body) })
	health := func(body []byte) (any, error) { return serveHealth(controller, body) }
	post("/health", health)
	post("/health_check", health)
	return mux
}

func writeAPI(w http.ResponseWriter, status int, answer any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	// Nobody is left to tell where the client is gone.
	_ = json.NewEncoder(w).Encode(answer)
}

// requestError is one fault of a request in the form in which FastAPI tells
// of it.
type requestError struct {
	Kind string `json:"type"`
	Loc  []any  `json:"loc"`
	Msg  string `json:"msg"`
}

// Error implements error.
func (e *requestError) Error() string { return fmt.Sprint(e.Msg, " at ", e.Loc) }

// readAPI decodes a body into the struct that to points to; required fields
// must be there.
func readAPI(body []byte, to any, required ...string) error {
	var fields map[string]json.RawMessage
	err := json.Unmarshal(body, &fields)
	if err == nil {
		for _, name := range required {
			if fields[name] == nil {
				return &requestError{"missing", []any{"body", name}, "Field required"}
			}
		}
		err = json.Unmarshal(body, to)
	}
	if fault, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return &requestError{"type_error", []any{"body", fault.Field}, "Input should be a valid " + fault.Type.String() + ", not " + fault.Value}
	}
	if err != nil {
		return &requestError{"json_invalid", []any{"body"}, "JSON decode error: " + err.Error()}
	}
	return nil
}

// eventID is what LMCache calls its answers.
func eventID(kind string) string { return kind + rand.Text() }

// layout is an object whose fields keep their order.
type layout []InstanceMatch

// MarshalJSON implements json.Marshaler.
func (l layout) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range l {
		if i > 0 {
			b = append(b, ',')
		}
		name, err := json.Marshal(m.Instance)
		if err != nil {
			return nil, err
		}
		place, err := json.Marshal([]any{m.Location, m.Tokens})
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, name...), ':'), place...)
	}
	return append(b, '}'), nil
}

func serveLookup(source *Source, body []byte) (any, error) {
	var q struct{ Tokens []uint32 }
	if err := readAPI(body, &q, "tokens"); err != nil {
		return nil, err
	}
	return struct {
		EventID    string `json:"event_id"`
		LayoutInfo layout `json:"layout_info"`
	}{eventID("Lookup"), source.Lookup(q.Tokens)}, nil
}

func serveInstance(c *Controller, body []byte) (any, error) {
	var q struct {
		EventID string `json:"event_id"`
		IP      string
	}
	if err := readAPI(body, &q, "event_id", "ip"); err != nil {
		return nil, err
	}
	_, instances := c.Instances()
	for _, in := range instances {
		if slices.ContainsFunc(in.Workers, func(w WorkerAddress) bool { return w.IP == q.IP }) {
			return map[string]string{"event_id": eventID("QueryInst"), "res": in.ID}, nil
		}
	}
	return nil, fmt.Errorf("no instance is registered with the ip %q", q.IP)
}

// workerInfo is one worker as query_worker_info tells of it; times are seconds
// since 1970.
type workerInfo struct {
	Instance   string  `json:"instance_id"`
	Worker     int     `json:"worker_id"`
	IP         string  `json:"ip"`
	Port       int     `json:"port"`
	PeerURL    *string `json:"peer_init_url"`
	Registered float64 `json:"registration_time"`
	// Heartbeat is the registration's time before the first one.
	Heartbeat float64 `json:"last_heartbeat_time"`
	silent    bool
}

// workers describes the registered workers, in the order of registration.
func (c *Controller) workers() []workerInfo {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*worker
	for _, w := range c.registry.workers {
		if !w.provisional {
			list = append(list, w)
		}
	}
	byOrder(list)
	infos := make([]workerInfo, len(list))
	for i, w := range list {
		infos[i] = workerInfo{
			Instance: w.Worker.Instance, Worker: w.Worker.Worker, IP: w.IP, Port: w.Port,
			Registered: seconds(w.registered), Heartbeat: seconds(w.registered), silent: w.silent,
		}
		if !w.heartbeat.IsZero() {
			infos[i].Heartbeat = seconds(w.heartbeat)
		}
		if url := w.PeerURL; url != "" {
			infos[i].PeerURL = &url
		}
	}
	return infos
}

func seconds(t time.Time) float64 { return float64(t.UnixMicro()) / 1e6 }

func serveWorkers(c *Controller, body []byte) (any, error) {
	var q struct {
		Instance string `json:"instance_id"`
		Workers  []int  `json:"worker_ids"`
	}
	if err := readAPI(body, &q, "instance_id"); err != nil {
		return nil, err
	}
	infos := []workerInfo{}
	for _, w := range c.workers() {
		if (q.Instance == "all" || q.Instance == w.Instance) && (len(q.Workers) == 0 || slices.Contains(q.Workers, w.Worker)) {
			infos = append(infos, w)
		}
	}
	return map[string]any{"event_id": eventID("QueryWorkerInfo"), "worker_infos": infos}, nil
}

func serveHealth(c *Controller, body []byte) (any, error) {
	var q struct {
		Instance string `json:"instance_id"`
	}
	if err := readAPI(body, &q, "instance_id"); err != nil {
		return nil, err
	}
	codes := make(map[string]int)
	for _, w := range c.workers() {
		if w.Instance == q.Instance {
			codes[strconv.Itoa(w.Worker)] = 0
			if w.silent {
				codes[strconv.Itoa(w.Worker)] = -1
			}
		}
	}
	if len(codes) == 0 {
		return nil, fmt.Errorf("no workers found for instance %s", q.Instance)
	}
	return map[string]any{"event_id": eventID("health"), "error_codes": codes}, nil
}

// InstanceMatch is what one instance holds of a prompt.
type InstanceMatch struct {
	Instance string
	// Location is where the last of the tokens are.
	Location string
	// Tokens are held from the first on without a gap. Above 0.
	Tokens int
}

// Lookup tells what each instance, mapped to an endpoint or not, holds of a
// prompt, the longest first. It is for people and tools; decisions go by Match.
func (s *Source) Lookup(tokens []uint32) []InstanceMatch {
	v, adopted := s.current(), *s.adopted.Load()
	hashers := make(map[string]*Hasher)
	for _, e := range v.endpoints {
		if id := v.Instances[e.ID]; id != "" {
			hashers[id] = s.keys.of(e, "")
		}
	}
	_, instances := s.roster.Instances()
	asked := make(map[*Hasher][]string)
	for _, in := range instances {
		h, ok := adopted[in.ID]
		if !ok {
			if h, ok = hashers[in.ID]; !ok {
				h = s.keys.byDefault
			}
		}
		if h != nil { // else nothing is known of its settings
			asked[h] = append(asked[h], in.ID)
		}
	}
	matches := make(map[string]InstanceMatch)
	for h, names := range asked {
		for i, held := range s.index.Match(nil, h.Keys(nil, tokens), names) {
			if m := h.match(held, 0, scoring.Tokens(len(tokens)), TransferSeconds{}); m.Cached > 0 {
				matches[names[i]] = InstanceMatch{names[i], m.Spans[len(m.Spans)-1].Location, int(m.Cached)}
			}
		}
	}
	var list []InstanceMatch
	for _, in := range instances {
		if m, ok := matches[in.ID]; ok {
			list = append(list, m)
		}
	}
	slices.SortStableFunc(list, func(a, b InstanceMatch) int { return cmp.Compare(b.Tokens, a.Tokens) })
	return list
}
