package trace

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Format names how a trace is written.
type Format string

// The formats.
const (
	// Auto tells the format from the content of the first file.
	Auto Format = "auto"
	// Mooncake is a JSON object a line: timestamp in milliseconds, input_length
	// and output_length in tokens, hash_ids for blocks of 512 tokens.
	Mooncake Format = "mooncake"
	// Azure is CSV with the columns TIMESTAMP, ContextTokens, GeneratedTokens.
	Azure Format = "azure"
	// Decisions are firsttoken's own records: bodies of /decisions, or one record
	// a line, in any mixture.
	Decisions Format = "decisions"
)

// Formats lists the formats, Auto first.
func Formats() []Format { return []Format{Auto, Mooncake, Azure, Decisions} }

// Options say what a file does not.
type Options struct {
	// Format is how all files are written; empty means Auto.
	Format Format
	// MooncakeBlock is the number of tokens that one of Mooncake's hash_ids
	// stands for; 0 means 512.
	MooncakeBlock int
	// Output is the length in tokens taken for the answer of a decision record
	// that says nothing of it; 0 means 200.
	Output int
	// TokenTime, where positive, is how long one token of an answer took when
	// decision records were made: the length of an answer is then taken from the
	// time between its first token and its end.
	TokenTime time.Duration
}

// Source is one file.
type Source struct {
	// Name is what errors call it.
	Name    string
	Content io.Reader
}

// Error is a fault in a file.
type Error struct {
	// Line counts from 1; 0 where the fault is that of the whole file.
	File string
	Line int
	// Fault says what is wrong and what was expected.
	Fault string
}

func (e *Error) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Fault
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Fault)
}

// Read reads all files as pieces of one trace: their times are those of one
// clock. The error is an *Error for what a file holds, else the reader's own.
func Read(o Options, sources ...Source) (*Trace, error) {
	if o.MooncakeBlock == 0 {
		o.MooncakeBlock = 512
	}
	if o.Output == 0 {
		o.Output = 200
	}
	if len(sources) == 0 {
		return nil, errors.New("no trace is named")
	}
	p := pieces{options: o, format: o.Format}
	for _, s := range sources {
		if err := p.read(s); err != nil {
			return nil, err
		}
	}
	return p.trace(sources)
}

// pieces is what has been read so far.
type pieces struct {
	options Options
	format  Format // Auto or empty until the first file is seen
	// requests have At since the epoch, or since whatever their file counts from.
	requests []Request
	records  records
	noPrompt int // requests without a prompt, left out
	noOutput int // answers without a token, taken for one of one token
}

func (p *pieces) read(s Source) error {
	r := bufio.NewReaderSize(s.Content, 64<<10)
	if p.format == "" || p.format == Auto {
		f, err := recognise(s.Name, r)
		if err != nil {
			return err
		}
		p.format = f
	}
	switch p.format {
	case Mooncake:
		return p.readMooncake(s.Name, r)
	case Azure:
		return p.readAzure(s.Name, r)
	case Decisions:
		return p.readDecisions(s.Name, r)
	default:
		var names []string
		for _, f := range Formats() {
			names = append(names, string(f))
		}
		return fmt.Errorf("trace format %q is unknown; write one of %s", p.format, strings.Join(names, ", "))
	}
}

// recognise tells a file's format by its beginning and consumes nothing.
func recognise(name string, r *bufio.Reader) (Format, error) {
	head, err := r.Peek(r.Size())
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	head = bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\ufeff")), " \t\r\n")
	if len(head) == 0 {
		return "", &Error{File: name, Fault: "is empty"}
	}
	if head[0] != '{' {
		if line, _, _ := bytes.Cut(head, []byte("\n")); bytes.Contains(line, []byte(azureColumns[0])) {
			return Azure, nil
		}
		return "", &Error{File: name, Line: 1, Fault: unrecognised}
	}
	// The keys of the first object, as far as they are in sight.
	dec := json.NewDecoder(bytes.NewReader(head))
	for depth := 0; ; {
		token, err := dec.Token()
		if err != nil {
			return "", &Error{File: name, Line: 1, Fault: unrecognised}
		}
		switch t := token.(type) {
		case json.Delim:
			if t == '{' || t == '[' {
				depth++
			} else if depth--; depth == 0 {
				return "", &Error{File: name, Line: 1, Fault: unrecognised}
			}
		case string:
			switch {
			case depth != 1:
			case t == "timestamp" || t == "input_length" || t == "hash_ids":
				return Mooncake, nil
			case t == "decisions" || t == "prompt_tokens" || t == "promptTokens" || t == "candidates":
				return Decisions, nil
			}
		}
	}
}

const unrecognised = `is no known trace: expected lines of {"timestamp": …, "input_length": …, "output_length": …, "hash_ids": […]} (mooncake), ` +
	`a header TIMESTAMP,ContextTokens,GeneratedTokens (azure), or records of /decisions (decisions)`

// maxTokens bounds what is believed of one prompt or answer, a hundred times
// the longest context of any model of today.
const maxTokens = 100_000_000

// trace makes one of all pieces.
func (p *pieces) trace(sources []Source) (*Trace, error) {
	t := &Trace{Format: p.format}
	if p.format == Mooncake {
		t.BlockTokens = p.options.MooncakeBlock
	}
	if p.format == Decisions {
		p.fromRecords(t)
	}
	if len(p.requests) == 0 {
		names := make([]string, len(sources))
		for i, s := range sources {
			names[i] = s.Name
		}
		return nil, &Error{File: strings.Join(names, ", "), Fault: "has no request with a prompt"}
	}
	t.note(p.noPrompt, "without a prompt left out")
	t.note(p.noOutput, "without an answer taken for answers of one token")
	inOrder(p.requests)
	first := p.requests[0].At
	for i := range p.requests {
		p.requests[i].At -= first
	}
	t.Requests = slices.Clip(p.requests)
	return t, nil
}

// add takes in a request. It mends or leaves out what an engine would refuse.
func (p *pieces) add(r Request) {
	if r.Prompt == 0 {
		p.noPrompt++
		return
	}
	if r.Output == 0 {
		p.noOutput++
		r.Output = 1
	}
	p.requests = append(p.requests, r)
}

func (t *Trace) note(n int, what string) {
	if n > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%d requests %s", n, what))
	}
}
