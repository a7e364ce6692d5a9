package overhead_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// report becomes the figures of docs/benchmarks.md.
type report struct {
	command   string
	turns     int
	tokenizer string
	cases     []load
	samples   [][variants][]sample
	profiles  []profiled
	compared  []compared
}

func newReport(command string, turns int) *report { return &report{command: command, turns: turns} }

func (r *report) add(l load, all [variants][]sample) {
	r.cases, r.samples = append(r.cases, l), append(r.samples, all)
}

// The figures stand between these lines of the file; what is around them is
// written by people.
const (
	begin = "<!-- begin: written by make bench-envoy -->\n"
	end   = "<!-- end: written by make bench-envoy -->\n"
)

func (r *report) write(t *testing.T, file string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := bytes.Cut(text, []byte(begin))
	_, after, ok2 := bytes.Cut(rest, []byte(end))
	if !ok || !ok2 {
		t.Fatalf("%s lacks the lines %q and %q", file, begin, end)
	}
	page := r.machine(t) + r.markdown()
	if err := os.WriteFile(file, slices.Concat(before, []byte(begin), []byte(page), []byte(end), after), 0o600); err != nil {
		t.Fatal(err)
	}
}

// machine says where, of what and how the figures were made.
func (r *report) machine(t *testing.T) string {
	t.Helper()
	say := func(name string, args ...string) string {
		out, err := exec.Command(name, args...).Output()
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(out))
	}
	cpu := "unknown CPU"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`(?m)^model name\s*: (.+)$`).FindSubmatch(text); m != nil {
			cpu = string(m[1])
		}
	}
	commit := say("git", "rev-parse", "--short=12", "HEAD")
	if say("git", "status", "--porcelain", "--", "../../*.go", "../../prompt", "../../go.mod") != "" {
		commit += " with changes"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "`%s` at commit %s, %s.\n%d CPUs (%s), %s, %s, %s; tokenizer %s.\n\n", r.command, commit, time.Now().UTC().Format(time.DateOnly),
		runtime.NumCPU(), cpu, say("uname", "-sr"), runtime.Version(), say(filepath.Join(tools(t), "envoy"), "--version"), r.tokenizer)
	return regexp.MustCompile(`, \S*envoy +version: [0-9a-f]+/([0-9.]+)/\S+;`).ReplaceAllString(b.String(), ", Envoy $1;")
}

func (r *report) markdown() string {
	var b strings.Builder
	if len(r.cases) > 0 {
		r.targets(&b)
		for _, mode := range []struct {
			title       string
			empty, ours int
		}{
			{"BUFFERED", emptyBuffered, oursBuffered},
			{"FULL_DUPLEX_STREAMED", emptyDuplex, oursDuplex},
		} {
			r.table(&b, mode.title, mode.empty, mode.ours)
		}
	}
	r.profileTable(&b)
	r.pythonTable(&b)
	return b.String()
}

// The targets.
const (
	targetShort  = 0.92 // of the empty server's requests per second, 200 B
	targetLong   = 0.7  // the same, 80 KB
	targetPython = 3.0  // times the requests per second of the proxy with aiohttp, at 1000 clients
)

func target(l load) float64 {
	if l.bytes < 1000 {
		return targetShort
	}
	return targetLong
}

// targets says what holds and what does not.
func (r *report) targets(b *strings.Builder) {
	b.WriteString("## Service beside the empty server, requests per second\n\n")
	fmt.Fprintf(b, "Wanted: at least %g of the empty server's at 200 B, %g at 80 KB. **Bold** is missed.\n\n", targetShort, targetLong)
	b.WriteString("| body, answer, clients | wanted | BUFFERED | FULL_DUPLEX_STREAMED | the empty server of plain Envoy, BUFFERED | FULL_DUPLEX_STREAMED |\n| --- | --- | --- | --- | --- | --- |\n")
	missed := 0
	for i, l := range r.cases {
		cell := func(ours, empty int) string {
			q := ratio(r.samples[i], ours, empty)
			if q < target(l) {
				missed++
				return fmt.Sprintf("**%.2f**", q)
			}
			return fmt.Sprintf("%.2f", q)
		}
		fmt.Fprintf(b, "| %s | %.2f | %s | %s | %.2f | %.2f |\n", l.name, target(l), cell(oursBuffered, emptyBuffered), cell(oursDuplex, emptyDuplex),
			ratio(r.samples[i], emptyBuffered, plain), ratio(r.samples[i], emptyDuplex, plain))
	}
	fmt.Fprintf(b, "\n%d of %d miss their target.\n\n", missed, 2*len(r.cases))
}

// ratio is how many requests per second one variant served for each of another:
// the median over the turns, in each of which both ran.
func ratio(all [variants][]sample, of, to int) float64 {
	var each []float64
	for i := range all[of] {
		if below := all[to][i].rate(); below > 0 {
			each = append(each, all[of][i].rate()/below)
		}
	}
	return median(each)
}

// lastLine is the last case in short, for the log.
func (r *report) lastLine() string {
	i := len(r.cases) - 1
	s := r.samples[i]
	return fmt.Sprintf("%-28s plain %.0f/s; BUFFERED empty %.2f of it, service %.2f of that (CPU in µs: Envoy %s alone, %s, %s; server %s, %s); FULL_DUPLEX %.2f, %.2f (%s, %s)", r.cases[i].name,
		rate(s[plain]), ratio(s, emptyBuffered, plain), ratio(s, oursBuffered, emptyBuffered),
		cpu(s[plain], front), cpu(s[emptyBuffered], front), cpu(s[oursBuffered], front), cpu(s[emptyBuffered], server), cpu(s[oursBuffered], server),
		ratio(s, emptyDuplex, plain), ratio(s, oursDuplex, emptyDuplex), cpu(s[emptyDuplex], server), cpu(s[oursDuplex], server))
}

func (r *report) table(b *strings.Builder, title string, empty, ours int) {
	fmt.Fprintf(b, "## %s\n\nMedians of %d turns. CPU is that of one request, in µs.\n\n", title, r.turns)
	b.WriteString("| body, answer, clients | through | requests/s | p50 | p99 | CPU Envoy | CPU server | decided |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for i, l := range r.cases {
		for _, v := range []struct {
			variant int
			name    string
		}{{plain, "Envoy alone"}, {empty, "empty server"}, {ours, "**service**"}} {
			s := r.samples[i][v.variant]
			served, share := "", ""
			if v.variant != plain {
				served = cpu(s, server)
			}
			if v.variant == ours {
				share = fmt.Sprintf("%.1f %%", 100*decided(s))
			}
			name := l.name
			if v.variant != plain {
				name = ""
			}
			fmt.Fprintf(b, "| %s | %s | %.0f | %s | %s | %s | %s | %s |\n", name, v.name, rate(s), latency(s, 0.5), latency(s, 0.99), cpu(s, front), served, share)
		}
	}
	b.WriteString("\n")
}

func rate(s []sample) float64 {
	return medianOf(s, func(s sample) float64 { return s.rate() })
}

// decided is the share of answers that the service chose the endpoint of.
func decided(s []sample) float64 {
	return medianOf(s, func(s sample) float64 { return float64(s.decided) / float64(max(1, len(s.latencies))) })
}

func latency(s []sample, q float64) string {
	return milliseconds(medianOf(s, func(s sample) float64 { return s.quantile(q).Seconds() }))
}

func milliseconds(seconds float64) string {
	if ms := 1000 * seconds; ms < 10 {
		return fmt.Sprintf("%.2f ms", ms)
	}
	return fmt.Sprintf("%.0f ms", 1000*seconds)
}

func front(s sample) time.Duration  { return s.envoyCPU }
func server(s sample) time.Duration { return s.serverCPU }

func cpu(s []sample, of func(sample) time.Duration) string {
	return fmt.Sprintf("%.0f", medianOf(s, func(s sample) float64 { return float64(of(s).Nanoseconds()) / 1000 }))
}

func medianOf(all []sample, of func(sample) float64) float64 {
	var each []float64
	for _, s := range all {
		each = append(each, of(s))
	}
	return median(each)
}

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	slices.Sort(all)
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}

func (r *report) profileTable(b *strings.Builder) {
	if len(r.profiles) == 0 {
		return
	}
	b.WriteString("## Memory\n\nWhat the service allocates while it is under load, divided by its decisions, and the collector's part of its CPU time.\n\n")
	b.WriteString("| body, answer, clients | allocated for a decision | objects | collector |\n| --- | --- | --- | --- |\n")
	for _, p := range r.profiles {
		fmt.Fprintf(b, "| %s | %.1f KB | %.0f | %.1f %% |\n", strings.TrimSuffix(p.name, ", profile"), p.bytes/1000, p.objects, p.collector)
	}
	b.WriteString("\n")
}

func (r *report) pythonTable(b *strings.Builder) {
	if len(r.compared) == 0 {
		return
	}
	fmt.Fprintf(b, "## Beside proxies in Python\n\n%d requests a turn, medians of %d turns; requests per second (failed requests). Wanted: %g times those of aiohttp with 1000 clients, none failed. **Bold** is missed.\n\n",
		r.compared[0].requests, r.turns, targetPython)
	b.WriteString("| body, answer, clients | " + strings.Join(contenderNames[:], " | ") + " | service / aiohttp | p50 of aiohttp | p50 of the service |\n|" + strings.Repeat(" --- |", contenders+4) + "\n")
	for _, c := range r.compared {
		fmt.Fprintf(b, "| %s |", c.name)
		for i := range contenders {
			fmt.Fprintf(b, " %.0f (%d) |", median(slices.Clone(c.rates[i])), c.faults[i])
		}
		var each []float64
		for i := range c.rates[contenderOurs] {
			each = append(each, c.rates[contenderOurs][i]/c.rates[contenderAiohttp][i])
		}
		q, mark := median(each), ""
		if c.clients == 1000 && (q < targetPython || c.faults[contenderOurs] > 0) {
			mark = "**"
		}
		fmt.Fprintf(b, " %s%.1f%s | %s | %s |\n", mark, q, mark, milliseconds(median(c.p50[contenderAiohttp])), milliseconds(median(c.p50[contenderOurs])))
	}
	b.WriteString("\n")
}
