package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/discovery"
)

// follower is a reloader that is driven by hand.
type follower struct {
	*reloader
	file string
	// lists are those that were handed on.
	lists [][]discovery.Entry
}

func follow(t *testing.T) *follower {
	t.Helper()
	f := &follower{file: filepath.Join(t.TempDir(), "firsttoken.yml")}
	f.write(t, firstFile)
	flags := &configFlags{}
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.register(set)
	if err := set.Parse([]string{"--config", f.file, "--log-format", "text"}); err != nil {
		t.Fatal(err)
	}
	cfg, err := flags.load(set)
	if err != nil {
		t.Fatal(err)
	}
	s, err := newService(t.Context(), freePorts(cfg), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	s.watchConfig(f.file, new(slog.LevelVar), func() (config, error) {
		cfg, err := flags.load(set)
		return freePorts(cfg), err
	})
	f.reloader = s.reloader
	f.take = func(entries []discovery.Entry) { f.lists = append(f.lists, entries) }
	f.look(3)
	return f
}

// freePorts is cfg as it would be on a machine where everything is free.
func freePorts(cfg config) config {
	cfg.Server.Listen, cfg.Admin.Listen, cfg.LMCache.Enabled = "127.0.0.1:0", "127.0.0.1:0", false
	return cfg
}

func (f *follower) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(f.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// look looks at the file n times.
func (f *follower) look(n int) {
	for range n {
		f.reloader.look()
	}
}

const firstFile = "endpoints: [{address: '10.0.0.1:8000'}]\n"

// The list of endpoints and the log level follow the file.
func TestReload(t *testing.T) {
	f := follow(t)
	if len(f.lists) != 0 || f.view().Fault != "" {
		t.Fatalf("taken %v, status %+v: the file has not changed", f.lists, f.view())
	}
	f.write(t, "endpoints: [{address: '10.0.0.1:8000', drain: true}, {address: 'engines.example:8000'}]\nlog: {level: debug}\n")
	f.look(2)
	if len(f.lists) != 1 || len(f.lists[0]) != 2 || !f.lists[0][0].Drain {
		t.Fatalf("taken %+v", f.lists)
	}
	if f.level.Level() != slog.LevelDebug {
		t.Errorf("log level %s", f.level.Level())
	}
	f.look(5)
	if len(f.lists) != 1 {
		t.Errorf("the same list was taken %d times", len(f.lists))
	}
	// What is decided by a flag stays so, and is no change.
	if need := f.view().NeedsRestart; len(need) != 0 {
		t.Errorf("needs a restart: %q", need)
	}
}

// The arms follow the file: a canary is raised without a restart.
func TestReloadArms(t *testing.T) {
	f := follow(t)
	var taken []canary.Config
	f.arms = func(c canary.Config) { taken = append(taken, c) }
	arms := func(share int) string {
		return firstFile + fmt.Sprintf("canary: {arms: [{name: new, weight: %d}, {name: rest, weight: %d, policy: envoy}]}\n", share, 100-share)
	}
	for _, share := range []int{10, 20} {
		f.write(t, arms(share))
		f.look(3)
		if last := taken[len(taken)-1]; len(last.Arms) != 2 || last.Arms[0].Weight != share || last.Arms[1].Policy != canary.PolicyEnvoy {
			t.Fatalf("taken %+v", taken)
		}
	}
	f.write(t, arms(-1))
	f.look(3)
	if fault := f.view().Fault; len(taken) != 2 || !strings.Contains(fault, "canary.arms[0].weight: is -1") {
		t.Errorf("taken %d times, fault %q", len(taken), fault)
	}
	f.write(t, firstFile)
	f.look(3)
	if len(taken) != 3 || len(taken[2].Arms) != 0 || len(f.lists) != 0 || len(f.view().NeedsRestart) != 0 {
		t.Errorf("taken %+v, endpoints %d times, needs a restart %q", taken, len(f.lists), f.view().NeedsRestart)
	}
}

// A file that is still being written is not taken in.
func TestReloadWaitsForTheWholeFile(t *testing.T) {
	f := follow(t)
	f.write(t, "endpoints: [{address: '10.0.0.2:8000'}]\n")
	f.look(1)
	f.write(t, "endpoints: [{address: '10.0.0.2:8000'}, {address: '10.0.0.3:8000'}]\n")
	f.look(3)
	if len(f.lists) != 1 || len(f.lists[0]) != 2 {
		t.Errorf("taken %+v", f.lists)
	}
}

// What is not good changes nothing, and says why; what is good again counts.
func TestReloadRefuses(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"no YAML", "endpoints: [", "line 1: "},
		{"no endpoints", "log: {level: info}\n", "endpoints: is empty"},
		{"a fault elsewhere", "endpoints: [{address: '10.0.0.2:8000'}]\nserver: {body_limit_bytes: -1}\n", "server.body_limit_bytes"},
		{"a feed where none was followed", "endpoints: [{address: '10.0.0.2:8000', kv_events: {endpoint: 'tcp://*:5557'}}]\n", "endpoints[].kv_events"},
		{"a group that holds only after a restart", "endpoints: [{address: '10.0.0.2:8000', lmcache: {group: new}}]\nlmcache: {groups: {new: {chunk_size: 128}}}\n", "hold until a restart"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := follow(t)
			f.write(t, c.text)
			f.look(2)
			if len(f.lists) != 0 || !strings.Contains(f.view().Fault, c.want) || !strings.Contains(f.view().Fault, f.file) {
				t.Errorf("taken %+v, fault %q; want %q in it", f.lists, f.view().Fault, c.want)
			}
			f.write(t, firstFile)
			f.look(2)
			if fault := f.view().Fault; len(f.lists) != 0 || fault != "" {
				t.Errorf("the former file is back: taken %+v, fault %q", f.lists, fault)
			}
		})
	}
	t.Run("no file", func(t *testing.T) {
		f := follow(t)
		if err := os.Remove(f.file); err != nil {
			t.Fatal(err)
		}
		f.look(2)
		if len(f.lists) != 0 || !strings.Contains(f.view().Fault, "no such file") {
			t.Errorf("taken %+v, fault %q", f.lists, f.view().Fault)
		}
	})
}

// What needs a restart is named, the rest is taken in.
func TestReloadNamesWhatNeedsARestart(t *testing.T) {
	f := follow(t)
	f.write(t, "endpoints: [{address: '10.0.0.2:8000'}]\nscoring: {policy: roundrobin}\nserver: {fallbacks: 0}\nprompt: {models: [{name: m, tokenizer: none}]}\n")
	f.look(2)
	want := []string{"prompt.models", "scoring.policy", "server.fallbacks"}
	if got := f.view().NeedsRestart; !slices.Equal(got, want) || len(f.lists) != 1 {
		t.Errorf("needs a restart: %q, want %q; taken %+v", got, want, f.lists)
	}
	f.write(t, "endpoints: [{address: '10.0.0.2:8000'}]\n")
	f.look(2)
	if got := f.view().NeedsRestart; len(got) != 0 || len(f.lists) != 1 {
		t.Errorf("needs a restart: %q; taken %+v", got, f.lists)
	}
}

// The engine of a request under way is taken out of the file: its stream goes on.
func TestReloadDropsNoStream(t *testing.T) {
	models := `{"data":[{"id":"m"}]}`
	first, second := fakeEngine(t, models), fakeEngine(t, models)
	cfg := defaultConfig()
	cfg.LMCache.Enabled = false
	cfg.Endpoints = []discovery.Entry{{Address: first}}
	s, b := runService(t, cfg, slog.New(slog.DiscardHandler))
	conn := dial(t, b.Listen)
	awaitServing(t, conn)
	destination, respond := ask(t, conn, `{"model":"m","prompt":"Hello","stream":true}`)
	if destination != first {
		t.Fatalf("chose %s", destination)
	}
	s.watcher.SetEntries([]discovery.Entry{{Address: second}})
	for destination != second {
		destination = choose(t, conn, `{"model":"m","prompt":"Hello","stream":true}`)
	}
	respond() // fails where the stream was dropped
}
