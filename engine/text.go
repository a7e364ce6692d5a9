package engine

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/firsttoken/firsttoken/prompt"
)

// text turns requests into token ids and token ids into words. Safe for
// concurrent use.
type text interface {
	// encode is the prompts of a request. The error is a *requestError for what
	// vLLM would refuse.
	encode(ctx context.Context, r prompt.Request) ([]prompt.EncodedPrompt, error)
	// decode is the text of ids.
	decode(ctx context.Context, ids []uint32) (string, error)
	// vocabulary are the words that answers are made of, at least two. The first
	// is the one that answers begin with.
	vocabulary() []word
	// close frees what is held.
	close()
}

// word is one token of an answer.
type word struct {
	id   uint32
	text string
}

// byteText serves engines without a tokenizer: every four bytes are one token,
// whose id is the bytes themselves. Token ids in prompts are taken as they are.
type byteText struct{}

func (byteText) encode(_ context.Context, r prompt.Request) ([]prompt.EncodedPrompt, error) {
	fields, fault := parseObject(r.Body)
	if fault != nil {
		return nil, fault
	}
	if r.Path == pathChat {
		s, fault := plainChat(fields)
		if fault != nil {
			return nil, fault
		}
		return []prompt.EncodedPrompt{bytesPrompt(s)}, nil
	}
	return plainPrompts(fields["prompt"])
}

// plainChat writes messages one after the other, for want of a template.
func plainChat(fields object) (string, *requestError) {
	raw, ok := fields["messages"]
	if !ok {
		return "", badSchema("body.messages", "missing", "Field required", "<dict of "+strconv.Itoa(len(fields))+" items>")
	}
	var messages []struct {
		Role    string          `json:"role"`
		Content json.RawMessage `json:"content"`
	}
	if json.Unmarshal(raw, &messages) != nil {
		return "", badSchema("body.messages", "list_type", "Input should be a valid list", "")
	}
	var b strings.Builder
	for _, m := range messages {
		var s string
		if json.Unmarshal(m.Content, &s) != nil {
			var parts []struct {
				Text string `json:"text"`
			}
			_ = json.Unmarshal(m.Content, &parts) // what is no text part counts nothing
			texts := make([]string, len(parts))
			for i, p := range parts {
				texts[i] = p.Text
			}
			s = strings.Join(texts, "")
		}
		b.WriteString(m.Role + ": " + s + "\n")
	}
	b.WriteString("assistant:")
	return b.String(), nil
}

// plainPrompts reads a completion's prompt: text, ids, or a list of either.
func plainPrompts(raw json.RawMessage) ([]prompt.EncodedPrompt, error) {
	var s string
	var ids []uint32
	var texts []string
	var lists [][]uint32
	var prompts []prompt.EncodedPrompt
	switch {
	case len(raw) == 0 || string(raw) == "null" || string(raw) == `""`:
		return nil, badRequest("prompt", "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)")
	case string(raw) == "[]":
		return nil, badRequest("prompt", "You must pass at least one prompt (parameter=prompt)")
	case json.Unmarshal(raw, &s) == nil:
		prompts = append(prompts, bytesPrompt(s))
	case json.Unmarshal(raw, &ids) == nil:
		prompts = append(prompts, idsPrompt(ids))
	case json.Unmarshal(raw, &texts) == nil:
		for _, s := range texts {
			prompts = append(prompts, bytesPrompt(s))
		}
	case json.Unmarshal(raw, &lists) == nil:
		for _, ids := range lists {
			prompts = append(prompts, idsPrompt(ids))
		}
	default:
		return nil, badSchema("body.prompt", "string_type", "Input should be a valid string", "")
	}
	for _, p := range prompts {
		if len(p.TokenIDs) == 0 {
			return nil, badRequest("", "The decoder prompt cannot be empty")
		}
	}
	return prompts, nil
}

func idsPrompt(ids []uint32) prompt.EncodedPrompt {
	return prompt.EncodedPrompt{TokenIDs: ids, UsablePrefix: len(ids)}
}

func bytesPrompt(s string) prompt.EncodedPrompt {
	ids := make([]uint32, 0, (len(s)+3)/4)
	for rest := s; rest != ""; {
		var four [4]byte
		rest = rest[copy(four[:], rest):]
		ids = append(ids, binary.LittleEndian.Uint32(four[:]))
	}
	return prompt.EncodedPrompt{TokenIDs: ids, Text: s, UsablePrefix: len(ids)}
}

func (byteText) decode(_ context.Context, ids []uint32) (string, error) {
	b := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return strings.ToValidUTF8(strings.TrimRight(string(b), "\x00"), "\ufffd"), nil
}

func (byteText) vocabulary() []word {
	var words []word
	for _, s := range []string{"Yes,", " the", " sun", " and", " sea", " are", " old", " but", " few", " can", " see", " how", " day", " and", " air"} {
		words = append(words, word{bytesPrompt(s).TokenIDs[0], s})
	}
	return words
}

func (byteText) close() {}
