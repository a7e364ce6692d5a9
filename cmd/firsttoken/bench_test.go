package main

import (
	"bytes"
	"encoding/csv"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/firsttoken/firsttoken/engine"
	"github.com/firsttoken/firsttoken/simulator"
)

// benchEngine is a simulated engine that runs a hundred times as fast as real.
func benchEngine(t *testing.T) string {
	t.Helper()
	cfg := engine.DefaultConfig()
	cfg.Models, cfg.TimeScale, cfg.APIKey = []string{"m"}, 0.01, "secret"
	var err error
	if cfg.Profile, err = simulator.ProfileByName("3090-7b"); err != nil {
		t.Fatal(err)
	}
	server, err := engine.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	if err := server.Start("127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BENCH_KEY", "secret")
	return server.URL()
}

// runBench runs the command and gives what it printed and the lines of its file,
// each by the names of its columns.
func runBench(t *testing.T, url string, args ...string) (out string, lines []map[string]string, err error) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "summary.csv")
	root := newRootCommand()
	var stdout bytes.Buffer
	root.SetOut(&stdout)
	root.SetErr(&stdout)
	root.SetArgs(append([]string{"bench", args[0], "--base-url", url, "--model", "m", "--api-key-env", "BENCH_KEY", "--output", file}, args[1:]...))
	err = root.ExecuteContext(t.Context())
	text, readErr := os.ReadFile(file)
	if readErr != nil {
		return stdout.String(), nil, err
	}
	rows, readErr := csv.NewReader(bytes.NewReader(text)).ReadAll()
	if readErr != nil {
		t.Fatal(readErr)
	}
	for _, row := range rows[1:] {
		line := map[string]string{}
		for i, name := range rows[0] {
			line[name] = row[i]
		}
		lines = append(lines, line)
	}
	return stdout.String(), lines, err
}

func number(t *testing.T, text string) float64 {
	t.Helper()
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestBenchMultiRound(t *testing.T) {
	out, lines, err := runBench(t, benchEngine(t), "multi-round", "--num-users", "3", "--num-rounds", "4", "--qps", "300", "--shared-system-prompt", "100",
		"--user-history-prompt", "200-300", "--question-len", "20", "--answer-len", "8", "--ignore-eos", "--ramp-up", "0.01", "--warm-up", "1")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, text := range []string{"counted by the endpoint's /tokenize", "12 in ", "0 failed", "of them cached", "TTFT"} {
		if !strings.Contains(out, text) {
			t.Errorf("the output lacks %q:\n%s", text, out)
		}
	}
	if len(lines) != 12 {
		t.Fatalf("%d lines", len(lines))
	}
	slices.SortFunc(lines, func(a, b map[string]string) int {
		return strings.Compare(a["user_id"]+a["question_id"], b["user_id"]+b["question_id"])
	})
	for i, line := range lines {
		if want := fmt.Sprint(i/4+1, " ", i%4+1); line["user_id"]+" "+line["question_id"] != want {
			t.Errorf("line %d: %v, want %s", i, line, want)
		}
		// Each round is a question and an answer longer; role names and numbers come
		// besides.
		base := 100.0 + 200
		if prompt := number(t, line["prompt_tokens"]); prompt < base+20 || prompt > base+100+4*(20+8+20) || line["generation_tokens"] != "8" {
			t.Errorf("line %d: %v", i, line)
		}
		if i%4 > 0 && number(t, line["cached_tokens"]) < number(t, lines[i-1]["prompt_tokens"])-16 {
			t.Errorf("round %d found %s tokens cached; the round before had %s", i%4+1, line["cached_tokens"], lines[i-1]["prompt_tokens"])
		}
		if number(t, line["ttft"]) <= 0 || number(t, line["finish_time"]) <= number(t, line["launch_time"]) || number(t, line["itl"]) <= 0 {
			t.Errorf("line %d: %v", i, line)
		}
	}
}

func TestBenchSharedPrefix(t *testing.T) {
	out, lines, err := runBench(t, benchEngine(t), "shared-prefix", "--workers", "2", "--requests", "3", "--fresh-len", "600", "--max-failed", "0")
	if err != nil || len(lines) != 6 {
		t.Fatalf("%v, %d lines\n%s", err, len(lines), out)
	}
	for _, line := range lines {
		if cached, prompt := number(t, line["cached_tokens"]), number(t, line["prompt_tokens"]); cached < 200 || cached > 300 || prompt < 800 || prompt > 900 {
			t.Errorf("%v", line)
		}
	}
}

func TestBenchTrace(t *testing.T) {
	file := filepath.Join(t.TempDir(), "trace.jsonl")
	text := `{"timestamp": 0, "input_length": 1100, "output_length": 3, "hash_ids": [1, 2, 3]}
{"timestamp": 3000, "input_length": 1200, "output_length": 4, "hash_ids": [1, 2, 4]}
{"timestamp": 9000, "input_length": 600, "output_length": 2, "hash_ids": [1, 7]}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, lines, err := runBench(t, benchEngine(t), "trace", file, "--speed", "20", "--to", "8", "--log-interval", "30", "--timeout", "1m")
	if err != nil || len(lines) != 2 {
		t.Fatalf("%v, %d lines\n%s", err, len(lines), out)
	}
	if lines[0]["generation_tokens"] != "3" || lines[1]["generation_tokens"] != "4" || number(t, lines[1]["cached_tokens"]) < 900 {
		t.Errorf("%v", lines)
	}
	if _, _, err := runBench(t, "http://127.0.0.1:1", "trace", filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error for a file that is not there")
	}
}

// An endpoint without /tokenize and with errors: lengths are guessed, failures
// are counted and named, and fail the command as asked.
func TestBenchCountsFailures(t *testing.T) {
	calls := 0
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/chat/completions" {
			http.NotFound(w, r)
			return
		}
		if calls++; calls == 2 {
			http.Error(w, "no engine", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\ndata: [DONE]\n\n")
	}))
	defer server.Close()
	args := []string{"shared-prefix", "--workers", "1", "--requests", "3", "--warm-up", "0"}
	out, lines, err := runBench(t, server.URL, args...)
	if err != nil || len(lines) != 3 || lines[1]["error"] != "status_503" || lines[1]["ttft"] != "" {
		t.Errorf("%v\n%s\n%v", err, out, lines)
	}
	for _, text := range []string{"one word is taken for a token", "status: 404", "1 failed", "status_503    1, such as no engine"} {
		if !strings.Contains(strings.ReplaceAll(out, "status 404", "status: 404"), text) {
			t.Errorf("the output lacks %q:\n%s", text, out)
		}
	}
	calls = 0
	if _, _, err := runBench(t, server.URL, append(args, "--max-failed", "0")...); err == nil || !strings.Contains(err.Error(), "1 of 3, at most 0 may") {
		t.Errorf("error %v", err)
	}
	server.Config.Handler = http.NotFoundHandler()
	if _, _, err := runBench(t, server.URL, args...); err == nil || !strings.Contains(err.Error(), "none of 3 was answered") {
		t.Errorf("error %v", err)
	}
}
