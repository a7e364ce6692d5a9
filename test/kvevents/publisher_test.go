//go:build cgo && !nozmq

// Package kvevents_test runs the subscriber against vLLM's own publisher.
package kvevents_test

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/kvevents"
	"github.com/firsttoken/firsttoken/scoring"
)

// patience is for a whole Python process to start on a busy machine.
const patience = 60 * time.Second

// here is this file's folder.
func here() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(file)
}

func tools() string {
	if dir := os.Getenv("FIRSTTOKEN_TOOLS"); dir != "" {
		return dir
	}
	return filepath.Join(here(), "..", "..", ".tools")
}

// engine is a Python process with vLLM's publisher.
type engine struct {
	t       *testing.T
	stdin   io.WriteCloser
	answers *bufio.Scanner
	wait    func()

	Events, Replay string // addresses
}

// command runs a script of this folder with the classes of a release of vLLM.
func command(t *testing.T, version, script string, args ...string) *exec.Cmd {
	t.Helper()
	if _, err := os.Stat(filepath.Join(tools(), "kvevents", version)); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("the publisher of vLLM %s is not installed: %v; run make test", version, err)
		}
		t.Skipf("the publisher of vLLM %s is not installed; run make test, which puts it below .tools", version)
	}
	python := os.Getenv("PYTHON")
	if python == "" {
		python = "python3"
	}
	cmd := exec.Command(python, append([]string{filepath.Join(here(), script)}, args...)...)
	// msgspec and pyzmq are where the LMCache tests have theirs.
	cmd.Env = append(os.Environ(), "PYTHONPATH="+strings.Join([]string{
		filepath.Join(here(), "stubs"), filepath.Join(tools(), "kvevents", version), filepath.Join(tools(), "lmcache", "0.5.6"),
	}, string(filepath.ListSeparator)))
	return cmd
}

// startEngine starts one; config are the arguments of vLLM's publisher.
func startEngine(t *testing.T, version string, config map[string]any) *engine {
	t.Helper()
	text, err := json.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	cmd := command(t, version, "publisher.py", string(text))
	var log strings.Builder
	cmd.Stderr = &log
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	e := &engine{t: t, stdin: stdin, answers: bufio.NewScanner(stdout)}
	ended := false
	e.wait = func() {
		if ended {
			return
		}
		ended = true
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil || t.Failed() {
			t.Errorf("publisher: %v\n%s", err, log.String())
		}
	}
	t.Cleanup(e.wait)
	e.answer(e)
	return e
}

func (e *engine) answer(into any) {
	e.t.Helper()
	if !e.answers.Scan() {
		e.wait()
		e.t.Fatal("the publisher has ended")
	}
	if err := json.Unmarshal(e.answers.Bytes(), into); err != nil {
		e.t.Fatalf("%s: %v", e.answers.Bytes(), err)
	}
}

func (e *engine) do(command map[string]any) {
	e.t.Helper()
	text, err := json.Marshal(command)
	if err != nil {
		e.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(e.stdin, "%s\n", text); err != nil {
		e.t.Fatal(err)
	}
	e.answer(new(struct{}))
}

const block = 16

// tokens are n ids that only that prompt has.
func tokens(prompt, n int) []uint32 {
	ids := make([]uint32, n)
	for i := range ids {
		ids[i] = uint32(prompt*1000 + i)
	}
	return ids
}

// hashOf names the block that ends a prompt's first n tokens: a digest as vLLM
// makes them, or its low 64 bits.
func hashOf(prompt, n int, digest bool) any {
	if digest {
		raw := fmt.Sprintf("%032d", prompt*1_000_000+n)
		return map[string]string{"bytes": hex.EncodeToString([]byte(raw))}
	}
	return uint64(1)<<63 + uint64(prompt*1_000_000+n)
}

// stored announces the blocks of tokens from begin to end.
func stored(prompt, begin, end int, digest bool) map[string]any {
	var hashes []any
	for n := begin + block; n <= end; n += block {
		hashes = append(hashes, hashOf(prompt, n, digest))
	}
	e := map[string]any{
		"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": nil, "token_ids": tokens(prompt, end)[begin:],
		"block_size": block, "lora_id": nil, "medium": "GPU", "lora_name": nil,
		"group_idx": 0, "kv_cache_spec_kind": "full_attention",
	}
	if begin > 0 {
		e["parent_block_hash"] = hashOf(prompt, begin, digest)
	}
	return e
}

func removed(prompt, n int, digest bool) map[string]any {
	return map[string]any{"type": "BlockRemoved", "block_hashes": []any{hashOf(prompt, n, digest)}, "medium": "GPU", "group_idx": 0}
}

// service is our side, with one endpoint.
type service struct {
	*kvevents.Subscriber
	t        *testing.T
	endpoint scoring.Endpoint
}

func start(t *testing.T, feed scoring.EventFeed) *service {
	t.Helper()
	subscriber, err := kvevents.New(kvevents.DefaultConfig(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s := &service{subscriber, t, scoring.Endpoint{
		ID: 1, Name: "engine", Address: "127.0.0.1:8000", Ready: true, Cache: scoring.CacheIdentity{Events: feed},
	}}
	s.SetEndpoints([]scoring.Endpoint{s.endpoint})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }() // ended by cancel
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

func (s *service) eventually(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("never happened: %s; %+v", what, s.Status())
		}
	}
}

// holds waits until so many tokens of the prompt are cached.
func (s *service) holds(prompt int, want scoring.Tokens) {
	s.t.Helper()
	s.holdsFor(s.endpoint, prompt, "", "", want)
}

// holdsFor is holds at an endpoint, for a model with a salt.
func (s *service) holdsFor(endpoint scoring.Endpoint, prompt int, model, salt string, want scoring.Tokens) {
	s.t.Helper()
	ids := append(tokens(prompt, 200), 1)
	n := scoring.Tokens(len(ids))
	p := &scoring.Prompt{Model: model, Salt: salt, Sequences: []scoring.Sequence{{TokenIDs: ids, Length: n, Usable: n, Copies: 1}}}
	s.eventually(fmt.Sprintf("prompt %d: %d tokens cached", prompt, want), func() bool {
		row := s.Match(p, []scoring.Endpoint{endpoint})[0]
		return row != nil && row[0].Cached == want
	})
}

// wires are the forms in which events come: arrays and maps, integers and
// digests, replies with and without topic.
var wires = []struct {
	version string
	digest  bool
}{{"0.10.2", false}, {"0.10.2", true}, {"0.32.0", false}, {"0.32.0", true}}

// We connect: come late, follow, miss some, follow again.
func TestEngineBinds(t *testing.T) {
	for _, wire := range wires {
		version, digest := wire.version, wire.digest
		t.Run(fmt.Sprintf("%s digest=%v", version, digest), func(t *testing.T) {
			e := startEngine(t, version, map[string]any{"endpoint": "tcp://127.0.0.1:*", "replay_endpoint": "tcp://127.0.0.1:*", "topic": "kv@e@m"})
			e.do(map[string]any{"publish": []any{stored(1, 0, 64, digest)}})
			s := start(t, scoring.EventFeed{Endpoint: e.Events, Replay: e.Replay, Topic: "kv@e@m"})
			s.holds(1, 64)
			// Live from here on, or by one more replay if the subscription is late.
			e.do(map[string]any{"publish": []any{stored(1, 64, 128, digest), stored(2, 0, 32, digest)}})
			e.do(map[string]any{"publish": []any{removed(2, 32, digest)}})
			e.do(map[string]any{"lose": 2})
			e.do(map[string]any{"publish": []any{stored(2, 16, 32, digest)}})
			e.do(map[string]any{"publish": []any{stored(2, 32, 80, digest)}})
			e.do(map[string]any{"publish": []any{removed(1, 128, digest)}})
			s.eventually("the engine is heard", func() bool {
				if s.Status()[0].Counts.Batches >= 6 {
					return true
				}
				e.do(map[string]any{"publish": []any{stored(3, 0, 16, digest)}})
				return false
			})
			s.holds(1, 112)
			s.holds(2, 80)
			c := s.Status()[0].Counts
			if c.BadFrames != 0 || c.Restarts != 0 || len(c.Cleared) != 0 || c.Replays == 0 || c.FailedReplays != 0 {
				t.Errorf("%+v", c)
			}
			// An adapter's blocks are its own, where its name is told; salts are told
			// by the newer one alone.
			tuned := stored(4, 0, 32, digest)
			tuned["lora_id"], tuned["lora_name"] = 7, "adapter"
			salted := stored(6, 0, 32, digest)
			salted["extra_keys"] = []any{[]any{"s"}, nil}
			e.do(map[string]any{"publish": []any{tuned, salted, stored(5, 0, 16, digest)}})
			s.holds(5, 16)
			s.holds(4, 0)
			with := s.endpoint
			with.Adapters = []string{"adapter"}
			if version == "0.10.2" {
				s.holdsFor(with, 4, "adapter", "", 0)
			} else {
				s.holdsFor(with, 4, "adapter", "", 32)
				s.holdsFor(with, 6, "", "s", 32)
				s.holds(6, 0)
			}
			e.do(map[string]any{"publish": []any{map[string]any{"type": "AllBlocksCleared"}}})
			s.holds(1, 0)
			if n := s.Status()[0].Blocks["gpu"]; n != 0 {
				t.Errorf("%d blocks after all were cleared", n)
			}
		})
	}
}

// The engine connects to us, and so does its next life.
func TestEngineConnects(t *testing.T) {
	for _, wire := range wires {
		version, digest := wire.version, wire.digest
		t.Run(fmt.Sprintf("%s digest=%v", version, digest), func(t *testing.T) {
			s := start(t, scoring.EventFeed{Endpoint: "tcp://127.0.0.1:0", Bind: true, Topic: "kv@e@m"})
			s.eventually("bound", func() bool { st := s.Status(); return len(st) == 1 && st[0].Address != "tcp://127.0.0.1:0" })
			config := map[string]any{"endpoint": s.Status()[0].Address, "topic": "kv@e@m"}
			first := startEngine(t, version, config)
			// What is published before we have subscribed is lost; without a replay
			// the first that is heard is where it begins.
			s.eventually("the engine is heard", func() bool {
				first.do(map[string]any{"publish": []any{stored(1, 0, 64, digest)}})
				return s.Status()[0].Counts.Batches > 0
			})
			s.holds(1, 64)
			for range 50 { // More than the next life can lose before it is connected.
				first.do(map[string]any{"publish": []any{stored(1, 0, 64, digest)}})
			}
			s.eventually("all are heard", func() bool { return s.Status()[0].Counts.Batches > 50 })
			first.wait()
			second := startEngine(t, version, config)
			s.eventually("the next life is heard", func() bool {
				second.do(map[string]any{"publish": []any{stored(2, 0, 32, digest)}})
				return s.Status()[0].Counts.Restarts > 0
			})
			s.holds(2, 32)
			s.holds(1, 0)
		})
	}
}

// An engine that connects loses what it publishes before we have subscribed, and
// keeps it for whoever asks: nothing is missing in the end.
func TestEngineConnectsAndReplays(t *testing.T) {
	for _, version := range []string{"0.10.2", "0.32.0"} {
		t.Run(version, func(t *testing.T) {
			s := start(t, scoring.EventFeed{Endpoint: "tcp://127.0.0.1:0", Bind: true})
			s.eventually("bound", func() bool { st := s.Status(); return len(st) == 1 && st[0].Address != "tcp://127.0.0.1:0" })
			address := s.Status()[0].Address
			e := startEngine(t, version, map[string]any{"endpoint": address, "replay_endpoint": "tcp://127.0.0.1:*"})
			e.do(map[string]any{"publish": []any{stored(1, 0, 64, true)}})
			// Where it can be asked is known now: the same endpoint, told anew.
			s.endpoint.Cache.Events = scoring.EventFeed{Endpoint: address, Bind: true, Replay: e.Replay}
			s.SetEndpoints([]scoring.Endpoint{s.endpoint})
			s.holds(1, 64)
			e.do(map[string]any{"publish": []any{stored(1, 64, 96, true)}})
			s.eventually("it is heard live", func() bool {
				e.do(map[string]any{"publish": []any{stored(2, 0, 16, true)}})
				return s.Status()[0].Counts.Batches >= 3
			})
			s.holds(1, 96)
			if c := s.Status()[0].Counts; c.Restarts != 0 || len(c.Cleared) != 0 || c.BadFrames != 0 {
				t.Errorf("%+v", c)
			}
		})
	}
}

// The next life of an engine that binds is at the same address and counts from 0
// again: what the old one held is forgotten.
func TestEngineThatBindsRestarts(t *testing.T) {
	for _, version := range []string{"0.10.2", "0.32.0"} {
		t.Run(version, func(t *testing.T) {
			config := map[string]any{"endpoint": "tcp://127.0.0.1:*"}
			first := startEngine(t, version, config)
			s := start(t, scoring.EventFeed{Endpoint: first.Events})
			// More than the next life can lose before we are connected again.
			s.eventually("it is heard", func() bool {
				first.do(map[string]any{"publish": []any{stored(1, 0, 64, false)}})
				st := s.Status()
				return len(st) == 1 && st[0].Counts.Batches >= 300
			})
			s.holds(1, 64)
			first.wait()
			config["bind"] = first.Events
			second := startEngine(t, version, config)
			s.eventually("the next life is seen", func() bool {
				second.do(map[string]any{"publish": []any{stored(2, 0, 32, false)}})
				return s.Status()[0].Counts.Restarts == 1
			})
			s.holds(1, 0)
			s.holds(2, 32)
		})
	}
}

// Engines that connect to one address of ours are told apart by their topics.
func TestTopicsTellEnginesApart(t *testing.T) {
	s := start(t, scoring.EventFeed{Endpoint: "tcp://127.0.0.1:0", Bind: true, Topic: "a"})
	s.eventually("bound", func() bool { st := s.Status(); return len(st) == 1 && st[0].Address != "tcp://127.0.0.1:0" })
	address := s.Status()[0].Address
	second := s.endpoint
	second.ID, second.Name = 2, "second"
	// Both by the same words: an address is shared by those that write it alike.
	second.Cache.Events.Topic = "b"
	s.SetEndpoints([]scoring.Endpoint{s.endpoint, second})
	s.eventually("both are followed", func() bool { st := s.Status(); return len(st) == 2 && st[1].Address == address })
	a := startEngine(t, "0.32.0", map[string]any{"endpoint": address, "topic": "a"})
	b := startEngine(t, "0.10.2", map[string]any{"endpoint": address, "topic": "b"})
	stranger := startEngine(t, "0.32.0", map[string]any{"endpoint": address, "topic": "c"})
	s.eventually("all are heard", func() bool {
		a.do(map[string]any{"publish": []any{stored(1, 0, 32, true)}})
		b.do(map[string]any{"publish": []any{stored(2, 0, 32, true)}})
		stranger.do(map[string]any{"publish": []any{stored(3, 0, 32, true)}})
		st := s.Status()
		return st[0].Counts.Batches > 0 && st[1].Counts.Batches > 0 && s.Strays() > 0
	})
	for _, want := range []struct {
		endpoint scoring.Endpoint
		held     [3]scoring.Tokens
	}{{s.endpoint, [3]scoring.Tokens{32, 0, 0}}, {second, [3]scoring.Tokens{0, 32, 0}}} {
		for i, tokens := range want.held {
			s.holdsFor(want.endpoint, i+1, "", "", tokens)
		}
	}
}
