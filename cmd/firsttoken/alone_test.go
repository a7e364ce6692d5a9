package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/lmcache/zmq"
	"github.com/firsttoken/firsttoken/prompt/native"
)

// alone is the service as somebody first starts it, in front of engines that
// report nothing: no LMCache, no KV events.
type alone struct {
	*testing.T
	bound   bound
	conn    *grpc.ClientConn
	engines map[string]*engine.Server // by address
}

const testTokenizer = "../../test/tokenizer"

func startAlone(t *testing.T, engines int) *alone {
	t.Helper()
	if _, err := native.LoadTokenizer("nowhere", native.Options{}); errors.Is(err, native.ErrNotBuilt) {
		t.Skip("this build has no tokenizer")
	}
	a := &alone{T: t, engines: make(map[string]*engine.Server)}
	var backends []string
	for range engines {
		cfg := engine.DefaultConfig()
		cfg.Models, cfg.Tokenizer, cfg.TimeScale = []string{"m"}, testTokenizer, 0.01
		e, err := engine.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(e.Close)
		if err := e.Start("127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		a.engines[e.Address()] = e
		backends = append(backends, e.Address())
	}
	args := []string{
		"serve", "--backends", strings.Join(backends, ","), "--model", "m", "--tokenizer", testTokenizer,
		"--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0",
	}
	if c, err := zmq.NewContext(); err == nil {
		_ = c.Close()
		args = append(args, "--lmcache-pull", "127.0.0.1:0", "--lmcache-reply", "127.0.0.1:0", "--lmcache-heartbeat", "127.0.0.1:0")
	}
	out, in := io.Pipe()
	command := newRootCommand()
	command.SetArgs(args)
	command.SetOut(in)
	command.SetErr(io.Discard)
	ended := make(chan error, 1)
	go func() {
		err := command.ExecuteContext(t.Context()) // ends with the test
		_ = in.CloseWithError(err)
		ended <- err
	}()
	t.Cleanup(func() {
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(line, &a.bound); err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	a.conn = dial(t, a.bound.Listen)
	awaitServing(t, a.conn)
	return a
}

// turn sends a prompt through the service to the engine that it chooses, and
// returns which that is, why, and how many of its tokens that engine found
// cached.
func (a *alone) turn(prompt string) (address, reason string, cached int) {
	a.Helper()
	body, err := json.Marshal(map[string]any{
		"model": "m", "prompt": prompt, "stream": true, "max_tokens": 2, "stream_options": map[string]bool{"include_usage": true},
	})
	if err != nil {
		a.Fatal(err)
	}
	destination, respond := ask(a.T, a.conn, string(body))
	address, _, _ = strings.Cut(destination, ",")
	resp, err := http.Post("http://"+address+"/v1/completions", "application/json", strings.NewReader(string(body)))
	if err != nil {
		a.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		a.Fatalf("engine: %s %v\n%s", resp.Status, err, answer)
	}
	respond()
	for line := range strings.Lines(string(answer)) {
		var chunk struct {
			Usage struct {
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			} `json:"usage"`
		}
		if text, ok := strings.CutPrefix(line, "data: "); ok && json.Unmarshal([]byte(text), &chunk) == nil {
			cached = max(cached, chunk.Usage.Details.Cached)
		}
	}
	var decisions struct {
		Decisions []struct {
			Reason string `json:"reason"`
		} `json:"decisions"`
	}
	get(a.T, a.bound, "/decisions", &decisions)
	return address, decisions.Decisions[0].Reason, cached
}

// conversation is a prompt that each turn makes longer by a few hundred tokens.
func conversation(n, turns int) string {
	var b strings.Builder
	for turn := range turns {
		for i := range 60 {
			fmt.Fprintf(&b, "Conversation %d, turn %d: what is %d times %d? ", n, turn, i*7+n, i+turn)
		}
	}
	return b.String()
}

// of is what /status says of an engine.
func (s status) of(address string) endpointStatus {
	for _, e := range s.Fleet {
		if e.Address == address {
			return e
		}
	}
	return endpointStatus{}
}

// firsttoken serve --backends a,b --model m --tokenizer DIR is useful at once:
// conversations stay where they are cached, until the engine has lost that.
func TestEnginesThatReportNothing(t *testing.T) {
	const conversations = 5
	a := startAlone(t, 2)
	home := make([]string, conversations)
	count := make(map[string]int)
	for c := range home {
		home[c], _, _ = a.turn(conversation(c, 1))
		count[home[c]]++
	}
	for turns := 2; turns < 4; turns++ {
		for c := range home {
			address, reason, cached := a.turn(conversation(c, turns))
			if address != home[c] || reason != "cached" || cached == 0 {
				t.Errorf("turn %d of conversation %d: sent to %s for %q, where %d tokens were cached; want %s, cached", turns, c, address, reason, cached, home[c])
			}
		}
	}

	view := awaitStatus(t, a.bound, func(s status) bool {
		e := s.of(home[0])
		return e.Counters != nil && e.Counters.Reading != nil && e.Counters.Reading.PrefixHits > 0 && e.Memory.CapacityTold
	})
	for _, e := range view.Fleet {
		if e.Memory.GPUTokens != e.Counters.Reading.CapacityTokens || e.Memory.Share != 1 || (e.Memory.Tokens > 0) != (count[e.Address] > 0) {
			t.Errorf("/status of %s: %+v, %+v", e.Address, e.Memory, e.Counters.Reading)
		}
	}

	lost := home[0]
	if err := a.engines[lost].Restart(); err != nil {
		t.Fatal(err)
	}
	awaitStatus(t, a.bound, func(s status) bool { return s.of(lost).Counters.Restarts == 1 && s.of(lost).Memory.Tokens == 0 })
	if _, reason, cached := a.turn(conversation(0, 4)); reason == "cached" || cached != 0 {
		t.Errorf("after the restart: chosen for %q, with %d tokens cached", reason, cached)
	}
	address, _, _ := a.turn(conversation(0, 4))
	if again, reason, cached := a.turn(conversation(0, 5)); again != address || reason != "cached" || cached == 0 {
		t.Errorf("after it was computed anew: sent to %s for %q, with %d tokens cached; want %s, cached", again, reason, cached, address)
	}

	// Somebody makes that engine forget.
	resp, err := http.Post("http://"+address+"/reset_prefix_cache", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	awaitStatus(t, a.bound, func(s status) bool { return s.of(address).Memory.Tokens == 0 })
	if _, reason, cached := a.turn(conversation(0, 5)); reason == "cached" || cached != 0 {
		t.Errorf("after its cache was reset: chosen for %q, with %d tokens cached", reason, cached)
	}
}
