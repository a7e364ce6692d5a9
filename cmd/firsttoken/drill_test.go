//go:build cgo && !nozmq

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// drillEngines is the number of engines in a drill.
const drillEngines = 3

// drillTokenizer is what engines and service tokenize with.
const drillTokenizer = "../../test/tokenizer"

// mishap is something about the engines that the service was not told, or that
// makes their caches harder to know.
type mishap struct {
	name string
	// engine changes each engine, service what the service is told.
	engine  func(t *testing.T, cfg *engine.Config)
	service func(t *testing.T, cfg *config)
	// lmcache: the engines have LMCache, which reports to us, with settings in
	// engine.Config.LMCache; the first engine's is LMCache's own code, so that
	// they are those of a real one. Otherwise the engines publish KV events.
	lmcache bool
	// client changes what client number n asks.
	client func(n int, body map[string]any)

	// said must be in what /status says of each endpoint, and logged in the log.
	said, logged []string
	// silent: /status must have nothing to complain of.
	silent bool
	// right is the least share of what the engines find cached that must have
	// been known beforehand, once the mishap is noticed.
	right float64
}

// mishaps is the drill: what is wrong, what is said of it, and what must work
// nonetheless.
var mishaps = []mishap{
	{
		name: "nothing, KV events", silent: true, right: 0.95,
	},
	{
		name: "nothing, LMCache", lmcache: true, silent: true, right: 0.5,
		said: []string{lmcache.HashingConfigured},
	},
	{
		name: "hash seed is another", lmcache: true, right: 0.5,
		engine: func(_ *testing.T, cfg *engine.Config) { cfg.LMCache.Keys.PythonHashSeed = "123" },
		said:   []string{lmcache.HashingDetected, `pythonhashseed: "123"`},
		logged: []string{"matched by other settings", "write them under lmcache"},
	},
	{
		name: "hash seed is one that nobody can guess", lmcache: true, right: 0.5,
		engine: func(_ *testing.T, cfg *engine.Config) { cfg.LMCache.Keys.PythonHashSeed = "3141592653" },
		said:   []string{lmcache.HashingLearnt, "NONE_HASH is random", "set PYTHONHASHSEED=0"},
		logged: []string{"NONE_HASH worked out"},
	},
	{
		name: "hash seed is another, and told not to be looked for", lmcache: true, right: 0.9,
		engine:  func(_ *testing.T, cfg *engine.Config) { cfg.LMCache.Keys.PythonHashSeed = "123" },
		service: func(_ *testing.T, cfg *config) { cfg.LMCache.Hashing = lmcache.HashingFixed },
		said:    []string{"the keys it tells of are not those of our prompts", "PYTHONHASHSEED", "chunk_size"},
		logged:  []string{"cache source is left out", "PYTHONHASHSEED"},
	},
	{
		name: "chunk size is another", lmcache: true, right: 0.5,
		engine: func(_ *testing.T, cfg *engine.Config) { cfg.LMCache.Keys.ChunkSize = 64 },
		said:   []string{lmcache.HashingDetected, "chunk_size: 64"},
		logged: []string{"matched by other settings", "chunk_size: 64"},
	},
	{
		name: "algorithm is another", lmcache: true, right: 0.5,
		engine: func(_ *testing.T, cfg *engine.Config) { cfg.LMCache.Keys.Algorithm = "sha256" },
		said:   []string{lmcache.HashingDetected, "algorithm: sha256"},
		logged: []string{"matched by other settings", "sha256"},
	},
	{
		name: "chat template was changed", right: 0.9,
		engine: func(t *testing.T, cfg *engine.Config) {
			t.Helper()
			cfg.ChatTemplate = template(t, "{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}")
		},
		said:   []string{"token ids", "chat_template"},
		logged: []string{"chat_template"},
	},
	{
		name: "time zone of the date in the template is another", right: 0.9,
		engine: func(t *testing.T, cfg *engine.Config) {
			t.Helper()
			cfg.ChatTemplate, cfg.TimeZone = template(t, "{{ strftime_now('%d %B') }}"), "Pacific/Kiritimati"
		},
		service: func(t *testing.T, cfg *config) {
			t.Helper()
			cfg.Prompt.Models[0].ChatTemplate, cfg.Prompt.Models[0].TimeZone = template(t, "{{ strftime_now('%d %B') }}"), "Pacific/Pago_Pago"
		},
		said:   []string{"token ids", "time_zone"},
		logged: []string{"time_zone"},
	},
	{
		name: "LoRA adapters", silent: true, right: 0.95,
		engine: func(_ *testing.T, cfg *engine.Config) {
			cfg.Adapters = []engine.Adapter{{Name: "sql", Path: "/sql"}, {Name: "law", Path: "/law"}}
		},
		service: func(_ *testing.T, cfg *config) { cfg.Prompt.Models[0].Aliases = []string{"sql", "law"} },
		client:  func(n int, body map[string]any) { body["model"] = []string{drillModel, "sql", "law"}[n%3] },
	},
	{
		name: "cache_salt", silent: true, right: 0.95,
		client: func(n int, body map[string]any) {
			if n%3 > 0 {
				body["cache_salt"] = fmt.Sprint("tenant ", n%3)
			}
		},
	},
	{
		name: "removals are not told", right: 0.5,
		engine: func(_ *testing.T, cfg *engine.Config) {
			cfg.Events.StoreOnly = true
			cfg.Profile.KVTokens, cfg.MaxModelLen = 3_000, 2_992
		},
		// Memory for two prompts is never free: the choice would be by that alone.
		service: func(_ *testing.T, cfg *config) { cfg.Scoring.KVRoom = false },
		said:    []string{"tells no removals: gpu"},
	},
	{
		name: "blocks of 528", silent: true, right: 0.95,
		engine: func(_ *testing.T, cfg *engine.Config) { cfg.BlockTokens = 528 },
	},
}

// drillModel is the name that clients ask for.
const drillModel = "m"

// template is a file with the tokenizer's own chat template behind a beginning.
func template(t *testing.T, beginning string) string {
	t.Helper()
	own, err := os.ReadFile(filepath.Join(drillTokenizer, "chat_template.jinja"))
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "template.jinja")
	if err := os.WriteFile(file, append([]byte(beginning), own...), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// fleet is a drill's engines with the service before them.
type fleet struct {
	*testing.T
	*proxy
	mishap  mishap
	engines []*engine.Server
	service bound
	worker  *lmcacheWorker // beside the first engine; nil: none
	log     *lockedLog
}

// startFleet starts the engines with the mishap, and the service that was not
// told of it.
func startFleet(t *testing.T, m mishap) *fleet {
	t.Helper()
	f := &fleet{T: t, mishap: m, log: &lockedLog{}}
	cfg := defaultConfig()
	cfg.LMCache.Enabled = m.lmcache
	model := prompt.DefaultModelConfig()
	model.Name, model.Tokenizer = drillModel, drillTokenizer
	cfg.Prompt.Models = []prompt.ModelConfig{model}
	cfg.Counters.Interval = 500 * time.Millisecond
	if m.service != nil {
		m.service(t, &cfg)
	}
	if m.lmcache {
		f.startWithLMCache(cfg)
	} else {
		f.startWithEvents(cfg)
	}
	f.proxy = newProxy(t, f.service)
	return f
}

// startWithEvents starts engines that publish KV events, then the service.
func (f *fleet) startWithEvents(cfg config) {
	f.Helper()
	for i := range drillEngines {
		e := f.config()
		e.Events.Endpoint, e.Events.Replay = "tcp://127.0.0.1:*", "tcp://127.0.0.1:*"
		server := f.serve(e, f.listen())
		entry := discovery.Entry{Name: fmt.Sprint("e", i), Address: server.Address()}
		entry.KVEvents.Endpoint, entry.KVEvents.ReplayEndpoint = server.EventAddresses()
		cfg.Endpoints = append(cfg.Endpoints, entry)
		f.engines = append(f.engines, server)
	}
	f.service = startLoggedService(f.T, cfg, slog.New(slog.NewTextHandler(f.log, nil)))
}

// startWithLMCache starts the service, then engines whose LMCache reports to it.
// Until then the service's probes wait in the kernel's queue.
func (f *fleet) startWithLMCache(cfg config) {
	f.Helper()
	var listeners []net.Listener
	for i := range drillEngines {
		l := f.listen()
		listeners = append(listeners, l)
		name := fmt.Sprint("e", i)
		cfg.Endpoints = append(cfg.Endpoints, discovery.Entry{
			Name: name, Address: l.Addr().String(), LMCache: discovery.LMCacheEntry{Instance: name},
		})
	}
	f.service = startLoggedService(f.T, cfg, slog.New(slog.NewTextHandler(f.log, nil)))
	for i, l := range listeners {
		e, instance := f.config(), cfg.Endpoints[i].Name
		if i == 0 {
			f.worker = startLMCache(f.T, f.service.LMCache, instance, e.LMCache.Keys)
			e.LMCache = engine.LMCacheConfig{}
		} else {
			e.LMCache.Pull, e.LMCache.Reply, e.LMCache.Instance = f.service.LMCache.Pull, f.service.LMCache.Reply, instance
			e.LMCache.Heartbeat = 100 * time.Millisecond
		}
		f.engines = append(f.engines, f.serve(e, l))
	}
}

func (f *fleet) listen() net.Listener {
	f.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = l.Close() })
	return l
}

// serve serves an engine on l until the test ends.
func (f *fleet) serve(cfg engine.Config, l net.Listener) *engine.Server {
	f.Helper()
	e, err := engine.New(cfg)
	if err != nil {
		f.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- e.Serve(context.Background(), l) }() // ended by Close
	f.Cleanup(func() {
		e.Close()
		if err := <-served; err != nil {
			f.Error(err)
		}
	})
	eventually(f.T, "serving", func() bool { return e.Address() != "" }, l.Addr().String)
	return e
}

// config is that of an engine with the mishap.
func (f *fleet) config() engine.Config {
	f.Helper()
	cfg := engine.DefaultConfig()
	cfg.Models, cfg.Tokenizer, cfg.TimeScale = []string{drillModel}, drillTokenizer, 1e-3
	if f.mishap.engine != nil {
		f.mishap.engine(f.T, &cfg)
	}
	return cfg
}

// rounds of the drill. Conversations of the first begin with nothing noticed;
// those of the second meet a service that has noticed. Together they are less
// than a hundred requests.
var rounds = []struct{ conversations, turns int }{{12, 4}, {12, 4}}

// drillPace is the time between two requests: what is noticed within a hundred
// requests is noticed by looking now and then, and they do not come at once.
const drillPace = 70 * time.Millisecond

// drillRest is how long the second round waits for what is wrong to be noticed.
const drillRest = 10 * time.Second

// play holds the conversations of a round side by side, turn by turn, one
// request at a time, and calls send for each. Whoever waits for an answer waits
// for what is computed then, and for nothing else.
func (f *fleet) play(round int, send func(body []byte) string) {
	f.Helper()
	conversations := make([][]map[string]string, rounds[round].conversations)
	for turn := range rounds[round].turns {
		for c := range conversations {
			id := round*100 + c
			if turn == 0 {
				conversations[c] = []map[string]string{{"role": "system", "content": prose(id, 500)}}
			}
			messages := append(conversations[c], map[string]string{"role": "user", "content": prose(id*10+turn, 60)})
			body := map[string]any{
				"model": drillModel, "messages": messages, "max_tokens": 4,
				"stream": true, "stream_options": map[string]bool{"include_usage": true},
			}
			if f.worker != nil {
				body["return_token_ids"] = true
			}
			if f.mishap.client != nil {
				f.mishap.client(c, body)
			}
			text, err := json.Marshal(body)
			if err != nil {
				f.Fatal(err)
			}
			conversations[c] = append(messages, map[string]string{"role": "assistant", "content": send(text)})
		}
	}
}

// prose is so many words, others for another seed.
func prose(seed, words int) string {
	vocabulary := strings.Fields("the sun and sea are old but few can see how day air time water house night light world hand room city river road name word line")
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", seed)
	for i := range words {
		b.WriteString(" " + vocabulary[(seed*7+i*(i+seed))%len(vocabulary)])
	}
	return b.String()
}

// complaints are all that /status says to be wrong, and the state of chunk keys,
// for each endpoint.
func (f *fleet) complaints() []string {
	f.Helper()
	var view status
	get(f.T, f.service, "/status", &view)
	var texts []string
	for _, e := range view.Fleet {
		var b strings.Builder
		for _, row := range view.KVEvents {
			if row.Endpoint == e.Name && len(row.StoreOnly) > 0 {
				b.WriteString("tells no removals: " + strings.Join(row.StoreOnly, " ") + "\n")
			}
		}
		for _, s := range e.Sources {
			b.WriteString(s.Fault + " " + s.Fix + "\n")
		}
		for _, found := range e.Findings {
			b.WriteString(found.Fault + " " + found.Fix + "\n")
		}
		if view.LMCache != nil {
			for _, h := range view.LMCache.Hashing {
				if h.Endpoint == e.Name {
					b.WriteString(h.State + " {" + h.Settings + "} " + h.Fault + " " + h.Fix + "\n")
				}
			}
		}
		texts = append(texts, b.String())
	}
	return texts
}

// checkBounds checks that no engine is believed to hold more than it can.
func (f *fleet) checkBounds() {
	f.Helper()
	var view status
	get(f.T, f.service, "/status", &view)
	room := scoring.Tokens(f.config().Profile.KVTokens)
	for _, row := range view.KVEvents {
		if row.Tokens["gpu"] > room {
			f.Errorf("endpoint %s is believed to hold %d tokens, and has room for %d", row.Endpoint, row.Tokens["gpu"], room)
		}
	}
}

// fewPrompts are too few to conclude anything of an endpoint.
const fewPrompts = 12

// noticed reports whether all that must be said is said, of every endpoint that
// has computed more than a few of the prompts.
func (f *fleet) noticed(told []*exchange) bool {
	prompts := make(map[string]int)
	for _, x := range told {
		prompts[x.address]++
	}
	for i, text := range f.complaints() {
		if prompts[f.engines[i].Address()] < fewPrompts {
			continue
		}
		for _, want := range f.mishap.said {
			if !strings.Contains(text, want) {
				return false
			}
		}
	}
	log := f.log.String()
	return !slices.ContainsFunc(f.mishap.logged, func(want string) bool { return !strings.Contains(log, want) })
}

// computedBy is how many prompt tokens the engines have computed.
func computedBy(t *testing.T, engines []*engine.Server) (total float64) {
	t.Helper()
	for _, e := range engines {
		total += scrape(t, e.URL(), "vllm:prompt_tokens_by_source_total", "local_compute")
	}
	return total
}

// TestDrill sends the same conversations to fleets that are wrong each in its own
// way. Within a hundred requests the service must have said what is wrong and
// how to mend it, and the engines must never have had more to compute than
// where each request goes to the engine with the least load.
func TestDrill(t *testing.T) {
	requireTokenizer(t)
	for _, m := range mishaps {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			f := startFleet(t, m)
			var told []*exchange
			pace := time.NewTicker(drillPace)
			defer pace.Stop()
			send := func(body []byte) string {
				<-pace.C
				x := f.forward(body)
				if f.worker != nil && x.address == f.engines[0].Address() {
					f.worker.store(x.promptIDs)
				}
				told = append(told, x)
				return x.text
			}
			f.play(0, send)
			// Mostly that is enough; the second round makes it a hundred.
			for deadline := time.Now().Add(drillRest); !f.noticed(told) && time.Now().Before(deadline); {
				<-pace.C
			}
			first := len(told)
			f.play(1, send)
			eventually(t, "said and logged", func() bool { return f.noticed(told) }, func() string {
				return strings.Join(f.complaints(), "\n") + f.log.String()
			})
			if m.silent {
				for i, text := range f.complaints() {
					for line := range strings.Lines(text) {
						if strings.TrimSpace(line) != "" && !strings.HasPrefix(line, lmcache.HashingConfigured+" ") {
							t.Errorf("endpoint %d: %s", i, line)
						}
					}
				}
			}
			f.checkBounds()
			known, found := scoring.Tokens(0), scoring.Tokens(0)
			predicted := f.predictions()
			for _, x := range told[first:] {
				known, found = known+min(x.cached, predicted[x.id]), found+x.cached
			}
			if float64(known) < m.right*float64(found) || found == 0 {
				t.Errorf("of %d tokens that were cached, %d were known beforehand; want %g", found, known, m.right)
			}
			computed, leastLoad := computedBy(t, f.engines), f.leastLoad()
			t.Logf("%.2f of what was cached was known; %.2f of the tokens that were computed by least load", float64(known)/float64(max(1, found)), computed/leastLoad)
			if computed > leastLoad {
				t.Errorf("engines computed %.0f tokens, more than the %.0f by least load", computed, leastLoad)
			}
		})
	}
}
