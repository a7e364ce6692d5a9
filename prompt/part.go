package prompt

import (
	"slices"
	"strings"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// partKind is what a content part is.
type partKind uint8

const (
	partNone    partKind = iota // nothing that can be used
	partText                    // text
	partRefusal                 // text of a refusal
	partThought                 // text of a thought
	partMedia                   // image, audio, video or an embedding
	partFile                    // a file, which no engine takes
	partTool                    // the name of a tool, for the template
)

// part is one piece of a turn's content.
type part struct {
	source value // the part as the client wrote it; a string where that is all
	text   value
	rest   bool // only what follows the text's first line counts
	kind   partKind
	media  mark
}

// mark is what stands for a part that is not text, while its place in the
// rendered text is looked for.
type mark string

const (
	// The two marks differ in their first byte, so that two renderings part
	// exactly where the media is written.
	markOne mark = "\u2060media"
	markTwo mark = "~media"
)

// textOrder is the part's place where all parts become one text: 0 goes before
// 1.
func (p part) textOrder() int {
	if p.kind == partMedia {
		return 0
	}
	return 1
}

// str is the part's text as the template sees it.
func (p part) str() string {
	if p.kind == partMedia {
		return string(p.media)
	}
	s := p.text.str()
	if p.rest {
		_, s, _ = strings.Cut(s, "\n")
	}
	return s
}

// writeText appends the part's text with tail behind it.
func (p part) writeText(out *native.Value, tail string) {
	if p.kind == partMedia || p.rest {
		out.String(p.str() + tail)
		return
	}
	p.text.writeText(out, tail)
}

// write appends the part as one element of a content list. Fields that no schema
// knows, such as cache_control, follow the text.
func (p part) write(out *native.Value, tail string) error {
	out.Map()
	out.Key("type")
	if p.kind == partTool {
		out.String("tool_reference")
		out.Key("name")
	} else {
		out.String("text")
		out.Key("text")
	}
	p.writeText(out, tail)
	if p.kind == partText || p.kind == partRefusal || p.kind == partThought {
		for key, v := range p.source.members() {
			if name := key.str(); !slices.Contains(partFields, name) {
				out.Key(name)
				if err := v.write(out, 0); err != nil {
					return err
				}
			}
		}
	}
	out.EndMap()
	return nil
}

// partFields are the fields of all schemas of content parts.
var partFields = []string{
	"audio_embeds", "audio_url", "closed", "data", "file", "image_embeds", "image_pil", "image_url", "input_audio", "name",
	"prompt_cache_breakpoint", "refusal", "text", "thinking", "type", "uuid", "video_embeds", "video_url",
}

// mediaFields are those that hold something other than text, in the order in
// which vLLM looks for them where a part has no type.
var mediaFields = []string{
	"image_url", "image_pil", "image_embeds", "audio_embeds", "video_embeds", "prompt_embeds", "audio_url", "input_audio", "video_url",
}

// classify finds the best of the schemas for a content part, and the number of
// fields that it finds. A part that fits none well still fits those that require
// nothing: partNone, which only the open schema takes.
func classify(p value) (partKind, int) {
	typ := p.get("type")
	switch {
	case typ.is("text") && p.get("text").kind() == kindString:
		return partText, 2
	case typ.is("refusal") && p.get("refusal").kind() == kindString:
		return partRefusal, 2
	case typ.is("thinking") && p.get("thinking").kind() == kindString:
		closed := p.get("closed")
		if closed.kind() == kindNone {
			return partThought, 2
		}
		if _, ok := closed.boolean(); ok {
			return partThought, 3
		}
	case typ.is("image_url") && p.get("image_url").get("url").kind() == kindString:
		return partMedia, 3
	case typ.is("input_audio") && p.get("input_audio").get("data").kind() == kindString:
		return partMedia, 4
	case typ.is("file") && p.get("file").kind() == kindObject:
		return partFile, 2 + p.get("file").len()
	case typ.is("tool_reference") && p.get("name").kind() == kindString:
		return partTool, 2
	}
	return partNone, countLoose(p)
}

// countLoose is the number of fields found by the schemas of which only vLLM's
// open one for messages knows, those that require nothing among them.
func countLoose(p value) int {
	count, typ := 0, p.get("type")
	for _, name := range mediaFields {
		switch v := p.get(name); {
		case typ.is(name) && v.kind() == kindObject && v.get("url").kind() == kindString:
			count = max(count, 3)
		case typ.is(name) && strings.HasSuffix(name, "_embeds"):
			count = max(count, 2)
		case strings.HasSuffix(name, "_url") && (v.kind() == kindString || v.kind() == kindNull):
			count = max(count, 1)
		}
	}
	if uuid := p.get("uuid"); uuid.kind() == kindString || uuid.kind() == kindNull {
		count++
	}
	if typ.kind() == kindNone && p.get("name").kind() == kindString {
		count = max(count, 1)
	}
	return count
}

// allows reports whether OpenAI's schema of the message's role takes a content
// part of that kind.
func (m *message) allows(k partKind) bool {
	switch k {
	case partText:
		return true
	case partRefusal:
		return m.role.is("assistant")
	case partMedia, partFile:
		return m.role.is("user")
	default:
		return false
	}
}

// readPart reads a part that is an object by its type, as vLLM does once the
// schema has let it through. partNone: the part is left out.
func readPart(v value) (part, *RequestError) {
	typ, uuid := v.get("type"), v.get("uuid")
	if typ.kind() == kindString && !uuid.present() {
		return readTyped(v, typ.str())
	}
	if typ.present() && !uuid.present() {
		return part{}, refuseValue("type", nil, "Invalid 'type' field in multimodal part.")
	}
	for _, name := range mediaFields {
		if v.get(name).kind() != kindNone {
			return part{source: v, kind: partMedia, media: markOne}, nil
		}
	}
	if v.get("tool_reference").kind() != kindNone && v.get("name").kind() == kindString {
		return part{source: v, text: v.get("name"), kind: partTool}, nil
	}
	return part{}, refuseValue("type", nil, "Missing 'type' field in multimodal part.")
}

func readTyped(v value, typ string) (part, *RequestError) {
	p, field := part{source: v}, typ
	switch typ {
	case "text", "input_text", "output_text":
		p.kind, field = partText, "text"
	case "refusal":
		p.kind = partRefusal
	case "thinking":
		p.kind = partThought
	case "tool_reference":
		p.kind, field = partTool, "name"
	default:
		if slices.Contains(mediaFields, typ) || typ == "input_image" {
			p.kind, p.media = partMedia, markOne
			return p, nil
		}
		supported := append([]string{"text", "input_text", "output_text", "refusal", "thinking", "tool_reference", "input_image"}, mediaFields...)
		slices.Sort(supported)
		return part{}, refuseValue("type", typ, "Unsupported chat content part type: %s. Supported types: %s.", quote(typ), strings.Join(supported, ", "))
	}
	switch p.text = v.get(field); {
	case p.text.kind() == kindString:
		return p, nil
	case !p.text.present() && (typ == "text" || typ == "refusal"):
		return part{}, nil
	}
	return part{}, refuse("", "content part: %s is no string but %s", field, describe(p.text))
}
