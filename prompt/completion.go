package prompt

import (
	"context"
	"fmt"
	"math"
)

// completionMaxTokens is vLLM's default for max_tokens of /v1/completions.
const completionMaxTokens = 16

// completion encodes the body of /v1/completions.
func (m *Model) completion(ctx context.Context, f *fields) (Encoded, error) {
	if !f.promptEmbeds.present() || f.promptEmbeds.kind() == kindArray && !f.promptEmbeds.truthy() {
		if !f.prompt.present() || f.prompt.is("") {
			return Encoded{}, refuseValue("prompt", nil, "Either prompt or prompt_embeds must be provided and non-empty.")
		}
	}
	var r reader
	name := r.text("model", f.model)
	prompts, fault := readPrompts(f.prompt)
	if fault != nil {
		r.fail(fault)
	}
	r.text("suffix", f.suffix)
	c := r.cut(f, true, m.cfg.MaxModelLen)
	if !f.maxTokens.present() {
		c.output = completionMaxTokens
	}
	if r.fault != nil {
		return Encoded{}, r.fault
	}
	if fault := m.serves(name); fault != nil {
		return Encoded{}, fault
	}
	text := false
	for _, p := range prompts {
		text = text || p.text.kind() == kindString
	}
	if text && (m.tokenizer == nil || m.remote == RemoteMistral) {
		return Encoded{Remote: m.remote}, nil
	}
	if f.promptEmbeds.present() {
		return Encoded{Remote: RemoteEmbeds}, nil
	}
	if f.suffix.present() {
		return Encoded{}, refuse("suffix", "suffix is only supported for models with FIM completion rendering")
	}
	if fault := c.check(); fault != nil {
		return Encoded{}, fault
	}
	if len(prompts) == 0 {
		return Encoded{}, refuseValue("prompt", nil, "You must pass at least one prompt")
	}
	out := make([]EncodedPrompt, len(prompts))
	for i, p := range prompts {
		var err error
		if out[i], err = m.completionPrompt(ctx, p, c); err != nil {
			return Encoded{}, err
		}
	}
	return Encoded{Prompts: out}, nil
}

func (m *Model) completionPrompt(ctx context.Context, p givenPrompt, c cut) (EncodedPrompt, error) {
	if p.text.kind() == kindString {
		if p.text.doc.surrogates && hasSurrogate(p.text) {
			return EncodedPrompt{}, notEncodable()
		}
		return m.tokenize(ctx, p.text.str(), c)
	}
	ids, fault := c.apply(p.ids, wrapping{})
	if fault != nil {
		return EncodedPrompt{}, fault
	}
	return EncodedPrompt{TokenIDs: ids, UsablePrefix: len(ids)}, nil
}

// givenPrompt is one prompt of a completion: a text, or ids.
type givenPrompt struct {
	text value
	ids  []uint32
}

// readPrompts reads the prompt field: a string, strings, ids, or lists of ids.
// A list fits the first of these that all its elements fit; where a string is a
// number, ids come only after strings.
func readPrompts(v value) ([]givenPrompt, *RequestError) {
	switch v.kind() {
	case kindNone, kindNull:
		return nil, nil
	case kindString:
		return []givenPrompt{{text: v}}, nil
	case kindArray:
	default:
		return nil, misfit(".prompt", "list_type", "Input should be a valid list", v)
	}
	n := v.len()
	if n == 0 {
		return nil, nil
	}
	if texts, ok := readTexts(v, n); ok {
		return texts, nil
	}
	ids, bad := readIDs(v, n)
	if bad.kind() == kindNone {
		return []givenPrompt{{ids: ids}}, nil
	}
	var lists []givenPrompt
	for e := range v.elements() {
		if e.kind() != kindArray {
			return nil, misfit(".prompt.0", "int_type", "Input should be a valid integer", bad)
		}
		ids, bad := readIDs(e, e.len())
		if bad.kind() != kindNone {
			return nil, misfit(fmt.Sprintf(".prompt.%d", len(lists)), "int_type", "Input should be a valid integer", bad)
		}
		lists = append(lists, givenPrompt{ids: ids})
	}
	return lists, nil
}

// readTexts is false where an element is no string. Before it knows it allocates
// nothing: most lists are ids, and long.
func readTexts(v value, n int) ([]givenPrompt, bool) {
	for e := range v.elements() {
		if e.kind() != kindString {
			return nil, false
		}
	}
	texts := make([]givenPrompt, 0, n)
	for e := range v.elements() {
		texts = append(texts, givenPrompt{text: e})
	}
	return texts, true
}

// readIDs gives the first element that is no token id, if there is one. An id
// that no vocabulary is large enough for is none either.
func readIDs(v value, n int) (ids []uint32, bad value) {
	ids = make([]uint32, 0, n)
	for e := range v.elements() {
		id, ok := e.integer()
		if !ok || id < 0 || id > math.MaxUint32 {
			return nil, e
		}
		ids = append(ids, uint32(id))
	}
	return ids, value{}
}
