package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/engine"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

// config is an engine that takes next to no time.
func config() engine.Config {
	cfg := engine.DefaultConfig()
	cfg.Models = []string{"m", "alias"}
	cfg.TimeScale = 1e-4
	return cfg
}

// rig is a running engine.
type rig struct {
	testing.TB
	*engine.Server
}

func start(tb testing.TB, cfg engine.Config) *rig {
	tb.Helper()
	s, err := engine.New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	if err := s.Start("127.0.0.1:0"); err != nil {
		tb.Fatal(err)
	}
	return &rig{tb, s}
}

// reply is one whole HTTP answer.
type reply struct {
	*http.Response
	body string
}

func (r *rig) do(method, path, body string, headers ...string) reply {
	r.Helper()
	req, err := http.NewRequestWithContext(r.Context(), method, r.URL()+path, strings.NewReader(body))
	if err != nil {
		r.Fatal(err)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		r.Fatal(err)
	}
	return reply{resp, string(text)}
}

func (r *rig) post(path string, body any) reply {
	r.Helper()
	return r.do(http.MethodPost, path, encode(r, body))
}

func encode(tb testing.TB, body any) string {
	tb.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		tb.Fatal(err)
	}
	return string(b)
}

// events are the data of a streamed answer.
func (r reply) events() []string {
	var events []string
	for e := range strings.SplitSeq(strings.TrimSuffix(r.body, "\n\n"), "\n\n") {
		events = append(events, strings.TrimPrefix(e, "data: "))
	}
	return events
}

// field reads body.a.b.0.c as any.
func (r reply) field(tb testing.TB, path string) any {
	tb.Helper()
	return field(tb, r.body, path)
}

func field(tb testing.TB, document, path string) any {
	tb.Helper()
	var v any
	if err := json.Unmarshal([]byte(document), &v); err != nil {
		tb.Fatalf("%v in %s", err, document)
	}
	for name := range strings.SplitSeq(path, ".") {
		if i, err := strconv.Atoi(name); err == nil {
			v = v.([]any)[i]
			continue
		}
		v = v.(map[string]any)[name]
	}
	return v
}

// ownLabel is a label that is the same in all of an engine's series.
var ownLabel = regexp.MustCompile(`(engine|model_name)="[^"]*",?`)

// metric reads one sample of /metrics: its name, with labels but for engine and
// model_name.
func (r *rig) metric(name string) float64 {
	r.Helper()
	text := r.do(http.MethodGet, "/metrics", "").body
	for line := range strings.Lines(text) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		series = strings.ReplaceAll(strings.ReplaceAll(ownLabel.ReplaceAllString(series, ""), ",}", "}"), "{}", "")
		if series == name {
			f, err := strconv.ParseFloat(value, 64)
			if err != nil {
				r.Fatal(err)
			}
			return f
		}
	}
	r.Fatalf("no metric %s among %d lines", name, strings.Count(text, "\n"))
	return 0
}

// eventually waits until something holds.
func eventually(tb testing.TB, what string, holds func() bool) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !holds() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("still not so: %s", what)
		}
	}
}

// ids are n token ids that no other seed has.
func ids(seed, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = seed*100_000 + i
	}
	return out
}

// object is a JSON object of a request.
type object = map[string]any

// shape is what a JSON text looks like: its keys in their order, and the kinds
// of its values.
func shape(tb testing.TB, text string) string {
	tb.Helper()
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	s, err := shapeOf(d)
	if err != nil {
		tb.Fatalf("%v in %s", err, text)
	}
	return s
}

func shapeOf(d *json.Decoder) (string, error) {
	t, err := d.Token()
	if err != nil {
		return "", err
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '{' {
			var fields []string
			for d.More() {
				key, err := d.Token()
				if err != nil {
					return "", err
				}
				value, err := shapeOf(d)
				if err != nil {
					return "", err
				}
				fields = append(fields, key.(string)+":"+value)
			}
			_, err := d.Token()
			return "{" + strings.Join(fields, " ") + "}", err
		}
		first := ""
		for d.More() {
			s, err := shapeOf(d)
			if err != nil {
				return "", err
			}
			if first == "" {
				first = s
			}
		}
		_, err := d.Token()
		return "[" + first + "]", err
	case nil:
		return "null", nil
	case string:
		return "string", nil
	case bool:
		return "bool", nil
	default:
		return "number", nil
	}
}
