package demo

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/firsttoken/firsttoken/bench"
	"github.com/firsttoken/firsttoken/cmd/firsttoken/stack"
	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
)

// result is one finished request as client and service saw it.
type result struct {
	name     string // conversation
	turn     int
	answer   bench.Answer
	decision *firsttokenv1.Decision // nil where Envoy chose by itself
}

// summary is one policy's row in the table.
type summary struct {
	policy         string
	requests       int
	mean, p50, p95 time.Duration
	// hitShare is the part of all prompt tokens that the engines found cached.
	hitShare float64
}

func summarize(policy string, results []result) summary {
	s := summary{policy: policy, requests: len(results)}
	if len(results) == 0 {
		return s
	}
	var ttfts []time.Duration
	var sum time.Duration
	prompt, cached := 0, 0
	for _, r := range results {
		ttfts = append(ttfts, r.answer.FirstToken)
		sum += r.answer.FirstToken
		prompt += r.answer.Usage.Prompt
		cached += r.answer.Usage.Cached
	}
	slices.Sort(ttfts)
	s.mean = sum / time.Duration(len(ttfts))
	s.p50, s.p95 = quantile(ttfts, 0.50), quantile(ttfts, 0.95)
	if prompt > 0 {
		s.hitShare = float64(cached) / float64(prompt)
	}
	return s
}

// quantile is the smallest value that at least the part q of the sorted values
// does not exceed (nearest rank).
func quantile(sorted []time.Duration, q float64) time.Duration {
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

// table compares the policies with the first one.
func table(rows []summary) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-12s %8s %12s %12s %12s %10s %14s\n", "policy", "requests", "mean TTFT", "p50 TTFT", "p95 TTFT", "hit share", "mean, relative")
	for _, s := range rows {
		fmt.Fprintf(&b, "%-12s %8d %12s %12s %12s %9.0f%% %14.2f\n", s.policy, s.requests,
			millis(s.mean), millis(s.p50), millis(s.p95), 100*s.hitShare, s.relative(rows[0]))
	}
	return b.String()
}

func (s summary) relative(to summary) float64 {
	if to.mean == 0 {
		return 1
	}
	return float64(s.mean) / float64(to.mean)
}

// printer writes one line for each request and, on a terminal, a line below
// them that shows how far the run is. Safe for concurrent use.
type printer struct {
	terminal bool
	engines  []string // addresses, in the order of the columns

	mu    sync.Mutex // guards the following fields
	out   io.Writer
	total int // requests of this policy
	done  int
	ttft  time.Duration // sum over those done
}

// begin starts a policy's part.
func (p *printer) begin(policy string, engines []string, total int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.engines, p.total, p.done, p.ttft = engines, total, 0, 0
	fmt.Fprintf(p.out, "\n%s: %d requests\n", policy, total)
	fmt.Fprintf(p.out, "%-11s %6s  %-20s %-18s %-17s %9s %9s %9s\n",
		"request", "tokens", "cached per engine", "busy for ms", "choice", "estimate", "TTFT", "client's")
}

// request reports one result.
func (p *printer) request(r result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done++
	p.ttft += r.answer.FirstToken
	d := r.decision
	choice, estimate, ttft := p.engineName(r.answer.Endpoint)+" by Envoy", "?", "?"
	if c := d.GetCandidates(); len(c) > 0 {
		choice = p.engineName(c[0].GetAddress()) + " " + d.GetReason()
		estimate = millis(seconds(c[0].GetEstimateSeconds()))
	}
	if d != nil && d.TtftSeconds != nil {
		ttft = millis(seconds(d.GetTtftSeconds()))
	}
	p.clear()
	fmt.Fprintf(p.out, "%-11s %6d  %-20s %-18s %-17s %9s %9s %9s\n", r.name+"."+strconv.Itoa(r.turn), r.answer.Usage.Prompt,
		p.perEngine(d, func(c *firsttokenv1.Candidate) string {
			if c.CachedTokens == nil {
				return "-" // no source knows this engine
			}
			return strconv.Itoa(int(c.GetCachedTokens()))
		}),
		p.perEngine(d, func(c *firsttokenv1.Candidate) string {
			return strconv.FormatFloat(1e3*c.GetBacklogSeconds(), 'f', 0, 64)
		}),
		choice, estimate, ttft, millis(r.answer.FirstToken))
	if p.terminal {
		fmt.Fprintf(p.out, "%d of %d, mean TTFT %s", p.done, p.total, millis(p.ttft/time.Duration(p.done)))
	}
}

// end finishes a policy's part.
func (p *printer) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

// line prints text between the parts.
func (p *printer) line(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	fmt.Fprintf(p.out, format+"\n", args...)
}

// clear removes the progress line. Caller must hold p.mu.
func (p *printer) clear() {
	if p.terminal {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

// perEngine joins a value of each engine, in the order of their numbers.
func (p *printer) perEngine(d *firsttokenv1.Decision, value func(*firsttokenv1.Candidate) string) string {
	values := make([]string, len(p.engines))
	for i, address := range p.engines {
		values[i] = "?"
		for _, c := range d.GetCandidates() {
			if c.GetAddress() == address {
				values[i] = value(c)
			}
		}
	}
	return strings.Join(values, " / ")
}

func (p *printer) engineName(address string) string {
	if i := slices.Index(p.engines, address); i >= 0 {
		return stack.EngineName(i)
	}
	return address
}

func millis(d time.Duration) string {
	return strconv.FormatInt(d.Round(time.Millisecond).Milliseconds(), 10) + " ms"
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
