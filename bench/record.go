package bench

import (
	"encoding/csv"
	"fmt"
	"io"
	"strconv"
	"time"
)

// Record is one request as the client saw it.
type Record struct {
	// User and Question say whose it is, and the how manieth of theirs, from 1.
	User, Question int
	Answer
	// Between is the mean time from one event with content to the next; 0 where
	// there was only one.
	Between time.Duration
	// Late is how long after its time an open loop's request was sent.
	Late time.Duration
	// Fault is nil where all went well.
	Fault *Error
}

// columns are those of multi-round-qa of vLLM's production stack, whose plots
// can be drawn from the file, and ours behind them. A request that failed has
// no ttft there, and its kind of fault as error.
var columns = []string{
	"prompt_tokens", "generation_tokens", "ttft", "generation_time", "user_id", "question_id", "launch_time", "finish_time",
	"cached_tokens", "itl", "late", "endpoint", "reason", "id", "error",
}

// WriteCSV writes one line for each record, below the columns' names. Times are
// in seconds, of the day since 1970.
func WriteCSV(w io.Writer, records []Record) error {
	out := csv.NewWriter(w)
	if err := out.Write(columns); err != nil {
		return err
	}
	for i := range records {
		if err := out.Write(records[i].row()); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

func (r *Record) row() []string {
	seconds := func(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 6, 64) }
	moment := func(t time.Time) string { return strconv.FormatFloat(float64(t.UnixMicro())/1e6, 'f', 6, 64) }
	var ttft, generation, cached, between, fault string
	if r.Fault == nil {
		ttft, generation = seconds(r.FirstToken), seconds(r.End-r.FirstToken)
		if r.Between > 0 {
			between = seconds(r.Between)
		}
	} else {
		fault = string(r.Fault.Kind)
	}
	if r.Usage.CachedKnown {
		cached = strconv.Itoa(r.Usage.Cached)
	}
	return []string{
		strconv.Itoa(r.Usage.Prompt), strconv.Itoa(r.Usage.Completion), ttft, generation,
		strconv.Itoa(r.User), strconv.Itoa(r.Question), moment(r.Sent), moment(r.Sent.Add(r.End)),
		cached, between, seconds(r.Late), r.Endpoint, r.Reason, r.ID, fault,
	}
}

// Range is a number between From and To, both included, as flags write it:
// 2000 or 2000-6000.
type Range struct{ From, To int }

// ParseRange reads what String writes.
func ParseRange(text string) (Range, error) {
	var r Range
	if n, err := strconv.Atoi(text); err == nil {
		r = Range{n, n}
	} else if n, err := fmt.Sscanf(text, "%d-%d", &r.From, &r.To); n != 2 || err != nil || r.String() != text {
		return Range{}, fmt.Errorf("%q is no number of tokens; write such as 2000 or 2000-6000", text)
	}
	if r.From < 0 || r.To < r.From {
		return Range{}, fmt.Errorf("%q is no range; write the smaller number first, and none below 0", text)
	}
	return r, nil
}

func (r Range) String() string {
	if r.From == r.To {
		return strconv.Itoa(r.From)
	}
	return fmt.Sprintf("%d-%d", r.From, r.To)
}
