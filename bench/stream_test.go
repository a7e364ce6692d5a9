package bench

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

const goodStream = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}

data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}

data: {"choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":"length"}]}

data: {"choices":[],"usage":{"prompt_tokens":12,"total_tokens":14,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":8}}}

data: [DONE]

`

func TestRead(t *testing.T) {
	whole := Usage{Prompt: 12, Completion: 2, Cached: 8, CachedKnown: true}
	event := func(data string) string { return "data: " + data + "\n\n" }
	for _, c := range []struct {
		name, stream string
		texts        []string
		usage        Usage
		fault        Kind
	}{
		{"whole", goodStream, []string{"Hel", "lo"}, whole, ""},
		{"carriage returns", strings.ReplaceAll(goodStream, "\n", "\r\n"), []string{"Hel", "lo"}, whole, ""},
		{"comments and names", ": ping\n\nevent: message\n" + goodStream, []string{"Hel", "lo"}, whole, ""},
		{"what follows the end", goodStream + event("{broken"), []string{"Hel", "lo"}, whole, ""},
		{"thoughts are content", event(`{"choices":[{"delta":{"reasoning":"Hm"}}]}`) + event(`{"choices":[{"delta":{"reasoning_content":"so"}}]}`) + event("[DONE]"), []string{"Hm", "so"}, Usage{}, ""},
		{"no count of cached tokens", event(`{"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":3}}`) + event("[DONE]"), []string{"a"}, Usage{Prompt: 3}, ""},
		{"an error of null", event(`{"choices":[{"delta":{"content":"a"}}],"error":null}`) + event("[DONE]"), []string{"a"}, Usage{}, ""},
		{"empty", "", nil, Usage{}, Cut},
		{"cut", strings.Split(goodStream, "data: [DONE]")[0], []string{"Hel", "lo"}, whole, Cut},
		{"role only", strings.Split(goodStream, "\n\n")[0] + "\n\n" + event("[DONE]"), nil, Usage{}, NoContent},
		{"end only", event("[DONE]"), nil, Usage{}, NoContent},
		{"no JSON", event("oops"), nil, Usage{}, BadEvent},
		{"another JSON", event(`{"choices":"none"}`), nil, Usage{}, BadEvent},
		{"an error", event(`{"choices":[{"delta":{"content":"a"}}]}`) + event(`{"error":{"message":"out of memory"}}`), []string{"a"}, Usage{}, ErrorEvent},
		{"an event without end", "data: " + strings.Repeat("x", maxEvent+1), nil, Usage{}, Cut},
	} {
		t.Run(c.name, func(t *testing.T) {
			var texts []string
			var stream io.Reader = strings.NewReader(c.stream)
			if len(c.stream) < maxEvent {
				stream = iotest.OneByteReader(stream) // as the network may bring it
			}
			usage, fault := read(t.Context(), stream, func(s string) { texts = append(texts, s) })
			if !slices.Equal(texts, c.texts) || usage != c.usage {
				t.Errorf("read %q, %+v, want %q, %+v", texts, usage, c.texts, c.usage)
			}
			if (fault == nil) != (c.fault == "") || fault != nil && (fault.Kind != c.fault || fault.Detail == "") {
				t.Errorf("fault %v, want %q", fault, c.fault)
			}
		})
	}
}

func TestReadNamesTheConnectionsError(t *testing.T) {
	broken := errors.New("connection reset")
	_, fault := read(t.Context(), io.MultiReader(strings.NewReader(goodStream[:200]), iotest.ErrReader(broken)), func(string) {})
	if fault == nil || fault.Kind != Cut || !strings.Contains(fault.Detail, "connection reset") {
		t.Errorf("fault %v", fault)
	}
}

// Whatever a server sends is content, or a fault of a known kind; and an answer
// without a fault had both content and an end.
func FuzzRead(f *testing.F) {
	f.Add([]byte(goodStream))
	f.Add([]byte("data: {\"error\":{}}\r\rdata: [DONE]\r\r"))
	f.Add([]byte("\ufeff: ping\n\ndata:[DONE]\n\n"))
	f.Add([]byte("data: {\"choices\":[{\"delta\":{\"reasoning\":\"a\"}}]}\ndata: \n\ndata: [DONE]"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		length := 0
		_, fault := read(t.Context(), strings.NewReader(string(stream)), func(s string) {
			if s == "" {
				t.Error("an event without text counts as content")
			}
			length += len(s)
		})
		if fault == nil && (length == 0 || !strings.Contains(string(stream), "[DONE]")) {
			t.Errorf("no fault in %q", stream)
		}
		if fault != nil && !slices.Contains([]Kind{NoContent, Cut, BadEvent, ErrorEvent}, fault.Kind) {
			t.Errorf("fault of kind %q", fault.Kind)
		}
		if length > len(stream) {
			t.Errorf("%d bytes of text from %d bytes", length, len(stream))
		}
	})
}
