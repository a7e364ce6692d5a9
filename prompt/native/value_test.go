//go:build cgo && !nonative

package native

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

const echo = `{{ x|tojson }}{{ x }}{% for k in x %}{{ k }}{% endfor %}`

func TestMalformedVariables(t *testing.T) {
	template, err := CompileTemplate(echo)
	if err != nil {
		t.Fatal(err)
	}
	defer template.Close()
	deep := func(n int) string {
		return "{k\x01\x00\x00\x00x" + strings.Repeat("[", n) + strings.Repeat("]", n) + "}"
	}
	for _, test := range []struct{ name, bytes, want string }{
		{"nothing", "", "not a map"},
		{"a list", "[]", "not a map"},
		{"no end", "{", "cut short"},
		{"two values", "{}{}", "more bytes"},
		{"no key", "{n}", "no key"},
		{"no value", "{k\x01\x00\x00\x00x}", "unknown tag"},
		{"value cut", "{k\x01\x00\x00\x00xi\x01", "cut short"},
		{"length beyond the end", "{k\xff\xff\xff\xffx", "cut short"},
		{"wrong end", "{k\x01\x00\x00\x00x[}", "unknown tag"},
		{"unknown tag", "{k\x01\x00\x00\x00x?}", "unknown tag"},
		{"key not UTF-8", "{k\x01\x00\x00\x00\xffn}", "not UTF-8"},
		{"integer not decimal", "{k\x01\x00\x00\x00xb\x02\x00\x00\x001x}", "not decimal"},
		{"empty integer", "{k\x01\x00\x00\x00xb\x01\x00\x00\x00-}", "not decimal"},
		{"too deep", deep(256), "too deep"},
		{"endlessly deep", "{k\x01\x00\x00\x00x" + strings.Repeat("[", 1<<20), "too deep"},
	} {
		_, err := template.Render(t.Context(), &Value{buf: []byte(test.bytes)}, time.Time{})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: error %v, want %q in it", test.name, err, test.want)
		}
	}
	if _, err := template.Render(t.Context(), &Value{buf: []byte(deep(255))}, time.Time{}); err != nil {
		t.Errorf("as deep as is allowed: %v", err)
	}
}

// textOf takes what Render gave.
func textOf(text *Text, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer text.Free()
	return strings.Clone(text.View()), nil
}

func TestRepeatedKey(t *testing.T) {
	var v Value
	v.Map()
	v.Key("x")
	v.Map()
	for i, key := range []string{"a", "b", "a"} {
		v.Key(key)
		v.Int(int64(i))
	}
	v.EndMap()
	v.EndMap()
	template, err := CompileTemplate(`{{ x|tojson }}`)
	if err != nil {
		t.Fatal(err)
	}
	defer template.Close()
	got, err := textOf(template.Render(t.Context(), &v, time.Time{}))
	if want := `{"a": 2, "b": 1}`; got != want || err != nil {
		t.Errorf("%q, error %v, want %q", got, err, want)
	}
}

// tree writes a random value and its JSON text, as Python's json.dumps lays it out.
func tree(rng *rand.Rand, v *Value, text *strings.Builder, depth int) {
	texts := []string{"", "key", "a longer text that does not fit in a pointer", "é🦊\u2028", "\"\\/\n\x01\x7f"}
	quoted := []string{`""`, `"key"`, `"a longer text that does not fit in a pointer"`, "\"é🦊\u2028\"", "\"\\\"\\\\/\\n\\u0001\x7f\""}
	kinds := 9
	if depth > 4 {
		kinds = 7
	}
	switch kind := rng.IntN(kinds); kind {
	case 0:
		v.Nil()
		text.WriteString("null")
	case 1:
		v.Bool(true)
		text.WriteString("true")
	case 2:
		v.Bool(false)
		text.WriteString("false")
	case 3:
		n := int64(rng.Uint64()) >> rng.IntN(64)
		v.Int(n)
		fmt.Fprintf(text, "%d", n)
	case 4:
		digits := strings.Repeat("9", 1+rng.IntN(60))
		v.BigInt("-" + digits)
		text.WriteString("-" + digits)
	case 5:
		n := rng.IntN(1000)
		v.Float(float64(n) + 0.5)
		fmt.Fprintf(text, "%d.5", n)
	case 6:
		i := rng.IntN(len(texts))
		v.String(texts[i])
		text.WriteString(quoted[i])
	case 7:
		v.List()
		text.WriteByte('[')
		for i := range rng.IntN(4) {
			if i > 0 {
				text.WriteString(", ")
			}
			tree(rng, v, text, depth+1)
		}
		v.EndList()
		text.WriteByte(']')
	case 8:
		v.Map()
		text.WriteByte('{')
		for i, k := range rng.Perm(len(texts))[:rng.IntN(len(texts))] {
			if i > 0 {
				text.WriteString(", ")
			}
			v.Key(texts[k])
			text.WriteString(quoted[k] + ": ")
			tree(rng, v, text, depth+1)
		}
		v.EndMap()
		text.WriteByte('}')
	}
}

// Random values arrive as they were written, and the same bytes with faults in
// them are errors or other values, but never a panic.
func TestRandomVariables(t *testing.T) {
	template, err := CompileTemplate(`{{ x|tojson }}`)
	if err != nil {
		t.Fatal(err)
	}
	defer template.Close()
	rng := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		var v Value
		var want strings.Builder
		v.Map()
		v.Key("x")
		tree(rng, &v, &want, 0)
		v.EndMap()
		got, err := textOf(template.Render(t.Context(), &v, time.Time{}))
		if got != want.String() || err != nil {
			t.Fatalf("error %v\n got %s\nwant %s", err, got, &want)
		}
		for range 5 {
			broken := slices.Clone(v.buf)
			for range 1 + rng.IntN(3) {
				at := rng.IntN(len(broken))
				switch rng.IntN(3) {
				case 0:
					broken[at] = byte(rng.Uint32())
				case 1:
					broken = slices.Delete(broken, at, min(at+1+rng.IntN(4), len(broken)))
				case 2:
					broken = slices.Insert(broken, at, "ntfidbsk[]{}"[rng.IntN(12)])
				}
				if len(broken) == 0 {
					break
				}
			}
			if _, err := textOf(template.Render(t.Context(), &Value{buf: broken}, time.Time{})); err != nil && strings.Contains(err.Error(), "panicked") {
				t.Fatalf("%q: %v", broken, err)
			}
		}
	}
}

// FuzzVariables: whatever the bytes, Render returns a text or an error.
func FuzzVariables(f *testing.F) {
	var v Value
	v.Map()
	v.Key("x")
	v.List()
	v.Nil()
	v.Bool(true)
	v.Bool(false)
	v.Int(-1)
	v.BigInt(strings.Repeat("9", 50))
	v.Float(0.1)
	v.String("é\x00")
	v.Map()
	v.EndMap()
	v.EndList()
	v.EndMap()
	f.Add(v.buf)
	f.Add([]byte("{k\x01\x00\x00\x00x[[[]]]}"))
	template, err := CompileTemplate(echo)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(template.Close)
	f.Fuzz(func(t *testing.T, bytes []byte) {
		if _, err := textOf(template.Render(context.Background(), &Value{buf: bytes}, time.Time{})); err != nil && strings.Contains(err.Error(), "panicked") {
			t.Error(err)
		}
	})
}

// FuzzCompileTemplate: whatever the source, CompileTemplate returns.
func FuzzCompileTemplate(f *testing.F) {
	f.Add(`{% for m in messages %}{% generation %}{{ m.content|tojson(indent=2) }}{% endgeneration %}{% endfor %}`)
	f.Add(`{%- macro x(a, b=1) -%}{{ a[1:2] }}{%- endmacro -%}{{ x(*y, **z) }}{% set ns.x = 1 %}`)
	f.Fuzz(func(t *testing.T, source string) {
		template, err := CompileTemplate(source)
		if err != nil {
			if strings.Contains(err.Error(), "panicked") {
				t.Error(err)
			}
			return
		}
		template.Close()
	})
}
