package prompt_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// What leaves differs from what came in the model alone, compared value by value
// with encoding/json as the reader, over bodies with names written in any way.
func TestRenameChangesTheModelAlone(t *testing.T) {
	aliases := map[string]string{"fast": "org/model <7B> \"é\"", "x\ty": "m", "": "nothing"}
	e, err := prompt.NewEncoder(prompt.DefaultConfig(), prompt.Options{Aliases: aliases})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	rng := rand.New(rand.NewPCG(3, 4))
	names := []string{"fast", "x\ty", "other", "fas"}
	renamed := 0
	for range 2000 {
		body, model := randomBody(rng, names)
		path := []string{"/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/v1/responses"}[rng.IntN(4)]
		p, err := e.Encode(t.Context(), prompt.Request{Path: path, Body: body})
		if err != nil {
			t.Fatalf("%s: %v", body, err)
		}
		before := bytes.Clone(body)
		got := prompt.Rename(body, p)
		if !bytes.Equal(before, body) {
			t.Fatalf("the client's body was written to: %s", body)
		}
		want, isAlias := aliases[model]
		if !isAlias {
			if p.Alias != "" || p.Model != model || &got[0] != &body[0] {
				t.Fatalf("%s: model %q, alias %q", body, p.Model, p.Alias)
			}
			continue
		}
		renamed++
		if p.Alias != model || p.Model != want {
			t.Fatalf("%s: model %q, alias %q", body, p.Model, p.Alias)
		}
		quoted, _ := json.Marshal(want)
		begin := p.AliasAt[0]
		end := len(got) - (len(body) - p.AliasAt[1])
		if string(got[begin:end]) != string(quoted) || !bytes.Equal(got[:begin], body[:begin]) || !bytes.Equal(got[end:], body[p.AliasAt[1]:]) {
			t.Fatalf("%s became %s", body, got)
		}
		var a, b map[string]any
		if err := json.Unmarshal(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), &a); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(bytes.TrimPrefix(got, []byte("\xef\xbb\xbf")), &b); err != nil {
			t.Fatalf("%s became %s: %v", body, got, err)
		}
		a["model"] = want
		left, _ := json.Marshal(a)
		right, _ := json.Marshal(b)
		if !bytes.Equal(left, right) {
			t.Fatalf("%s became %s", body, got)
		}
	}
	if renamed < 200 {
		t.Errorf("only %d bodies had an alias", renamed)
	}
}

// randomBody is an object with one to three members "model", of which the last
// one's name is returned, among others.
func randomBody(rng *rand.Rand, names []string) (body []byte, model string) {
	var members []string
	for range 1 + rng.IntN(3) {
		model = names[rng.IntN(len(names))]
		members = append(members, written(rng, "model")+space(rng)+":"+space(rng)+written(rng, model))
		members = append(members, written(rng, "k"+strconv.Itoa(rng.IntN(5)))+":"+[]string{`{"model":"fast"}`, `["model","fast"]`, `"fast"`, "1e5", "null"}[rng.IntN(5)])
		rng.Shuffle(2, func(i, j int) {
			n := len(members)
			members[n-2+i], members[n-2+j] = members[n-2+j], members[n-2+i]
		})
	}
	mark := []string{"", "\xef\xbb\xbf"}[rng.IntN(2)]
	return []byte(mark + space(rng) + "{" + strings.Join(members, space(rng)+","+space(rng)) + "}" + space(rng)), model
}

func space(rng *rand.Rand) string { return strings.Repeat(" ", rng.IntN(3)) }

// written is s as a JSON string, some of its characters escaped.
func written(rng *rand.Rand, s string) string {
	out := `"`
	for _, r := range s {
		if r < 0x20 || rng.IntN(3) == 0 {
			out += `\u` + strings.Repeat("0", 4-len(strconv.FormatInt(int64(r), 16))) + strconv.FormatInt(int64(r), 16)
		} else {
			out += string(r)
		}
	}
	return out + `"`
}

// No engine is asked for a name that it does not know, whichever way its prompts
// are made.
func TestEnginesAreAskedByTheModelsName(t *testing.T) {
	asked := make(chan string, 8)
	engine := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked <- string(body)
		fmt.Fprint(w, `{"request_id":"x","token_ids":[1,2,3],"features":null}`)
	}))
	defer engine.Close()
	e, err := prompt.NewEncoder(prompt.DefaultConfig(), prompt.Options{
		Aliases: map[string]string{"fast": "m"}, Endpoint: func(model string) (string, bool) { return engine.URL, model == "m" },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	for _, test := range []struct{ path, body, want string }{
		{"/v1/completions", `{"model":"fast","prompt":"hello"}`, `{"model":"m","prompt":"hello"}`},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"hello"}],"model":"fast"}`, `{"messages":[{"role":"user","content":"hello"}],"model":"m"}`},
		{prompt.ResponsesPath, `{"model":"fast","input":"hello"}`, `{"model":"m","input":"hello"}`},
	} {
		p, err := e.Encode(t.Context(), prompt.Request{Path: test.path, Body: []byte(test.body)})
		if err != nil || p.Source != scoring.TokensRemote {
			t.Fatalf("%s: tokens from %s, %v", test.path, p.Source, err)
		}
		if got := <-asked; got != test.want {
			t.Errorf("%s: engine was asked with %s", test.path, got)
		}
	}
}
