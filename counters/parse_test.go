package counters

import (
	"compress/gzip"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/test/shared"
)

var noon = time.Unix(1_800_000_000, 0)

// captured is what vLLM 0.32 showed after some traffic with an LMCache
// connector.
var captured = Reading{
	At: noon, Started: time.UnixMicro(1_795_207_417_160_000),
	CapacityTokens: 9600, Ranks: 1, BlockSize: 32, PrefixCaching: SwitchOn, HashAlgorithm: "sha256",
	Counted: true, PrefixQueries: 24328, PrefixHits: 6304, ExternalQueries: 18026, ExternalHits: 1024, PromptTokens: 24330,
	Answers: 32, AnswerTokens: 813,
	CachedBySource: map[string]uint64{"device": 6304, "host": 0, "p2p": 0, "disk": 0, "external_unspecified": 1024},
	CacheResets:    4,
}

func TestParseWhatVLLMShows(t *testing.T) {
	text, err := os.ReadFile("testdata/vllm-0.32.txt")
	if err != nil {
		t.Fatal(err)
	}
	got, err := parse(text, noon)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(captured, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

// The excerpt in testdata says what the whole answer says.
func TestParseWholeAnswer(t *testing.T) {
	file, err := os.Open(shared.File(t, "golden", "vllm-engine-trace.json.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	text, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	var trace struct {
		Metrics string `json:"metrics"`
	}
	if err := json.NewDecoder(text).Decode(&trace); err != nil {
		t.Fatal(err)
	}
	got, err := parse([]byte(trace.Metrics), noon)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(captured, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, body string
		want       Reading
	}{
		{"nothing", "", Reading{}},
		{
			"an engine of another make", `
# HELP sglang:prompt_tokens_total Number of prefill tokens processed.
# TYPE sglang:prompt_tokens_total counter
sglang:prompt_tokens_total{model_name="m"} 8.128902e+06
sglang:num_running_reqs{model_name="m"} 161.0
process_start_time_seconds 1.7e9
`,
			Reading{Started: time.Unix(1_700_000_000, 0)},
		},
		{
			"data-parallel ranks are one engine", `
vllm:cache_config_info{block_size="16",enable_prefix_caching="True",engine="0",num_gpu_blocks="100"} 1.0
vllm:cache_config_info{block_size="16",enable_prefix_caching="True",engine="1",num_gpu_blocks="110"} 1.0
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_queries_total{engine="1",model_name="m"} 200.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 10.0
vllm:prefix_cache_hits_total{engine="1",model_name="m"} 20.0
vllm:num_requests_running{engine="0"} 2.0
vllm:num_requests_running{engine="1"} 3.0
vllm:num_requests_waiting{engine="1"} 4.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
`,
			Reading{
				CapacityTokens: 3360, Ranks: 2, BlockSize: 16, PrefixCaching: SwitchOn,
				Counted: true, PrefixQueries: 300, PrefixHits: 30, Running: 5, Waiting: 4, Usage: 0.5,
			},
		},
		{
			"one process of several told the same", `
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100",pid="1"} 1.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100",pid="2"} 1.0
`,
			Reading{CapacityTokens: 1600, Ranks: 1, BlockSize: 16},
		},
		{
			"of two names of one thing the newer counts", `
vllm:gpu_prefix_cache_queries_total 100
vllm:gpu_prefix_cache_hits_total 50
vllm:prefix_cache_queries_total 100
vllm:prefix_cache_hits_total 50
vllm:gpu_cache_usage_perc 0.1
`,
			Reading{Counted: true, PrefixQueries: 100, PrefixHits: 50, Usage: 0.1},
		},
		{
			"without _total", `
vllm:prefix_cache_queries{engine="0"} 7
vllm:prefix_cache_hits{engine="0"} 3
vllm:external_prefix_cache_queries 4
vllm:external_prefix_cache_hits 2
vllm:prompt_tokens 9
`,
			Reading{Counted: true, PrefixQueries: 7, PrefixHits: 3, ExternalQueries: 4, ExternalHits: 2, PromptTokens: 9},
		},
		{
			"counted in blocks", `
# HELP vllm:gpu_prefix_cache_queries_total GPU prefix cache queries, in terms of number of queried blocks.
# TYPE vllm:gpu_prefix_cache_queries_total counter
vllm:gpu_prefix_cache_queries_total{model_name="m"} 10.0
# HELP vllm:gpu_prefix_cache_hits_total GPU prefix cache hits, in terms of number of cached blocks.
# TYPE vllm:gpu_prefix_cache_hits_total counter
vllm:gpu_prefix_cache_hits_total{model_name="m"} 4.0
vllm:cache_config_info{block_size="16",num_gpu_blocks="None",num_cpu_blocks="20",enable_prefix_caching="False"} 1.0
`,
			Reading{Counted: true, PrefixQueries: 160, PrefixHits: 64, BlockSize: 16, HostTokens: 320, Ranks: 1, PrefixCaching: SwitchOff},
		},
		{
			"queries without hits are no count", "vllm:prefix_cache_queries_total 10\n",
			Reading{PrefixQueries: 10},
		},
		{
			"what is no number counts nothing", `
vllm:prefix_cache_queries_total NaN
vllm:prefix_cache_hits_total -5
vllm:prompt_tokens_total +Inf
vllm:kv_cache_usage_perc 17
process_start_time_seconds -1
vllm:cache_config_info{block_size="-16",num_gpu_blocks="99999999999999999999"} 1
`,
			Reading{Counted: true, Usage: 1, Ranks: 1},
		},
		{
			"faults of others do not matter", "other{ 5\n# TYPE other nonsense\nvllm:prompt_tokens_total 5\n\xff\xfe 1",
			Reading{PromptTokens: 5},
		},
		{
			"line ends of another system, and none at the end", "vllm:prompt_tokens_total 5\r\nvllm:num_requests_running 2",
			Reading{PromptTokens: 5, Running: 2},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parse([]byte(tt.body), noon)
			if err != nil {
				t.Fatal(err)
			}
			tt.want.At = noon
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

func TestParseFaults(t *testing.T) {
	for _, body := range []string{"vllm:prompt_tokens_total five\n", `vllm:prompt_tokens_total{engine="0` + "\n", `vllm:prompt_tokens_total{engine} 5`} {
		if _, err := parse([]byte(body), noon); err == nil || !strings.Contains(err.Error(), "line") {
			t.Errorf("%q: %v, want the line that is wrong", body, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	// Short, because the fuzzer minimises what it finds.
	f.Add([]byte("vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"m\"} 6304.0\nprocess_start_time_seconds 1.79520741716e+09\n"))
	f.Add([]byte("http_requests_total{handler=\"/reset_prefix_cache\",method=\"POST\",status=\"2xx\"} 4.0\nvllm:kv_cache_usage_perc 0.5\n"))
	f.Add([]byte("vllm:cache_config_info{block_size=\"2147483647\",num_gpu_blocks=\"2147483647\"} 1\nvllm:gpu_prefix_cache_hits 9e15\n# HELP vllm:gpu_prefix_cache_hits blocks\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := parse(body, noon)
		if err != nil {
			return
		}
		if r.CapacityTokens < 0 || r.HostTokens < 0 || r.BlockSize < 0 || r.Running < 0 || r.Waiting < 0 || r.Usage < 0 || r.Usage > 1.000001 {
			t.Errorf("out of range: %+v", r)
		}
		if r.PrefixHits > largest || r.PrefixQueries > largest || r.PromptTokens > largest {
			t.Errorf("too large to be counted on: %+v", r)
		}
		if r.ofAnother(&r) {
			t.Errorf("restarted since itself: %+v", r)
		}
		if _, err := json.Marshal(r); err != nil {
			t.Errorf("/status cannot show it: %v", err)
		}
	})
}
