//go:build cgo && !nonative

package native_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/prompt/native"
)

func compile(tb testing.TB, source string) *native.Template {
	tb.Helper()
	template, err := native.CompileTemplate(source)
	if err != nil {
		tb.Fatalf("%q: %v", source, err)
	}
	tb.Cleanup(template.Close)
	return template
}

// What Jinja2 in Python prints; each line was checked with Jinja2 3.1.6 in the
// environment of transformers.
func TestPrintsAsPython(t *testing.T) {
	variables := []byte(`{
		"s": "a'b\"c\\d\n\té\u0001", "yes": true, "no": false, "nil": null, "i": 7, "neg": -3,
		"big": 123456789012345678901234567890123456789012345678901234567890,
		"f": 1.0, "small": 0.00001, "large": 1e16, "third": 0.3333333333333333,
		"list": [1, "x", null, true, 2.5, [], {}], "map": {"b": 1, "a": {"z": [], "y": "q"}, "b2": null},
		"text": "\u001c x y \u001f"}`)
	for _, test := range []struct{ source, want string }{
		{`{{ yes }} {{ no }} {{ nil }} {{ missing }}`, `True False None `},
		{`{{ i }} {{ neg }} {{ big }}`, `7 -3 123456789012345678901234567890123456789012345678901234567890`},
		{`{{ f }} {{ small }} {{ large }} {{ third }}`, `1.0 1e-05 1e+16 0.3333333333333333`},
		{`{{ list }}`, `[1, 'x', None, True, 2.5, [], {}]`},
		{`{{ map }}`, `{'b': 1, 'a': {'z': [], 'y': 'q'}, 'b2': None}`},
		{`{{ [s, "it's", 'say "x"'] }}`, `['a\'b"c\\d\n\té\x01', "it's", 'say "x"']`},
		{`{{ (1,) }} {{ (1, 'a') }}`, `(1,) (1, 'a')`},
		{`{{ f|string + '!' }} {{ list|string|length }}`, `1.0! 33`},
		{`{{ s|tojson }}`, `"a'b\"c\\d\n\té\u0001"`},
		{`{{ map|tojson }}`, `{"b": 1, "a": {"z": [], "y": "q"}, "b2": null}`},
		{`{{ list|tojson }}`, `[1, "x", null, true, 2.5, [], {}]`},
		{`{{ [f, small, large, big]|tojson }}`, `[1.0, 1e-05, 1e+16, 123456789012345678901234567890123456789012345678901234567890]`},
		{`{{ "<b>&'\u2028é"|tojson }}`, "\"<b>&'\u2028é\""},
		{`{{ "é🦊\x7f"|tojson(ensure_ascii=true) }}`, `"\u00e9\ud83e\udd8a\u007f"`},
		{`{{ map|tojson(indent=2) }}`, "{\n  \"b\": 1,\n  \"a\": {\n    \"z\": [],\n    \"y\": \"q\"\n  },\n  \"b2\": null\n}"},
		{`{{ [1, [2]]|tojson(indent=1) }}`, "[\n 1,\n [\n  2\n ]\n]"},
		{`{{ map|tojson(sort_keys=true) }}`, `{"a": {"y": "q", "z": []}, "b": 1, "b2": null}`},
		{`{{ map|tojson(separators=(',', ':')) }}`, `{"b":1,"a":{"z":[],"y":"q"},"b2":null}`},
		{`[{{ text.strip() }}] [{{ text|trim }}] {{ text.split() }}`, `[x y] [x y] ['x', 'y']`},
		{`{{ "a<b"|upper }} {{ "x" ~ 1 ~ none }}`, `A<B x1None`},
		{`{% for k, v in map.items() %}{{ k }}={{ v }};{% endfor %}`, `b=1;a={'z': [], 'y': 'q'};b2=None;`},
		{`{% for k in map %}{{ loop.index }}{{ k }}{% if loop.first %}{% continue %}{% endif %}{% break %}{% endfor %}`, `1b2a`},
		{"{% if yes %}\nx\n{% endif %}\n  {% if no %}y{% endif %}\nz\n", "x\nz"},
		{`{{ map.get('q', 'none') }} {{ 'b' in map }} {{ map.a.y }} {{ map['a']['y'] }}`, `none True q q`},
		{`{{ list[-1] }} {{ list[1:3] }} {{ "hello"[::-1] }}`, `{} ['x', None] olleh`},
		{`{{ 7 // 2 }} {{ 7 / 2 }} {{ 7 % 3 }} {{ 2 ** 3 }}`, `3 3.5 1 8`},
	} {
		var v native.Value
		writeNumbersWhole(&v, json.NewDecoder(bytes.NewReader(variables)))
		got, err := textOf(compile(t, test.source).Render(t.Context(), &v, time.Time{}))
		if got != test.want || err != nil {
			t.Errorf("%s: error %v\n got %q\nwant %q", test.source, err, got, test.want)
		}
	}
}

// writeNumbersWhole is writeJSON for one object whose integers may be of any size.
func writeNumbersWhole(v *native.Value, decoder *json.Decoder) {
	decoder.UseNumber()
	_, _ = decoder.Token()
	v.Map()
	for decoder.More() {
		key, _ := decoder.Token()
		v.Key(key.(string))
		if key == "big" {
			number, _ := decoder.Token()
			v.BigInt(number.(json.Number).String())
			continue
		}
		writeJSON(v, decoder)
	}
	v.EndMap()
}

func TestFloatsThatAreNoNumbers(t *testing.T) {
	var v native.Value
	v.Map()
	v.Key("x")
	v.List()
	for _, f := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), math.Copysign(0, -1)} {
		v.Float(f)
	}
	v.EndList()
	v.EndMap()
	got, err := textOf(compile(t, `{{ x }} {{ x|tojson }}`).Render(t.Context(), &v, time.Time{}))
	if want := `[nan, inf, -inf, -0.0] [NaN, Infinity, -Infinity, -0.0]`; got != want || err != nil {
		t.Errorf("%q, error %v, want %q", got, err, want)
	}
}

func TestStrftimeNow(t *testing.T) {
	now := time.Date(2026, 3, 5, 23, 4, 9, 120_000_000, time.FixedZone("", 2*3600))
	var v native.Value
	v.Map()
	v.EndMap()
	for format, want := range map[string]string{
		"%d %b %Y":               "05 Mar 2026",
		"%Y-%m-%d":               "2026-03-05",
		"%A, %B %-d, %Y":         "Thursday, March 5, 2026",
		"%H:%M:%S.%f %p %I [%z]": "23:04:09.120000 PM 11 []",
		"%j %y %a %%":            "064 26 Thu %",
	} {
		got, err := textOf(compile(t, `{{ strftime_now("`+format+`") }}`).Render(t.Context(), &v, now))
		if got != want || err != nil {
			t.Errorf("%q: %q, error %v, want %q", format, got, err, want)
		}
	}
	if _, err := compile(t, `{{ strftime_now("%Q") }}`).Render(t.Context(), &v, now); err == nil {
		t.Error("no error for an unknown format")
	}
}

func TestRefusalsAndErrors(t *testing.T) {
	var v native.Value
	v.Map()
	v.EndMap()
	for _, source := range []string{
		`{{ raise_exception("not, \"this\"\nway") }}`,
		`{% macro m() %}{{ raise_exception("not, \"this\"\nway") }}{% endmacro %}{% for x in [1] %}{% set y = m() %}{% endfor %}`,
	} {
		_, err := compile(t, source).Render(t.Context(), &v, time.Time{})
		var refusal *native.TemplateError
		if !errors.As(err, &refusal) || refusal.Message != "not, \"this\"\nway" {
			t.Errorf("%s: error %v", source, err)
		}
	}
	for _, source := range []string{
		`{{ missing.attribute }}`, `{{ "x" + 1 }}`, `{{ missing() }}`, `{{ "x"|unknown }}`, `{{ missing|tojson }}`,
		`{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}`,
	} {
		_, err := compile(t, source).Render(t.Context(), &v, time.Time{})
		var refusal *native.TemplateError
		if err == nil || errors.As(err, &refusal) {
			t.Errorf("%s: error %v, want one that is no refusal", source, err)
		}
	}
	for _, source := range []string{`{% if %}`, `{{ x `, `{% for x in %}`, "\xff", strings.Repeat("{{ (", 5000)} {
		if template, err := native.CompileTemplate(source); err == nil {
			template.Close()
			t.Errorf("%.20q: no error", source)
		}
	}
	closed := compile(t, `x`)
	closed.Close()
	closed.Close()
	if _, err := closed.Render(t.Context(), &v, time.Time{}); !errors.Is(err, native.ErrClosed) {
		t.Errorf("after Close: error %v", err)
	}
}

func TestContentFormat(t *testing.T) {
	for _, test := range []struct{ name, source, want string }{
		{"printed", `{% for m in messages %}{{ m.content }}{% endfor %}`, "string"},
		{"attribute", `{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}`, "openai"},
		{"item", `{% for m in messages %}{% for c in m['content'] %}{% endfor %}{% endfor %}`, "openai"},
		{"filtered", `{% for m in messages %}{% for c in m.content|list %}{% endfor %}{% endfor %}`, "openai"},
		{"slice of messages", `{% for m in messages[1:] %}{% for c in m.content %}{% endfor %}{% endfor %}`, "openai"},
		{"assigned", `{% set a = messages %}{% set b = a[1:] %}{% for m in b %}{% for c in m.content %}{% endfor %}{% endfor %}`, "openai"},
		{"assigned to itself", `{% set messages = messages[1:] %}{% for m in messages %}{{ m.content }}{% endfor %}`, "string"},
		{"not messages", `{% for m in others %}{% for c in m.content %}{% endfor %}{% endfor %}`, "string"},
		{"macro", `{% macro r(content) %}{% for c in content %}{% endfor %}{% endmacro %}{% for m in messages %}{{ r(m.content) }}{% endfor %}`, "openai"},
		{"deep", `{% if x %}{% else %}{% for m in messages %}{% if m.content is string %}{% else %}{% for c in m.content if c.type == 'text' %}{% endfor %}{% endif %}{% endfor %}{% endif %}`, "openai"},
		{"two names", `{% for a, b in messages %}{% endfor %}{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}`, "string"},
		{"to a namespace", `{% set ns = namespace() %}{% set ns.m = messages %}{% for m in messages %}{% for c in m.content %}{% endfor %}{% endfor %}`, "string"},
		{"other key", `{% for m in messages %}{% for c in m.tool_calls %}{% endfor %}{% endfor %}`, "string"},
	} {
		if got := compile(t, test.source).ContentFormat(); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestNames(t *testing.T) {
	template := compile(t, `{% if tools is defined %}{% set x = 1 %}{% endif %}{{ bos_token }}
		{%- for m in messages %}{{ m.content }}{{ loop.index }}{% endfor %}
		{%- if not thinking is defined %}{% set thinking = false %}{% endif %}{{ thinking }}`)
	for _, name := range []string{"tools", "bos_token", "messages", "thinking"} {
		if !template.Uses(name) {
			t.Errorf("%s is not in %q", name, template.Names())
		}
	}
	for _, name := range []string{"m", "loop", "content", "enable_thinking"} {
		if template.Uses(name) {
			t.Errorf("%s is in %q", name, template.Names())
		}
	}
	if !slices.IsSorted(template.Names()) {
		t.Errorf("names not sorted: %q", template.Names())
	}
}

// The tags with which templates mark the assistant's words for training print
// their body, and strip white space as any tag does.
func TestGenerationTags(t *testing.T) {
	var v native.Value
	v.Map()
	v.EndMap()
	source := "a\n  {% generation %}\nb{{ '{% generation' }}\n  {%- endgeneration -%}\n c{% if add_generation_prompt %}x{% endif %}"
	got, err := textOf(compile(t, source).Render(t.Context(), &v, time.Time{}))
	if want := "a\nb{% generationc"; got != want || err != nil {
		t.Errorf("%q, error %v, want %q", got, err, want)
	}
}

// textOf takes what Render gave.
func textOf(text *native.Text, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer text.Free()
	return strings.Clone(text.View()), nil
}
