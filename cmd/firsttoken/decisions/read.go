package decisions

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	"github.com/cespare/xxhash/v2"
	"google.golang.org/protobuf/encoding/protojson"

	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
	"github.com/firsttoken/firsttoken/scoring"
)

// maxLine is the longest line that is read, more than /decisions answers for a
// hundred endpoints.
const maxLine = 64 << 20

// maxFaults is how many faults are named; all are counted.
const maxFaults = 10

// Fault is a line that is no record.
type Fault struct {
	File string
	Line int // from 1
	Text string
}

func (f Fault) String() string { return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Text) }

// Records are what was read of any number of files. A record takes some 100 bytes
// of memory.
type Records struct {
	// Read counts records that are in the figures; Doubled those met before, Open
	// those of requests that had not ended, Bad the lines that are none. The latter
	// three are left out.
	Read, Doubled, Open, Bad int
	// Faults name the first bad lines.
	Faults []Fault
	// Files were read, in order.
	Files []string

	rows   []row
	met    map[uint64]struct{} // hashes of the ids in rows
	groups index[group]
	places index[string] // endpoints' names
	counts map[string]map[string]int
}

// row is what the figures need of one record. Seconds are negative and endpoints -1
// where they are not known.
type row struct {
	at             time.Time
	group          int32
	choice, served int32
	prompt         uint32
	// unsized: no prompt was read of the request, so that nothing but load decided.
	unsized bool
	// Tokens that the choice and the endpoint that served had cached, or on their way
	// by requests under way; compared: both are known.
	choiceCached, servedCached uint32
	compared                   bool
	// ttft is measured; estimate is what was estimated for the endpoint that it was
	// measured at, choiceEstimate for the choice.
	ttft, estimate, choiceEstimate float64
}

// group is what requests are told apart by.
type group struct {
	model, policy, arm string
	shadow             bool
}

// index numbers values in the order in which they are met.
type index[T comparable] struct {
	number map[T]int32
	values []T
}

func (x *index[T]) of(v T) int32 {
	n, met := x.number[v]
	if !met {
		if x.number == nil {
			x.number = make(map[T]int32)
		}
		n = int32(len(x.values)) //nolint:gosec // far fewer than records
		x.number[v] = n
		x.values = append(x.values, v)
	}
	return n
}

// Add reads a file of decision records: one JSON object a line, or bodies of
// /decisions, each on a line. Lines that are neither are counted and named. The
// error is the reader's own.
func (r *Records) Add(name string, content io.Reader) error {
	r.Files = append(r.Files, name)
	in := bufio.NewReaderSize(content, 256<<10)
	for number := 1; ; number++ {
		line, tooLong, err := readLine(in)
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("%s: %w", name, err)
		}
		switch line = bytes.TrimSpace(line); {
		case tooLong:
			r.fault(name, number, fmt.Sprintf("is longer than %d MiB", maxLine>>20))
		case len(line) > 0:
			r.addLine(name, number, line)
		}
		if err != nil {
			return nil //nolint:nilerr // the end of the file
		}
	}
}

// readLine is a line, or nothing of one that is too long.
func readLine(in *bufio.Reader) (line []byte, tooLong bool, err error) {
	for {
		part, err := in.ReadSlice('\n')
		if len(line)+len(part) > maxLine {
			tooLong, line = true, nil
		}
		if !tooLong {
			line = append(line, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, tooLong, err
		}
	}
}

func (r *Records) fault(file string, line int, text string) {
	r.Bad++
	if len(r.Faults) < maxFaults {
		r.Faults = append(r.Faults, Fault{file, line, text})
	}
}

func (r *Records) addLine(file string, number int, line []byte) {
	var body struct {
		Decisions *[]json.RawMessage `json:"decisions"`
	}
	if bytes.HasPrefix(line, []byte(`{"decisions"`)) && json.Unmarshal(line, &body) == nil && body.Decisions != nil {
		for _, record := range *body.Decisions {
			if err := r.addRecord(record); err != nil {
				r.fault(file, number, err.Error())
			}
		}
		return
	}
	if err := r.addRecord(line); err != nil {
		r.fault(file, number, err.Error())
	}
}

func (r *Records) addRecord(text []byte) error {
	var d firsttokenv1.Decision
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, &d); err != nil {
		return errors.New("is no decision record: expected one JSON object a line, as decisions.file has them, or a body of /decisions")
	}
	if err := check(&d); err != nil {
		return err
	}
	if d.GetEnded() == nil {
		r.Open++
		return nil
	}
	id := xxhash.Sum64String(d.GetId())
	if _, met := r.met[id]; met {
		r.Doubled++
		return nil
	}
	if r.met == nil {
		r.met = make(map[uint64]struct{})
		r.counts = make(map[string]map[string]int)
	}
	r.met[id] = struct{}{}
	r.Read++
	r.rows = append(r.rows, r.row(&d))
	r.count(countReason, d.GetReason())
	r.count(countTokens, d.GetTokenSource())
	r.count(countOutcome, d.GetOutcome())
	r.count(countRescue, d.GetRescue())
	return nil
}

func (r *Records) count(of, value string) {
	if value == "" {
		return
	}
	if r.counts[of] == nil {
		r.counts[of] = make(map[string]int)
	}
	r.counts[of][value]++
}

// check refuses what no service writes.
func check(d *firsttokenv1.Decision) error {
	switch {
	case d.GetId() == "":
		return errors.New("id is missing")
	case d.GetTime() == nil:
		return errors.New("time is missing")
	case len(d.GetCandidates()) == 0:
		return errors.New("candidates are missing")
	}
	if err := d.GetTime().CheckValid(); err != nil {
		return fmt.Errorf("time: %w", err)
	}
	if year := d.GetTime().AsTime().Year(); year < 2000 || year > 2999 {
		return fmt.Errorf("time is in the year %d", year)
	}
	// More seconds than a day are no time to a first token.
	const day = 86_400
	seconds := []float64{d.GetTtftSeconds()}
	for _, c := range d.GetCandidates() {
		seconds = append(seconds, c.GetEstimateSeconds())
	}
	for _, s := range seconds {
		if !(s >= 0 && s <= day) { // nor NaN
			return fmt.Errorf("a time is %g seconds, expected 0 to %d", s, day)
		}
	}
	for _, c := range d.GetCandidates() {
		if c.GetCachedTokens() > d.GetPromptTokens() {
			return fmt.Errorf("%s holds %d of %d prompt tokens", c.GetEndpoint(), c.GetCachedTokens(), d.GetPromptTokens())
		}
	}
	return nil
}

func (r *Records) row(d *firsttokenv1.Decision) row {
	candidates := d.GetCandidates()
	choice := candidates[0]
	w := row{
		at:     d.GetTime().AsTime(),
		group:  r.groups.of(group{d.GetModel(), d.GetPolicy(), d.GetArm(), d.GetShadow()}),
		choice: r.places.of(choice.GetEndpoint()), served: -1,
		prompt: d.GetPromptTokens(), unsized: d.GetTokenSource() == string(scoring.TokensNone), ttft: -1, estimate: -1, choiceEstimate: choice.GetEstimateSeconds(),
	}
	if d.TtftSeconds != nil {
		w.ttft = d.GetTtftSeconds()
	}
	for _, c := range candidates {
		r.places.of(c.GetEndpoint()) // one that served nobody counts in the balance
	}
	for i, c := range candidates {
		if d.ServedAddress == nil || c.GetAddress() != d.GetServedAddress() {
			continue
		}
		w.served = r.places.of(c.GetEndpoint())
		if i == 0 || d.GetShadow() {
			// One that was moved waited elsewhere before: nothing was estimated for that.
			w.estimate = c.GetEstimateSeconds()
		}
		if choice.CachedTokens != nil && c.CachedTokens != nil {
			w.compared, w.choiceCached, w.servedCached = true, hits(d, choice), hits(d, c)
		}
		break
	}
	return w
}

// hits are the prompt tokens that an engine is expected to find: those in its caches,
// and those that requests before this one bring. Engines count both.
func hits(d *firsttokenv1.Decision, c *firsttokenv1.Candidate) uint32 {
	return c.GetCachedTokens() + min(c.GetOptimisticTokens(), d.GetPromptTokens()-c.GetCachedTokens())
}

// finite guards what is printed: figures are never NaN.
func finite(x float64) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	return x
}
