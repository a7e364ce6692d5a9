package trace

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
)

const decisionsExpected = `expected records of /decisions?blocks=true: {"decisions": […]}, or one record after the other`

// maxHeld is more seconds than anybody waits for a choice.
const maxHeld = 86_400

// record is what a replay needs of a decision.
type record struct {
	at     time.Duration // since 1970
	prompt int
	answer time.Duration // from the first token to the end; negative: not known
	blocks []uint64
	ended  bool
	// session names the client; 0: it is not known.
	session uint64
}

// records are decisions by their ids, in the order in which they were first
// met: bodies of /decisions that were fetched one after the other overlap.
type records struct {
	byID  map[string]int
	all   []record
	block int // tokens; 0 until a record with blocks is met
}

// readDecisions reads JSON values, each a record or a body of /decisions.
func (p *pieces) readDecisions(name string, r io.Reader) error {
	where := lineCounter{from: r}
	dec := json.NewDecoder(&where)
	for {
		var value json.RawMessage
		err := dec.Decode(&value)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if fault, ok := errors.AsType[*json.SyntaxError](err); ok {
			return &Error{File: name, Line: where.line(fault.Offset), Fault: "is not JSON: " + fault.Error() + "; " + decisionsExpected}
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return &Error{File: name, Line: where.line(where.read), Fault: "ends within a record; " + decisionsExpected}
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		start := dec.InputOffset() - int64(len(value))
		err = eachRecord(value, func(text []byte, offset int) error {
			if err := p.records.add(text); err != nil {
				return &Error{File: name, Line: where.line(start + int64(offset)), Fault: err.Error() + "; " + decisionsExpected}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

// eachRecord calls do with each record in a JSON value and where in it the
// record begins.
func eachRecord(value []byte, do func(text []byte, offset int) error) error {
	var body struct {
		Decisions json.RawMessage `json:"decisions"`
	}
	if json.Unmarshal(value, &body) != nil || body.Decisions == nil {
		return do(value, 0)
	}
	list := bytes.Index(value, body.Decisions)
	dec := json.NewDecoder(bytes.NewReader(body.Decisions))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return do(value, 0)
	}
	for dec.More() {
		var text json.RawMessage
		if err := dec.Decode(&text); err != nil { // not reached: the value is valid JSON
			return err
		}
		if err := do(text, list+int(dec.InputOffset())-len(text)); err != nil {
			return err
		}
	}
	return nil
}

func (r *records) add(text []byte) error {
	var d firsttokenv1.Decision
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, &d); err != nil {
		return fmt.Errorf("is no decision record: %w", err)
	}
	switch {
	case d.GetId() == "":
		return errors.New("id is missing")
	case d.GetTime() == nil:
		return errors.New("time is missing")
	case d.GetPromptTokens() > maxTokens:
		return fmt.Errorf("prompt_tokens is %d, expected 0 to %d", d.GetPromptTokens(), maxTokens)
	}
	at, err := sinceEpoch(d.GetTime().AsTime())
	if err != nil {
		return fmt.Errorf("time: %w", err)
	}
	// It came before it was held; a replay holds it, or does not, by its own policy.
	held := d.GetHeldSeconds()
	if !(held >= 0 && held <= maxHeld) {
		return fmt.Errorf("held_seconds is %g, expected 0 to %g", held, float64(maxHeld))
	}
	at -= time.Duration(held * float64(time.Second))
	met := record{at: at, prompt: int(d.GetPromptTokens()), blocks: d.GetPrefixBlocks(), session: d.GetSession(), answer: -1, ended: d.GetEnded() != nil}
	if met.ended && d.TtftSeconds != nil {
		met.answer = d.GetEnded().AsTime().Sub(d.GetTime().AsTime()) - time.Duration(d.GetTtftSeconds()*float64(time.Second))
	}
	if len(met.blocks) > 0 {
		if err := r.sized(int(d.GetBlockTokens()), met); err != nil {
			return err
		}
	}
	if i, known := r.byID[d.GetId()]; known {
		if met.ended || !r.all[i].ended {
			r.all[i] = met
		}
		return nil
	}
	if r.byID == nil {
		r.byID = make(map[string]int)
	}
	r.byID[d.GetId()] = len(r.all)
	r.all = append(r.all, met)
	return nil
}

// sized checks the blocks of a record against its own length and against all
// records before.
func (r *records) sized(block int, met record) error {
	if block < 1 || block > maxTokens {
		return fmt.Errorf("block_tokens is %d with %d prefix_blocks, expected 1 to %d", block, len(met.blocks), maxTokens)
	}
	if r.block != 0 && r.block != block {
		return fmt.Errorf("block_tokens is %d, but %d in records before: they cannot be compared", block, r.block)
	}
	if most := met.prompt / block; len(met.blocks) > most {
		return fmt.Errorf("prefix_blocks has %d names, but %d tokens have %d whole blocks of %d", len(met.blocks), met.prompt, most, block)
	}
	r.block = block
	return nil
}

// fromRecords makes requests of the records and says what had to be guessed.
func (p *pieces) fromRecords(t *Trace) {
	t.BlockTokens = p.records.block
	guessed, unnamed := 0, 0
	for _, r := range p.records.all {
		output := p.options.Output
		if p.options.TokenTime > 0 && r.answer >= 0 {
			// The first token came at the beginning of that time.
			output = 1 + int(min(r.answer/p.options.TokenTime, maxTokens-1))
		} else {
			guessed++
		}
		if r.prompt > 0 && len(r.blocks) == 0 {
			unnamed++
		}
		request := Request{At: r.at, Prompt: r.prompt, Output: output, Blocks: r.blocks}
		if r.session != 0 {
			request.Session = strconv.FormatUint(r.session, 16)
		}
		p.add(request)
	}
	if guessed > 0 {
		how := "name the time of one token to take them from the time that each answer took"
		if p.options.TokenTime > 0 {
			how = "their records tell no first token or no end"
		}
		t.Notes = append(t.Notes, fmt.Sprintf("%d of %d answers are taken to have %d tokens: %s", guessed, len(p.records.all), p.options.Output, how))
	}
	if unnamed > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%d of %d prompts have no prefix_blocks and are taken to share nothing: fetch the records with ?blocks=true",
			unnamed, len(p.records.all)))
	}
}

// lineCounter remembers where the lines of what it reads begin.
type lineCounter struct {
	from io.Reader
	read int64
	ends []int64 // offsets of line ends, ascending
}

func (c *lineCounter) Read(b []byte) (int, error) {
	n, err := c.from.Read(b)
	for i, x := range b[:n] {
		if x == '\n' {
			c.ends = append(c.ends, c.read+int64(i))
		}
	}
	c.read += int64(n)
	return n, err
}

// line is the line of an offset that was read, from 1 on.
func (c *lineCounter) line(offset int64) int {
	before, _ := slices.BinarySearch(c.ends, offset)
	return before + 1
}
