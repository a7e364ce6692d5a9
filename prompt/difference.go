package prompt

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Difference is where the ids of a prompt differ from an engine's, and why.
type Difference struct {
	// Request says which: the name of one of our own prompts, or request.
	Request string `json:"request"`
	// Engine is the base URL of the engine that was asked.
	Engine string `json:"engine"`
	// Position is the number of leading ids that are equal.
	Position int `json:"position"`
	// Cause is what makes the difference, Fix what to change; for people.
	Cause string `json:"cause"`
	Fix   string `json:"fix"`
	// Ours and Theirs are the text at Position, as this process and the engine
	// have it; empty for requests of clients, whose text is shown nowhere.
	Ours   string `json:"ours,omitempty"`
	Theirs string `json:"theirs,omitempty"`
}

// differing is a difference while its cause is looked for.
type differing struct {
	check        *IDCheck
	model        *Model
	served       *served
	base         string
	request      *sampled
	ours, theirs [][]uint32
	now          time.Time // of ours
	encode       func(time.Time) ([][]uint32, bool)
}

// Around a difference so much is decoded and shown.
const (
	windowTokens = 24
	shownRunes   = 40
)

// explain finds the likely cause: it tries what each would change.
func (d *differing) explain(ctx context.Context) *Difference {
	out := &Difference{Request: "request", Engine: d.base}
	if len(d.ours) != len(d.theirs) {
		out.Cause = fmt.Sprintf("the engine makes %d prompts of the request, this process %d", len(d.theirs), len(d.ours))
		out.Fix = "report it with the request's shape"
		return out
	}
	i := 0
	for i < len(d.ours)-1 && slices.Equal(d.ours[i], d.theirs[i]) {
		i++
	}
	ours, theirs := d.ours[i], d.theirs[i]
	out.Position = commonPrefix(ours, theirs)
	out.Cause, out.Fix = d.cause(ctx, ours, theirs, out.Position)
	if d.request.probe != "" {
		out.Request = d.request.probe
		out.Ours, out.Theirs = d.excerpts(ctx, ours, theirs, out.Position)
	}
	return out
}

func (d *differing) cause(ctx context.Context, ours, theirs []uint32, at int) (cause, fix string) {
	name := d.served.cfg.Name
	if by, ok := d.otherZone(); ok {
		return fmt.Sprintf("the template prints the date or time, and the engine's is another one: a clock %+g hours from ours gives its ids", by.Hours()),
			fmt.Sprintf("write the engines' time zone as time_zone of prompt model %s, or set TZ for the engines", name)
	}
	if bytes.Contains(d.request.Body, []byte(`"truncate_prompt_tokens"`)) && len(ours) != len(theirs) {
		return "the engine cuts the prompt to another length", "write the engines' --max-model-len as max_model_len of prompt model " + name
	}
	if side, ids := oneSided(ours, theirs); side != "" {
		text, _ := d.model.Decode(ctx, ids)
		switch side {
		case "theirs":
			return fmt.Sprintf("the engine puts special tokens (%s) around the text that this process does not", text),
				fmt.Sprintf("write add_bos: always for prompt model %s, or take the engines' tokenizer_config.json", name)
		default:
			return fmt.Sprintf("this process puts special tokens (%s) around the text that the engine does not", text),
				fmt.Sprintf("write add_bos: never for prompt model %s, or take the engines' tokenizer_config.json", name)
		}
	}
	mine, err := d.model.Decode(ctx, ours)
	other, wrong := d.check.detokenize(ctx, d.base, name, theirs)
	if err == nil && wrong == nil && mine == other {
		return fmt.Sprintf("the text is the same, and split into other tokens: the engine's tokenizer is another one (%d and %d tokens)", len(theirs), len(ours)),
			"take the tokenizer folder that the engines serve for prompt model " + name
	}
	if generationPath(d.request.Path) == chatPath {
		return "the chat template gives another text",
			fmt.Sprintf("write the engines' --chat-template as chat_template of prompt model %s, their --default-chat-template-kwargs and "+
				"--chat-template-content-format likewise, or take their tokenizer folder", name)
	}
	return fmt.Sprintf("from token %d on the ids differ", at), "take the tokenizer folder that the engines serve for prompt model " + name
}

// otherZone looks for the clock by which our ids are the engine's: how far it
// is from ours. Time zones lie at most 26 hours apart.
func (d *differing) otherZone() (time.Duration, bool) {
	const step, most = 30 * time.Minute, 26 * time.Hour
	// By neither date nor time the same: a template that prints one of both shows.
	if later, ok := d.encode(d.now.Add(24*time.Hour + 90*time.Minute)); !ok || slices.EqualFunc(later, d.ours, slices.Equal[[]uint32]) {
		return 0, false
	}
	for by := step; by <= most; by += step {
		for _, by := range []time.Duration{by, -by} {
			if again, ok := d.encode(d.now.Add(by)); ok && slices.EqualFunc(again, d.theirs, slices.Equal[[]uint32]) {
				return by, true
			}
		}
	}
	return 0, false
}

// oneSided are the ids that one of both has more, around all of the other's.
func oneSided(ours, theirs []uint32) (side string, ids []uint32) {
	const most = 4
	around := func(short, long []uint32) []uint32 {
		extra := len(long) - len(short)
		if extra < 1 || extra > most {
			return nil
		}
		for before := 0; before <= extra; before++ {
			if slices.Equal(long[before:before+len(short)], short) {
				return slices.Concat(long[:before], long[before+len(short):])
			}
		}
		return nil
	}
	if ids := around(ours, theirs); ids != nil {
		return "theirs", ids
	}
	if ids := around(theirs, ours); ids != nil {
		return "ours", ids
	}
	return "", nil
}

// excerpts are the texts around the first id that differs.
func (d *differing) excerpts(ctx context.Context, ours, theirs []uint32, at int) (mine, other string) {
	window := func(ids []uint32) []uint32 {
		return ids[max(0, at-windowTokens/2):min(len(ids), at+windowTokens)]
	}
	mine, err := d.model.Decode(ctx, window(ours))
	if err != nil {
		mine = fmt.Sprintf("(%d ids that this process cannot decode)", len(window(ours)))
	}
	other, err = d.check.detokenize(ctx, d.base, d.served.cfg.Name, window(theirs))
	if err != nil {
		if other, err = d.model.Decode(ctx, window(theirs)); err != nil {
			other = fmt.Sprintf("(%d ids that this process cannot decode)", len(window(theirs)))
		}
	}
	common := 0
	for common < min(len(mine), len(other)) && mine[common] == other[common] {
		common++
	}
	return excerpt(mine, common), excerpt(other, common)
}

// excerpt is some runes of text, of which a few before at.
func excerpt(text string, at int) string {
	before := text[:at]
	for !utf8.ValidString(before) {
		before = before[:len(before)-1]
	}
	runes := []rune(before)
	runes = runes[max(0, len(runes)-shownRunes/4):]
	for _, r := range text[len(before):] {
		if len(runes) == shownRunes {
			break
		}
		runes = append(runes, r)
	}
	return strings.ToValidUTF8(string(runes), "\uFFFD")
}

func commonPrefix(a, b []uint32) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}
