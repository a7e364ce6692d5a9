package overhead_test

import (
	"cmp"
	"os"
	"path/filepath"
	"testing"
)

// compared is one case with each of the proxies.
type compared struct {
	load
	rates  [contenders][]float64 // requests per second, run by run
	faults [contenders]int
	p50    [contenders][]float64 // in seconds
}

// The proxies that are compared, in the order in which they take turns.
const (
	contenderHTTPX = iota
	contenderAiohttp
	contenderOurs
	contenders
)

var contenderNames = [contenders]string{"FastAPI, httpx", "FastAPI, aiohttp", "Envoy with the service"}

// compare runs the service beside proxies in Python, which do nothing but take
// turns.
func (b *bench) compare(t *testing.T, r *report, requests, turns int) {
	t.Helper()
	addresses := [contenders]string{
		b.startPython(t, "proxy_httpx.py"), b.startPython(t, "proxy_aiohttp.py"), b.proxies[oursBuffered].clients,
	}
	for _, l := range wanted(cases([]int{2, 50, 200, 1000}, []int{200})) {
		l.requests = requests
		c := compared{load: l}
		for range turns {
			for i, address := range addresses {
				o := l.run(t.Context(), address, b.text, func() {}, func() {})
				c.rates[i], c.p50[i] = append(c.rates[i], o.rate()), append(c.p50[i], o.quantile(0.5).Seconds())
				if c.faults[i] += o.faults; o.faults > 0 {
					t.Logf("%s, %s: %d requests failed: %v", contenderNames[i], l.name, o.faults, o.fault)
					if i == contenderOurs {
						t.Error("the service must not lose any")
					}
				}
			}
		}
		r.compared = append(r.compared, c)
		t.Logf("%s: %s %.0f", l.name, contenderNames, c.rates)
	}
}

// startPython runs one of the proxies and returns its address.
func (b *bench) startPython(t *testing.T, script string) string {
	t.Helper()
	packages := need(t, filepath.Join(tools(t), "proxies"), "make bench-envoy")
	python := cmp.Or(os.Getenv("PYTHON"), "python3")
	args := []string{script}
	for _, e := range b.engines {
		args = append(args, "http://"+e.address)
	}
	p := start(t, script, []string{"PYTHONDONTWRITEBYTECODE=1", "PYTHONPATH=" + packages}, python, args...)
	var bound struct{ Listen string }
	p.announcement(t, &bound)
	return bound.Listen
}
