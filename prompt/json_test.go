package prompt

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestSyntaxErrors: reason and place as CPython 3.11's json module gives them.
func TestSyntaxErrors(t *testing.T) {
	for _, tc := range []struct {
		text, reason string
		offset       int
	}{
		{``, "Expecting value", 0},
		{`  `, "Expecting value", 2},
		{`{"a": 1} x`, "Extra data", 9},
		{`{"é": 1} x`, "Extra data", 9},
		{`{"model": "x", `, "Expecting property name enclosed in double quotes", 15},
		{`{1: 2}`, "Expecting property name enclosed in double quotes", 1},
		{`{"a" 1}`, "Expecting ':' delimiter", 5},
		{`{"a":}`, "Expecting value", 5},
		{`{"a":1 "b":2}`, "Expecting ',' delimiter", 7},
		{`{"a":1,}`, "Expecting property name enclosed in double quotes", 7},
		{`[1 2]`, "Expecting ',' delimiter", 3},
		{`[1,]`, "Expecting value", 3},
		{`[`, "Expecting value", 1},
		{`[1`, "Expecting ',' delimiter", 2},
		{`{`, "Expecting property name enclosed in double quotes", 1},
		{`]`, "Expecting value", 0},
		{`[1}`, "Expecting ',' delimiter", 2},
		{`"abc`, "Unterminated string starting at", 0},
		{`"a\`, "Unterminated string starting at", 0},
		{`"a\x"`, `Invalid \escape`, 2},
		{`"a\u12"`, `Invalid \uXXXX escape`, 3},
		{`"\u12g4"`, `Invalid \uXXXX escape`, 2},
		{`"\ud800\u12g4"`, `Invalid \uXXXX escape`, 8},
		{"\"a\nb\"", "Invalid control character at", 2},
		{`-`, "Expecting value", 0},
		{`-Inf`, "Expecting value", 0},
		{`01`, "Extra data", 1},
		{`1.`, "Extra data", 1},
		{`1e`, "Extra data", 1},
		{`nul`, "Expecting value", 0},
		{`nan`, "Expecting value", 0},
		{`"\u1234`, `Invalid \uXXXX escape`, 2},
		{`"\ud800\u1234`, `Invalid \uXXXX escape`, 8},
		{`"\ud800\u`, `Invalid \uXXXX escape`, 8},
	} {
		var d document
		err := d.parse([]byte(tc.text))
		var syntax *syntaxError
		if !errors.As(err, &syntax) || syntax.reason != tc.reason || syntax.offset != tc.offset {
			t.Errorf("%q: %v, want %s at character %d", tc.text, err, tc.reason, tc.offset)
		}
	}
}

func TestPythonDialect(t *testing.T) {
	var d document
	if err := d.parse([]byte(`{"a": NaN, "b": [Infinity, -Infinity, -0, 1e400], "c": 1, "d": {}, "c": 2, "s": "a\ud83d b", "p": "\ud83d\ude00"}`)); err != nil {
		t.Fatal(err)
	}
	if got := string(d.root().get("c").raw()); got != "2" {
		t.Errorf("repeated key: %s, want the last value", got)
	}
	if n := d.root().len(); n != 6 {
		t.Errorf("%d keys, want 6", n)
	}
	if !d.surrogates || !hasSurrogate(d.root().get("s")) || hasSurrogate(d.root().get("p")) {
		t.Error("the lone surrogate is not told from the pair")
	}
	if got := d.root().get("p").str(); got != "😀" {
		t.Errorf("pair: %q", got)
	}
	if !d.root().get("a").truthy() || d.root().get("d").truthy() || !d.root().get("b").truthy() {
		t.Error("truth is not Python's")
	}
}

// plainValue is the dumb twin of the tape: the tree that encoding/json would
// give, with numbers as their text.
func plainValue(v value) any {
	switch v.kind() {
	case kindNull:
		return nil
	case kindTrue:
		return true
	case kindFalse:
		return false
	case kindInt, kindFloat:
		return json.Number(v.raw())
	case kindString:
		return v.str()
	case kindArray:
		list := []any{}
		for e := range v.elements() {
			list = append(list, plainValue(e))
		}
		return list
	default:
		object := map[string]any{}
		for k, member := range v.members() {
			object[k.str()] = plainValue(member)
		}
		return object
	}
}

func compareWithTwin(t *testing.T, text string) {
	t.Helper()
	var d document
	err := d.parse([]byte(text))
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var want any
	wantErr := decoder.Decode(&want)
	if wantErr == nil && strings.Trim(text[decoder.InputOffset():], " \t\r\n") != "" {
		return // the decoder stops after the first value
	}
	if err != nil {
		if wantErr == nil && utf8.ValidString(text) {
			t.Fatalf("%q: %v, and encoding/json takes it", text, err)
		}
		return
	}
	if wantErr != nil || d.surrogates || !utf8.ValidString(text) {
		return // NaN and the like
	}
	if got := plainValue(d.root()); !reflect.DeepEqual(got, want) {
		t.Fatalf("%q: %#v, want %#v", text, got, want)
	}
	shallow := document{shallow: true}
	if err := shallow.parse([]byte(text)); err != nil {
		t.Fatalf("%q: shallow: %v", text, err)
	}
	for key, member := range d.root().members() {
		if got := shallow.root().get(key.str()); string(got.raw()) != string(d.root().get(key.str()).raw()) {
			t.Fatalf("%q: shallow %s: %s, want %s", text, key.raw(), got.raw(), member.raw())
		}
	}
}

func randomJSON(r *rand.Rand, depth int) string {
	blank := []string{"", "", " ", "\n\t"}[r.IntN(4)]
	switch n := r.IntN(10); {
	case n < 2 && depth > 0:
		parts := make([]string, r.IntN(4))
		for i := range parts {
			parts[i] = fmt.Sprintf("%s%q:%s", blank, []string{"a", "b", "é\\u0041", ""}[r.IntN(4)], randomJSON(r, depth-1))
		}
		return "{" + strings.Join(parts, ",") + blank + "}"
	case n < 4 && depth > 0:
		parts := make([]string, r.IntN(4))
		for i := range parts {
			parts[i] = randomJSON(r, depth-1)
		}
		return "[" + blank + strings.Join(parts, ",") + "]"
	default:
		scalars := []string{"null", "true", "false", "0", "-1", "1.5e-3", "12345678901234567890", `""`, `"a\n\u00e9\ud83d\ude00\/"`, `"日本"`}
		return blank + scalars[r.IntN(len(scalars))] + blank
	}
}

func TestDocumentAgainstTwin(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 5000 {
		text := randomJSON(r, 5)
		if r.IntN(3) == 0 && len(text) > 1 {
			at := r.IntN(len(text))
			text = text[:at] + text[at+1:]
		}
		compareWithTwin(t, text)
	}
}

func FuzzDocument(f *testing.F) {
	for _, text := range []string{`{"a":[1,{"b":"\u0041"}],"a":null}`, `[NaN,-Infinity]`, `"\ud800"`, `[[[]]]`, `{"":{"":0}}`} {
		f.Add(text)
	}
	f.Fuzz(compareWithTwin)
}

// TestStringsAtEveryPlace: strings are read eight bytes at a time, so each escape
// and each fault must be seen wherever it stands.
func TestStringsAtEveryPlace(t *testing.T) {
	escapes := []string{`\n`, `\"`, `\\`, `\/`, `\u00e9`, `\ud83e\udd8a`, `\u0041`, "é", "🦊", "\x7f", "\u0080"}
	for length := range 40 {
		for at := range length + 1 {
			before, after := strings.Repeat("a", at), strings.Repeat("b", length-at)
			for _, escape := range escapes {
				compareWithTwin(t, `"`+before+escape+after+`"`)
				compareWithTwin(t, `"`+before+escape+escape+after+escape+`"`)
			}
			var d document
			text := `"` + before + "\n" + after + `"`
			var fault *syntaxError
			if err := d.parse([]byte(text)); !errors.As(err, &fault) || fault.offset != at+1 || fault.reason != "Invalid control character at" {
				t.Fatalf("%q: %v", text, err)
			}
			if err := d.parse([]byte(`"` + before + `\`)); !errors.As(err, &fault) || fault.reason != "Unterminated string starting at" {
				t.Fatalf("a backslash after %d bytes: %v", at, err)
			}
		}
	}
}

// TestTapeIsBounded: a body of nothing but tiny values is given up, and a shallow
// document keeps few; a prompt of a million ids is neither.
func TestTapeIsBounded(t *testing.T) {
	for _, test := range []struct {
		name, text string
		shallow    bool
		want       error
		nodes      int
	}{
		{"a million ids", `{"prompt":[` + strings.Repeat("1,", 1<<20) + `1]}`, false, nil, 1<<20 + 4},
		{"tiny values", `[` + strings.Repeat("0,", 10<<20) + `0]`, false, errTooMany, maxValues},
		{"tiny values, kept none", `[[` + strings.Repeat("0,", 10<<20) + `0]]`, true, errTooMany, 2},
		{"tiny lists, kept none", `[[` + strings.Repeat("[],", 10<<20) + `0]]`, true, errTooMany, 3},
		{"many members", `{` + strings.Repeat(`"a":1,`, 4<<20) + `"a":1}`, true, errTooMany, maxMembers + 1},
		{"many members in full", `{` + strings.Repeat(`"a":1,`, 4<<20) + `"a":1}`, false, errTooMany, maxValues},
	} {
		d := document{shallow: test.shallow}
		if err := d.parse([]byte(test.text)); !errors.Is(err, test.want) || len(d.nodes) > test.nodes {
			t.Errorf("%s: %v with %d nodes, want %v with at most %d", test.name, err, len(d.nodes), test.want, test.nodes)
		}
	}
}
