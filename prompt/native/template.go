package native

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sync/semaphore"
)

// The content formats, what a template expects a message's content to be.
const (
	// ContentString: the text parts joined to one string.
	ContentString = "string"
	// ContentOpenAI: a list of {"type": "text", "text": …} maps.
	ContentOpenAI = "openai"
)

// maxVariableBytes bounds the encoded variables of one Render; they come from a
// request body, which has a limit of its own of this order.
const maxVariableBytes = 128 << 20

// Template is a compiled chat template, in the Jinja environment that
// transformers and vLLM give it: trim_blocks, lstrip_blocks, loop controls, no
// autoescape, Python's string methods, tojson as json.dumps with
// ensure_ascii=False, raise_exception, strftime_now. Safe for concurrent use.
type Template struct {
	library templateHandle // freed by Close, which holds all slots
	closed  bool           // read with a slot, written with all of them
	slots   *semaphore.Weighted
	width   int64    // number of slots; set once
	format  string   // set once
	names   []string // sorted; set once
}

// CompileTemplate parses the source of a chat template. The error says what is
// wrong with it and in which line.
func CompileTemplate(source string) (*Template, error) {
	if !built {
		return nil, ErrNotBuilt
	}
	library, format, names, err := compileTemplate(source)
	if err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	slices.Sort(names)
	width := int64(runtime.GOMAXPROCS(0))
	return &Template{
		library: library,
		slots:   semaphore.NewWeighted(width),
		width:   width,
		format:  format,
		names:   names,
	}, nil
}

// ContentFormat is ContentOpenAI where the template loops over the content of a
// message, else ContentString: vLLM's rule for --chat-template-content-format
// auto.
func (t *Template) ContentFormat() string { return t.format }

// Names are the variables that the template refers to and does not define
// itself, sorted. The caller must not change the slice.
func (t *Template) Names() []string { return t.names }

// Uses tells whether name is among Names.
func (t *Template) Uses(name string) bool {
	_, found := slices.BinarySearch(t.names, name)
	return found
}

// Render gives the text of the template for variables, which are one Map. now is
// what strftime_now prints, in now's own location. A refusal by the template is
// a *TemplateError; other errors are the library's (an undefined attribute, a
// wrong type, a malformed Value). ctx bounds the wait for a slot, not the work.
// The caller frees the text.
func (t *Template) Render(ctx context.Context, variables *Value, now time.Time) (*Text, error) {
	if variables.Len() > maxVariableBytes {
		return nil, fmt.Errorf("chat template: %w: variables of %d bytes, limit %d", ErrInputTooLarge, variables.Len(), maxVariableBytes)
	}
	if err := t.slots.Acquire(ctx, 1); err != nil {
		return nil, fmt.Errorf("chat template: waiting for one of %d slots: %w", t.width, err)
	}
	defer t.slots.Release(1)
	if t.closed {
		return nil, fmt.Errorf("chat template: %w", ErrClosed)
	}
	text, err := t.library.render(variables.buf, now)
	if err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	return &Text{text}, nil
}

// Text is a rendered text in the library's memory, from where Encode reads it
// without a copy. Safe for concurrent reading.
type Text struct{ library textHandle }

// View is the text; it must not be used after Free.
func (t *Text) View() string { return t.library.view() }

// Free gives the memory back, once. It may be called on nil.
func (t *Text) Free() {
	if t != nil {
		t.library.free()
	}
}

// Close waits for the calls in progress and gives the memory back. Later calls
// return ErrClosed. Closing twice is harmless.
func (t *Template) Close() {
	_ = t.slots.Acquire(context.Background(), t.width) // cannot fail: no deadline
	defer t.slots.Release(t.width)
	if !t.closed {
		t.closed = true
		t.library.free()
	}
}
