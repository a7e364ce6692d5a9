package trace

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// mooncakeRow is one line, as Mooncake's authors publish them; other keys are
// not looked at.
type mooncakeRow struct {
	Timestamp *float64 `json:"timestamp"` // milliseconds
	Input     *int64   `json:"input_length"`
	Output    *int64   `json:"output_length"`
	Hashes    []uint64 `json:"hash_ids"`
}

const mooncakeExpected = `expected {"timestamp": milliseconds, "input_length": tokens, "output_length": tokens, "hash_ids": [one number a block]}`

// maxLine bounds a line: a prompt of maxTokens in blocks of 16 is far below.
const maxLine = 64 << 20

// maxMillis bounds a timestamp to what a time.Duration holds, in this century
// even where it counts from 1970.
const maxMillis = 9e12

func (p *pieces) readMooncake(name string, r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	n := 0
	for lines.Scan() {
		n++
		line := bytes.TrimSpace(lines.Bytes())
		if n == 1 {
			line = bytes.TrimPrefix(line, []byte("\ufeff"))
		}
		if len(line) == 0 {
			continue
		}
		request, err := p.mooncake(line)
		if err != nil {
			return &Error{File: name, Line: n, Fault: err.Error() + "; " + mooncakeExpected}
		}
		p.add(request)
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return &Error{File: name, Line: n + 1, Fault: fmt.Sprintf("is longer than %d bytes; %s", maxLine, mooncakeExpected)}
	} else if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (p *pieces) mooncake(line []byte) (Request, error) {
	var row mooncakeRow
	if err := json.Unmarshal(line, &row); err != nil {
		return Request{}, err
	}
	switch {
	case row.Timestamp == nil:
		return Request{}, errors.New("timestamp is missing")
	case row.Input == nil:
		return Request{}, errors.New("input_length is missing")
	case row.Output == nil:
		return Request{}, errors.New("output_length is missing")
	case row.Hashes == nil:
		return Request{}, errors.New("hash_ids is missing; [] says that nothing is shared")
	case *row.Timestamp < 0 || *row.Timestamp > maxMillis:
		return Request{}, fmt.Errorf("timestamp is %g, expected 0 to %g", *row.Timestamp, float64(maxMillis))
	}
	if err := lengths("input_length", *row.Input, "output_length", *row.Output); err != nil {
		return Request{}, err
	}
	block := int64(p.options.MooncakeBlock)
	if most := (*row.Input + block - 1) / block; int64(len(row.Hashes)) > most {
		return Request{}, fmt.Errorf("hash_ids has %d numbers, but %d tokens are at most %d blocks of %d (is the block of another size?)",
			len(row.Hashes), *row.Input, most, block)
	}
	return Request{
		At:     time.Duration(*row.Timestamp * float64(time.Millisecond)),
		Prompt: int(*row.Input), Output: int(*row.Output), Blocks: row.Hashes,
	}, nil
}

// lengths says which of two lengths is out of range.
func lengths(inputName string, input int64, outputName string, output int64) error {
	if input < 0 || input > maxTokens {
		return fmt.Errorf("%s is %d, expected 0 to %d", inputName, input, maxTokens)
	}
	if output < 0 || output > maxTokens {
		return fmt.Errorf("%s is %d, expected 0 to %d", outputName, output, maxTokens)
	}
	return nil
}
