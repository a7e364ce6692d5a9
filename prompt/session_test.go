package prompt_test

import (
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/prompt"
)

// The session is the body's member of the session key's name, the last one of
// several, in every JSON body.
func TestSessionOfBody(t *testing.T) {
	e := newEncoder(t, config(smallModel()), prompt.Options{})
	long := strings.Repeat("u", 300)
	for _, c := range []struct{ path, key, body, want string }{
		{chatPath, "user", `{"messages":[{"role":"user","content":"hi"}],"user":"u1"}`, "u1"},
		{completionPath, "user", `{"user":"first","prompt":"hi","user":"\u00e4\"last"}`, `ä"last`},
		{completionPath, "x-user-id", `{"x-user-id":17,"prompt":"hi"}`, "17"},
		{completionPath, "user", `{"user":1.50,"prompt":"hi"}`, "1.50"},
		{completionPath, "model", `{"model":"small","prompt":"hi"}`, "small"},
		{"/v1/embeddings", "user", `{"input":"hi","user":"u1"}`, "u1"},
		{"/v1/embeddings", "user", `{"input":["a",["b"]],"user":"u1"}`, "u1"}, // read shallow
		{completionPath, "user", `{"prompt":"hi","metadata":{"user":"u1"}}`, ""},
		{completionPath, "user", `{"user":null,"prompt":"hi"}`, ""},
		{completionPath, "user", `{"user":true,"prompt":"hi"}`, ""},
		{completionPath, "user", `{"user":{"id":"u1"},"prompt":"hi"}`, ""},
		{completionPath, "user", `{"user":["u1"],"prompt":"hi"}`, ""},
		{completionPath, "User", `{"user":"u1","prompt":"hi"}`, ""},
		{completionPath, "", `{"user":"u1","":"u2","prompt":"hi"}`, ""},
		{completionPath, "user", `{"user":"` + long + `","prompt":"hi"}`, long[:256]},
		{completionPath, "user", `{"user":` + strings.Repeat("1", 300) + `,"prompt":"hi"}`, strings.Repeat("1", 256)},
	} {
		body := []byte(c.body)
		p, err := e.Encode(t.Context(), prompt.Request{Path: c.path, SessionKey: c.key, Body: body})
		if err != nil {
			t.Fatal(err)
		}
		clear(body) // nothing may be a view of it
		if p.Session != c.want {
			t.Errorf("%s of %s: session %q, want %q", c.key, c.body, p.Session, c.want)
		}
	}
}
