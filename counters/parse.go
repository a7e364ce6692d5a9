package counters

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/firsttoken/firsttoken/scoring"
)

// The metrics that are read, by every name that vLLM gave them: the newer
// first, because some releases show both. Python's client adds _total to a
// counter's name, releases before it did not.
var (
	namesQueries  = []string{"vllm:prefix_cache_queries_total", "vllm:prefix_cache_queries", "vllm:gpu_prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries"}
	namesHits     = []string{"vllm:prefix_cache_hits_total", "vllm:prefix_cache_hits", "vllm:gpu_prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits"}
	namesExtAsked = []string{"vllm:external_prefix_cache_queries_total", "vllm:external_prefix_cache_queries"}
	namesExtHits  = []string{"vllm:external_prefix_cache_hits_total", "vllm:external_prefix_cache_hits"}
	namesPrompt   = []string{"vllm:prompt_tokens_total", "vllm:prompt_tokens"}
	namesAnswers  = []string{"vllm:request_generation_tokens_count"}
	namesAnswered = []string{"vllm:request_generation_tokens_sum"}
	namesBySource = []string{"vllm:prompt_tokens_cached_by_source_total", "vllm:prompt_tokens_cached_by_source"}
	namesRunning  = []string{"vllm:num_requests_running"}
	namesWaiting  = []string{"vllm:num_requests_waiting"}
	namesUsage    = []string{"vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"}
	namesInfo     = []string{"vllm:cache_config_info"}
	namesStart    = []string{"process_start_time_seconds"}
	namesWeb      = []string{"http_requests_total"}
)

var wanted = func() map[string]bool {
	names := make(map[string]bool)
	for _, list := range [][]string{
		namesQueries, namesHits, namesExtAsked, namesExtHits, namesPrompt, namesBySource, namesAnswers, namesAnswered,
		namesRunning, namesWaiting, namesUsage, namesInfo, namesStart, namesWeb,
	} {
		for _, name := range list {
			names[name] = true
		}
	}
	return names
}()

// parse reads an answer of /metrics. An engine that shows none of the metrics
// gives an empty Reading, and no error.
func parse(body []byte, at time.Time) (Reading, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	found, err := parser.TextToMetricFamilies(relevant(body))
	if err != nil {
		return Reading{}, fmt.Errorf("not Prometheus' text format: %w", err)
	}
	f := families(found)
	r := Reading{
		At:            at,
		ExternalHits:  f.count(namesExtHits),
		PromptTokens:  f.count(namesPrompt),
		Answers:       f.count(namesAnswers),
		AnswerTokens:  f.count(namesAnswered),
		Running:       int(min(f.count(namesRunning), math.MaxInt32)),
		Waiting:       int(min(f.count(namesWaiting), math.MaxInt32)),
		PrefixQueries: f.count(namesQueries),
		PrefixHits:    f.count(namesHits),
		Counted:       f.first(namesQueries) != nil && f.first(namesHits) != nil,
	}
	r.ExternalQueries = f.count(namesExtAsked)
	r.readConfig(f.first(namesInfo))
	// Releases before 0.9 counted blocks, and said so in the help text.
	if unit := uint64(max(1, r.BlockSize)); unit > 1 && f.inBlocks(namesHits) {
		r.PrefixQueries, r.PrefixHits = min(r.PrefixQueries, largest/unit)*unit, min(r.PrefixHits, largest/unit)*unit
	}
	for _, m := range f.first(namesBySource) {
		if r.CachedBySource == nil {
			r.CachedBySource = make(map[string]uint64)
		}
		r.CachedBySource[label(m, "source")] += whole(m)
	}
	for _, m := range f.first(namesUsage) {
		r.Usage += min(1, max(0, finite(m))) / float64(len(f.first(namesUsage)))
	}
	for _, m := range f.first(namesStart) {
		if s := finite(m); s > 0 && s < 1e11 {
			r.Started = time.UnixMicro(int64(s * 1e6))
		}
	}
	for _, m := range f.first(namesWeb) {
		if h := label(m, "handler"); (h == "/reset_prefix_cache" || h == "/sleep") && label(m, "status") == "2xx" {
			r.CacheResets += whole(m)
		}
	}
	return r, nil
}

// relevant are the lines of body that parse looks at: one in twenty, and a
// fault in what is foreign to us costs nothing. Of the comments only the help
// texts of these metrics are among them.
func relevant(body []byte) io.Reader {
	var lines bytes.Buffer
	for line := range bytes.Lines(body) {
		name, isHelp := bytes.CutPrefix(line, []byte("# HELP "))
		if end := bytes.IndexAny(name, "{ \t\r\n"); end >= 0 {
			name = name[:end]
		}
		if wanted[string(name)] && (isHelp || line[0] != '#') {
			lines.Write(bytes.TrimRight(line, "\r\n"))
			lines.WriteByte('\n')
		}
	}
	return &lines
}

// families are metrics by name. None has a type: their TYPE lines are not
// relevant.
type families map[string]*dto.MetricFamily

// first are the series of the first of names that is there.
func (f families) first(names []string) []*dto.Metric {
	for _, name := range names {
		if family := f[name]; len(family.GetMetric()) > 0 {
			return family.GetMetric()
		}
	}
	return nil
}

// count sums the series of the first of names that is there, over all labels:
// an engine has one for each rank.
func (f families) count(names []string) uint64 {
	var n uint64
	for _, m := range f.first(names) {
		n = min(n+whole(m), largest)
	}
	return n
}

// inBlocks reports whether the first of names that is there says that its unit
// is a block.
func (f families) inBlocks(names []string) bool {
	for _, name := range names {
		if family := f[name]; len(family.GetMetric()) > 0 {
			return strings.Contains(family.GetHelp(), "blocks")
		}
	}
	return false
}

// readConfig reads vllm:cache_config_info, whose values are its labels.
func (r *Reading) readConfig(series []*dto.Metric) {
	ranks := make(map[string]bool)
	for _, m := range series {
		rank := label(m, "engine")
		if ranks[rank] {
			continue
		}
		ranks[rank] = true
		block := number(m, "block_size")
		// With several kinds of layers blocks are shared out among them, and
		// only the size in tokens is true.
		tokens := number(m, "kv_cache_size_tokens")
		if tokens == 0 {
			tokens = number(m, "num_gpu_blocks") * block
		}
		r.CapacityTokens += min(tokens, maxTokens)
		r.HostTokens += min(number(m, "num_cpu_blocks")*block, maxTokens)
		r.BlockSize = max(r.BlockSize, block)
		switch label(m, "enable_prefix_caching") {
		case "True":
			r.PrefixCaching = SwitchOn
		case "False":
			r.PrefixCaching = SwitchOff
		}
		r.HashAlgorithm = label(m, "prefix_caching_hash_algo")
	}
	r.Ranks = len(ranks)
}

func label(m *dto.Metric, name string) string {
	for _, pair := range m.GetLabel() {
		if pair.GetName() == name {
			return pair.GetValue()
		}
	}
	return ""
}

// maxTokens is more than any cache holds; with it no sum over ranks overflows.
const maxTokens = 1 << 40

// number is a label's value; 0 where it is none, such as Python's None.
func number(m *dto.Metric, name string) scoring.Tokens {
	n, err := strconv.ParseInt(label(m, name), 10, 32)
	if err != nil || n < 0 {
		return 0
	}
	return scoring.Tokens(n)
}

// largest is what a float counts exactly.
const largest = 1 << 53

// whole is the value as a count; 0 where it cannot be one.
func whole(m *dto.Metric) uint64 {
	v := finite(m)
	if v < 0 {
		return 0
	}
	return uint64(min(v, largest))
}

func finite(m *dto.Metric) float64 {
	v := m.GetUntyped().GetValue()
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}
