package counters

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// However many ranks and models an engine shows, and in whichever order, what it
// counts is the sum of all its series: the last one read does not win.
func TestSeriesAreSummed(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		counted := map[string]uint64{}
		var lines []string
		ranks, models := 1+rng.IntN(4), 1+rng.IntN(3)
		for _, name := range []string{
			"vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total", "vllm:external_prefix_cache_queries_total", "vllm:external_prefix_cache_hits_total",
			"vllm:prompt_tokens_total", "vllm:request_generation_tokens_count", "vllm:request_generation_tokens_sum", "vllm:num_requests_running", "vllm:num_requests_waiting",
		} {
			for rank := range ranks {
				for model := range models {
					n := rng.Uint64N(1000)
					counted[name] += n
					lines = append(lines, fmt.Sprintf("%s{engine=\"%d\",model_name=\"m%d\"} %d.0\n", name, rank, model, n))
				}
			}
		}
		rng.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
		r, err := parse([]byte(strings.Join(lines, "")), noon)
		if err != nil {
			t.Fatal(err)
		}
		for name, got := range map[string]uint64{
			"vllm:prefix_cache_queries_total": r.PrefixQueries, "vllm:prefix_cache_hits_total": r.PrefixHits,
			"vllm:external_prefix_cache_queries_total": r.ExternalQueries, "vllm:external_prefix_cache_hits_total": r.ExternalHits,
			"vllm:prompt_tokens_total": r.PromptTokens, "vllm:request_generation_tokens_count": r.Answers, "vllm:request_generation_tokens_sum": r.AnswerTokens,
			"vllm:num_requests_running": uint64(r.Running), "vllm:num_requests_waiting": uint64(r.Waiting),
		} {
			if got != counted[name] {
				t.Fatalf("%s: %d, want %d of\n%s", name, got, counted[name], strings.Join(lines, ""))
			}
		}
	}
}
