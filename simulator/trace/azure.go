package trace

import (
	"bufio"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// azureColumns are those that count; others are not looked at.
var azureColumns = [...]string{"TIMESTAMP", "ContextTokens", "GeneratedTokens"}

const azureExpected = "expected TIMESTAMP,ContextTokens,GeneratedTokens, as in 2023-11-16 18:17:03.9799600,4808,10"

// azureTimes are the forms of TIMESTAMP: those of 2023, of 2024, and what other
// tools write. A fraction of a second is read in each.
var azureTimes = [...]string{time.DateTime, "2006-01-02 15:04:05Z07:00", time.RFC3339, "2006-01-02T15:04:05"}

func (p *pieces) readAzure(name string, r *bufio.Reader) error {
	if head, _ := r.Peek(3); string(head) == "\ufeff" {
		_, _ = r.Discard(3)
	}
	rows := csv.NewReader(r)
	rows.ReuseRecord = true
	header, err := rows.Read()
	if errors.Is(err, io.EOF) {
		return &Error{File: name, Fault: "is empty; " + azureExpected}
	}
	if err != nil {
		return csvFault(name, err)
	}
	var at [len(azureColumns)]int
	for i, column := range azureColumns {
		at[i] = slices.IndexFunc(header, func(h string) bool { return strings.TrimSpace(h) == column })
		if at[i] < 0 {
			return &Error{File: name, Line: 1, Fault: fmt.Sprintf("the header has no column %s; %s", column, azureExpected)}
		}
	}
	for {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return csvFault(name, err)
		}
		request, err := azure(row[at[0]], row[at[1]], row[at[2]])
		if err != nil {
			line, _ := rows.FieldPos(0)
			return &Error{File: name, Line: line, Fault: err.Error() + "; " + azureExpected}
		}
		p.add(request)
	}
}

// csvFault is an error of the CSV reader under the file's name and line.
func csvFault(name string, err error) error {
	if fault, ok := errors.AsType[*csv.ParseError](err); ok {
		return &Error{File: name, Line: fault.Line, Fault: fault.Err.Error() + "; " + azureExpected}
	}
	return fmt.Errorf("%s: %w", name, err)
}

func azure(timestamp, context, generated string) (Request, error) {
	at, err := azureTime(strings.TrimSpace(timestamp))
	if err != nil {
		return Request{}, err
	}
	input, err := strconv.ParseInt(strings.TrimSpace(context), 10, 64)
	if err != nil {
		return Request{}, fmt.Errorf("ContextTokens is %q, not a number", context)
	}
	output, err := strconv.ParseInt(strings.TrimSpace(generated), 10, 64)
	if err != nil {
		return Request{}, fmt.Errorf("GeneratedTokens is %q, not a number", generated)
	}
	if err := lengths("ContextTokens", input, "GeneratedTokens", output); err != nil {
		return Request{}, err
	}
	return Request{At: at, Prompt: int(input), Output: int(output)}, nil
}

// azureTime is a timestamp's time since 1970.
func azureTime(text string) (time.Duration, error) {
	for _, layout := range azureTimes {
		if t, err := time.Parse(layout, text); err == nil {
			return sinceEpoch(t)
		}
	}
	return 0, fmt.Errorf("TIMESTAMP is %q, not a time", text)
}

// sinceEpoch refuses what a time.Duration would not hold.
func sinceEpoch(t time.Time) (time.Duration, error) {
	if t.Year() < 1970 || t.Year() > 2200 {
		return 0, fmt.Errorf("the time %s is not between 1970 and 2200", t.Format(time.RFC3339))
	}
	return time.Duration(t.UnixNano()), nil
}
