package extproc

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// A request's session is what the header says, else what the body does, in every
// body mode; whatever becomes of the encoder, the header still counts.
func TestSession(t *testing.T) {
	fails := func(context.Context, prompt.Request) (*scoring.Prompt, error) { return nil, errEncoder }
	long := strings.Repeat("u", 300)
	for _, c := range []struct {
		name    string
		key     string
		headers []string // nil: they are not shown to us
		body    string   // its session, as the encoder says; "-": the encoder fails
		want    string
	}{
		{"header", "x-user-id", []string{"x-user-id", "u1"}, "", "u1"},
		{"header, the key written otherwise", "X-User-Id", []string{"x-user-id", "u1"}, "", "u1"},
		{"body", "x-user-id", []string{}, "u2", "u2"},
		{"header before body", "x-user-id", []string{"x-user-id", "u1"}, "u2", "u1"},
		{"an empty header is none", "x-user-id", []string{"x-user-id", ""}, "u2", "u2"},
		{"encoder fails", "x-user-id", []string{"x-user-id", "u1"}, "-", "u1"},
		{"headers skipped", "x-user-id", nil, "u2", "u2"},
		{"neither", "x-user-id", []string{"x-other", "u1"}, "", ""},
		{"no key", "", []string{"x-user-id", "u1"}, "", ""},
		{"too long", "x-user-id", []string{"x-user-id", long}, "", long[:256]},
	} {
		for _, mode := range []string{"buffered", "duplex"} {
			if mode == "duplex" && c.headers == nil {
				continue // such a client lets the request go before we are asked
			}
			t.Run(c.name+" "+mode, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					f := newFixture(t, pool(2), func(cfg *Config, deps *Deps) {
						cfg.SessionKey = c.key
						deps.Encoder = encoderFunc(func(ctx context.Context, r prompt.Request) (*scoring.Prompt, error) {
							if r.SessionKey != c.key {
								t.Errorf("the encoder looks for %q", r.SessionKey)
							}
							if c.body == "-" {
								return fails(ctx, r)
							}
							p, err := encode(ctx, r)
							p.Session = c.body
							return p, err
						})
					})
					stream := f.open(t, buffered, streamed)
					if mode == "duplex" {
						stream = f.open(t, duplex, none)
					}
					if c.headers != nil {
						stream.say(t, reqHeaders(false, append([]string{":method", "POST", ":path", "/v1/completions"}, c.headers...)...))
					}
					stream.say(t, reqBody("{}", true))
					if got := f.decided[0].Prompt.Session; got != c.want {
						t.Errorf("session %q, want %q", got, c.want)
					}
				})
			})
		}
	}
}

// A request that names no model, and of which the encoder could say nothing, keeps
// what is known of it.
func TestSessionOfUnreadRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		two := pool(2)
		two[1].Models = []string{"n"}
		f := newFixture(t, two, func(cfg *Config, deps *Deps) {
			cfg.SessionKey = "x-user-id"
			deps.Encoder = encoderFunc(func(context.Context, prompt.Request) (*scoring.Prompt, error) { return nil, errEncoder })
		})
		stream := f.open(t, buffered, streamed)
		stream.say(t, reqHeaders(false, ":method", "POST", ":path", "/v1/completions", "x-user-id", "u1"))
		stream.say(t, reqBody("{}", true))
		if p := f.decided[0].Prompt; p.Session != "u1" || p.Source != scoring.TokensNone {
			t.Errorf("session %q, tokens from %s", p.Session, p.Source)
		}
	})
}
