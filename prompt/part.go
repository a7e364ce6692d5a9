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
	markNone mark = ""
	// The two marks differ in their first byte, so that two renderings part
	// exactly where the media is written.
	markOne mark = "\u2060media"
	markTwo mark = "~media"
)

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
	out.String(p.str() + tail)
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
// fields that it finds.
func classify(p value) (partKind, int) {
	typ := p.get("type")
	text := func(name string, k partKind) (partKind, int) {
		if p.get(name).kind() != kindString {
			return partNone, 0
		}
		return k, 2
	}
	switch {
	case typ.is("text"):
		return text("text", partText)
	case typ.is("refusal"):
		return text("refusal", partRefusal)
	case typ.is("thinking"):
		k, n := text("thinking", partThought)
		if closed := p.get("closed"); n > 0 && closed.kind() != kindNone {
			if _, ok := closed.boolean(); !ok {
				return partNone, 0
			}
			n++
		}
		return k, n
	case typ.is("tool_reference"):
		return text("name", partTool)
	case typ.is("prompt_embeds"):
		return text("data", partMedia)
	case typ.is("file"):
		if file := p.get("file"); file.kind() == kindObject {
			return partFile, 2 + file.len()
		}
		return partNone, 0
	}
	for _, name := range mediaFields {
		if media := p.get(name); media.kind() != kindNone && (typ.is(name) || typ.kind() == kindNone) {
			n := 1 + media.len()
			if typ.kind() == kindString {
				n++
			}
			return partMedia, n
		}
	}
	return partNone, 0
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
