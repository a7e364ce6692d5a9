//go:build cgo && !nozmq

package kvevents_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	simulated "github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/kvevents"
	"github.com/firsttoken/firsttoken/lmcache/zmq"
	"github.com/firsttoken/firsttoken/scoring"
)

// simulatedEngine is a simulated engine that publishes its KV events.
type simulatedEngine struct {
	*testing.T
	*simulated.Server
}

// small is one with room for few blocks, which takes next to no time.
func small(version string, digest bool) simulated.Config {
	cfg := simulated.DefaultConfig()
	cfg.Models, cfg.Adapters = []string{"m"}, []simulated.Adapter{{Name: "sql", Path: "/sql"}}
	cfg.TimeScale = 1e-5
	cfg.Profile.KVTokens, cfg.Profile.BatchTokens, cfg.MaxModelLen = 100*block, 10*block, 100*block
	cfg.Events.Endpoint, cfg.Events.Replay, cfg.Events.Topic = "tcp://127.0.0.1:*", "tcp://127.0.0.1:*", "kv@e@m"
	cfg.Events.VLLMVersion, cfg.Events.BytesHashes = version, digest
	return cfg
}

func simulate(t *testing.T, cfg simulated.Config) *simulatedEngine {
	t.Helper()
	s, err := simulated.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.Start("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	return &simulatedEngine{t, s}
}

// once asks by a connection of its own: one that was kept would be closed by an
// engine that restarts, just when it is asked again.
var once = http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// post sends a body and returns the answer's.
func (e *simulatedEngine) post(path string, body any) []byte {
	e.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		e.Fatal(err)
	}
	resp, err := once.Post(e.URL()+path, "application/json", bytes.NewReader(text))
	if err != nil {
		e.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		e.Fatalf("%s: %s %v %s", path, resp.Status, err, answer)
	}
	return answer
}

// ask completes a prompt and tells how much of it the engine found cached.
func (e *simulatedEngine) ask(p asked, output int) scoring.Tokens {
	e.Helper()
	body := map[string]any{"model": p.model, "prompt": p.ids, "max_tokens": output}
	if p.salt != "" {
		body["cache_salt"] = p.salt
	}
	var answer struct {
		Usage struct {
			Details struct {
				Cached scoring.Tokens `json:"cached_tokens"`
			} `json:"prompt_tokens_details"`
		}
	}
	if err := json.Unmarshal(e.post("/v1/completions", body), &answer); err != nil {
		e.Fatal(err)
	}
	return answer.Usage.Details.Cached
}

// published is how many messages the engine has published in this life.
func (e *simulatedEngine) published() uint64 {
	e.Helper()
	_, address := e.EventAddresses()
	ctx, err := zmq.NewContext()
	if err != nil {
		e.Fatal(err)
	}
	defer ctx.Close()
	socket, err := ctx.Socket(zmq.Dealer, zmq.Options{RecvHWM: 100_000})
	if err != nil {
		e.Fatal(err)
	}
	defer socket.Close()
	if err := socket.Connect(address); err != nil {
		e.Fatal(err)
	}
	poller, err := ctx.NewPoller(socket)
	if err != nil {
		e.Fatal(err)
	}
	defer poller.Close()
	if err := socket.Send(nil, make([]byte, 8)); err != nil {
		e.Fatal(err)
	}
	for next := uint64(0); ; {
		if _, err := poller.Poll(patience); err != nil {
			e.Fatal(err)
		}
		frames, err := socket.Recv()
		if err != nil {
			e.Fatal(err)
		}
		seq := binary.BigEndian.Uint64(frames[len(frames)-2])
		if seq == math.MaxUint64 {
			return next
		}
		if seq != next {
			e.Fatalf("message %d repeated after %d", seq, next)
		}
		next++
	}
}

// asked is one prompt.
type asked struct {
	model, salt string
	ids         []uint32
}

func (p asked) prompt() *scoring.Prompt {
	n := scoring.Tokens(len(p.ids))
	return &scoring.Prompt{
		Model: p.model, Salt: p.salt,
		Sequences: []scoring.Sequence{{TokenIDs: p.ids, Length: n, Usable: n, Copies: 1}},
	}
}

// tree makes prompts that share beginnings: paths in a tree, each node some
// tokens. Where apart, some are salted or for an adapter.
func tree(rng *rand.Rand, apart bool) asked {
	p := asked{model: "m"}
	switch rng.IntN(8) {
	case 0:
		if apart {
			p.salt = "tenant"
		}
	case 1:
		if apart {
			p.model = "sql"
		}
	}
	node := uint32(1)
	for range 1 + rng.IntN(5) {
		node = node*2 + uint32(rng.IntN(2))
		for i := range uint32(40) {
			p.ids = append(p.ids, node*100+i)
		}
	}
	return p
}

// What the subscriber believes beforehand is what the simulated engine then
// finds, in every form of the wire, past evictions, a reset and a restart.
func TestSubscriberFollowsTheSimulatedEngine(t *testing.T) {
	for i, wire := range []struct {
		version       string
		digest, binds bool
		// apart: events tell salts and adapters' names. Older ones do not.
		apart bool
	}{
		{"0.9.2", false, true, false},
		{"0.10.2", true, true, false},
		{"0.17.1", true, false, true},
		{"0.23.0", false, true, true},
		{"0.25.1", true, false, true},
		{"0.33.0", false, true, true},
	} {
		t.Run(fmt.Sprintf("%s digest=%v binds=%v", wire.version, wire.digest, wire.binds), func(t *testing.T) {
			cfg := small(wire.version, wire.digest)
			var s *service
			var e *simulatedEngine
			if wire.binds {
				e = simulate(t, cfg)
				live, replay := e.EventAddresses()
				s = start(t, scoring.EventFeed{Endpoint: live, Replay: replay, Topic: "kv@e@m"})
			} else {
				// The engine connects to us, and where it repeats is configured.
				replay := freeAddress(t)
				s = start(t, scoring.EventFeed{Endpoint: "tcp://127.0.0.1:0", Replay: replay, Bind: true, Topic: "kv@e@m"})
				s.eventually("bound", func() bool { st := s.Status(); return len(st) == 1 && !strings.HasSuffix(st[0].Address, ":0") })
				cfg.Events.Endpoint, cfg.Events.Replay = s.Status()[0].Address, replay
				e = simulate(t, cfg)
			}
			s.endpoint.Models, s.endpoint.Adapters = []string{"m", "sql"}, []string{"sql"}
			s.SetEndpoints([]scoring.Endpoint{s.endpoint})
			rng := rand.New(rand.NewPCG(uint64(i), 1))
			hits, before := 0, uint64(0) // messages of former lives
			// heard waits until a new life is: it may publish before the sockets have
			// found each other, which shows with what comes next.
			fresh := uint32(1_000_000)
			heard := func(ok func(kvevents.Counts) bool) {
				s.eventually("the engine is heard", func() bool {
					fresh += block
					e.ask(asked{model: "m", ids: tokens(int(fresh), block)}, 1)
					return ok(s.Status()[0].Counts)
				})
			}
			heard(func(c kvevents.Counts) bool { return c.Batches > 0 })
			for n := range 150 {
				switch n {
				case 50:
					e.post("/reset_prefix_cache", struct{}{})
				case 100:
					before += e.published()
					if err := e.Restart(); err != nil {
						t.Fatal(err)
					}
					heard(func(c kvevents.Counts) bool { return c.Restarts > 0 })
				}
				total := before + e.published()
				s.eventually("all is heard", func() bool { return s.Status()[0].Counts.Batches >= total })
				p := tree(rng, wire.apart)
				believed := scoring.Tokens(-1)
				if row := s.Match(p.prompt(), []scoring.Endpoint{s.endpoint})[0]; row != nil {
					believed = row[0].Cached
				}
				found := e.ask(p, 1+rng.IntN(40))
				// A reset is told with what comes next.
				if n != 50 && believed != found {
					t.Fatalf("request %d: %d tokens believed, %d found", n, believed, found)
				}
				if found > 0 {
					hits++
				}
			}
			c := s.Status()[0].Counts
			if hits < 50 || c.Events["removed"] == 0 || c.Events["cleared"] != 1 || c.Restarts != 1 || c.BadFrames != 0 || c.Cleared["gap"] != 0 {
				t.Errorf("%d hits, %+v", hits, c)
			}
		})
	}
}

// freeAddress is a port that is free now.
func freeAddress(t *testing.T) string {
	t.Helper()
	ctx, err := zmq.NewContext()
	if err != nil {
		t.Fatal(err)
	}
	defer ctx.Close()
	socket, err := ctx.Socket(zmq.Router, zmq.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	address, err := socket.Bind("tcp://127.0.0.1:*")
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// vLLM's own classes read what the simulated engine publishes.
func TestVLLMReadsTheSimulatedEngine(t *testing.T) {
	for _, wire := range wires {
		t.Run(fmt.Sprintf("%s digest=%v", wire.version, wire.digest), func(t *testing.T) {
			e := simulate(t, small(wire.version, wire.digest))
			plain := asked{model: "m", ids: tokens(1, 300)}
			e.ask(plain, 1)
			e.ask(asked{model: "sql", salt: "tenant", ids: tokens(1, 40)}, 1)
			e.ask(asked{model: "m", ids: tokens(2, 1300)}, 1) // more than is free
			e.post("/reset_prefix_cache", struct{}{})
			e.ask(asked{model: "m", ids: tokens(3, 20)}, 1)
			_, replay := e.EventAddresses()
			frames := "3"
			if wire.version == "0.32.0" {
				frames = "4"
			}
			cmd := command(t, wire.version, "subscriber.py", replay, frames)
			var log strings.Builder
			cmd.Stderr = &log
			text, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v\n%s", err, log.String())
			}
			var ids []uint32 // of the first prompt
			var last string  // block of it
			count := map[string]int{}
			lines := bufio.NewScanner(bytes.NewReader(text))
			lines.Buffer(nil, 1<<20)
			for n := uint64(0); lines.Scan(); n++ {
				var m struct {
					Seq    uint64
					Rank   *int
					Events []struct {
						Type   string
						Hashes []json.RawMessage `json:"block_hashes"`
						Parent json.RawMessage   `json:"parent_block_hash"`
						Tokens []uint32          `json:"token_ids"`
						Size   int               `json:"block_size"`
						ID     *int              `json:"lora_id"`
						Name   string            `json:"lora_name"`
						Extra  [][]string        `json:"extra_keys"`
						Medium string
						Group  *int `json:"group_idx"`
					}
				}
				if err := json.Unmarshal(lines.Bytes(), &m); err != nil {
					t.Fatalf("%s: %v", lines.Bytes(), err)
				}
				if m.Seq != n || m.Rank == nil || *m.Rank != 0 {
					t.Errorf("message %d is %s", n, lines.Bytes())
				}
				for i, v := range m.Events {
					count[v.Type]++
					if v.Type == "AllBlocksCleared" {
						if i != 0 {
							t.Errorf("the reset is event %d of its message", i)
						}
						continue
					}
					modern := wire.version == "0.32.0"
					if v.Medium != "GPU" || (v.Group != nil) != modern || wire.digest != (v.Hashes[0][0] == '{') {
						t.Errorf("message %d: %s in group %v named %s", n, v.Medium, v.Group, v.Hashes[0])
					}
					if v.Type != "BlockStored" {
						continue
					}
					if v.Size != block || len(v.Tokens) != block*len(v.Hashes) || modern && len(v.Extra) != len(v.Hashes) {
						t.Errorf("message %d: %d tokens, %d extra keys in %d blocks of %d", n, len(v.Tokens), len(v.Extra), len(v.Hashes), v.Size)
					}
					if len(ids) < 288 { // the first prompt, a step of ten blocks after the other
						if first := string(v.Parent) == "null"; first != (len(ids) == 0) || !first && string(v.Parent) != last {
							t.Errorf("message %d comes after %s, want after %q", n, v.Parent, last)
						}
						ids, last = append(ids, v.Tokens...), string(v.Hashes[len(v.Hashes)-1])
					}
					if v.ID != nil {
						count["adapter"]++
						want := [][]string{{"sql", "tenant"}, {"sql"}}
						if *v.ID != 1 || modern && (v.Name != "sql" || cmp.Diff(want, v.Extra) != "") {
							t.Errorf("adapter %d %s, extra keys %v", *v.ID, v.Name, v.Extra)
						}
					}
				}
			}
			if !slices.Equal(ids, plain.ids[:288]) {
				t.Errorf("the first prompt was told as %d other tokens", len(ids))
			}
			if count["BlockStored"] < 5 || count["BlockRemoved"] == 0 || count["AllBlocksCleared"] != 1 || count["adapter"] != 1 {
				t.Errorf("events %v", count)
			}
		})
	}
}
