package vllm_test

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

// The engines' settings that predictions depend on.
const (
	blockSize = 32  // vLLM's on a CPU must be a multiple of it
	gpuBlocks = 600 // 19,200 tokens: less than all prompts need, so that blocks are evicted
	chunkSize = 256 // LMCache's
)

// truth is what tells the service what the engines have cached.
type truth string

const (
	fromLMCache truth = "LMCache connector"
	fromEvents  truth = "KV events"
	fromMemory  truth = "neither (own memory)"
)

// engine is one real vLLM with a tiny model of random weights.
type engine struct {
	name    string
	address string
	// events and replay are where it publishes KV events, lmcachePort where
	// its LMCache worker listens.
	events, replay, lmcachePort string
	source                      truth
	model                       string
	controller                  controllerAddresses
	process                     *process
}

type controllerAddresses struct{ pull, reply, heartbeat string }

// run starts the engine, again after a kill. It does not wait for it.
func (e *engine) run(t *testing.T, venv string) {
	t.Helper()
	host, port, err := net.SplitHostPort(e.address)
	if err != nil {
		t.Fatal(err)
	}
	env := []string{
		"VLLM_TARGET_DEVICE=cpu", "HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1",
		"VLLM_CPU_KVCACHE_SPACE=1", "VLLM_HOST_IP=127.0.0.1", "VLLM_LOOPBACK_IP=127.0.0.1", "VLLM_SERVER_DEV_MODE=1",
		"PYTHONHASHSEED=0", "OMP_NUM_THREADS=1",
	}
	args := []string{
		"serve", e.model, "--served-model-name", modelName, "--host", host, "--port", port, "--load-format", "dummy", "--dtype", "bfloat16",
		"--max-model-len", "8192", "--max-num-seqs", "4", "--enforce-eager", "--enable-prefix-caching", "--enable-prompt-tokens-details",
		"--block-size", strconv.Itoa(blockSize), "--num-gpu-blocks-override", strconv.Itoa(gpuBlocks),
	}
	switch e.source {
	case fromEvents:
		feed, err := json.Marshal(map[string]any{
			"enable_kv_cache_events": true, "publisher": "zmq", "endpoint": "tcp://" + e.events, "replay_endpoint": "tcp://" + e.replay,
		})
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "--kv-events-config", string(feed))
	case fromLMCache:
		site, err := filepath.Abs("site")
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, "--kv-transfer-config", `{"kv_connector":"LMCacheConnectorV1","kv_role":"kv_both"}`)
		env = append(env, "PYTHONPATH="+site, "LMCACHE_TRACK_USAGE=false",
			"LMCACHE_CHUNK_SIZE="+strconv.Itoa(chunkSize), "LMCACHE_LOCAL_CPU=True", "LMCACHE_MAX_LOCAL_CPU_SIZE=0.5",
			"LMCACHE_ENABLE_CONTROLLER=True", "LMCACHE_LMCACHE_INSTANCE_ID="+e.name,
			"LMCACHE_CONTROLLER_PULL_URL="+e.controller.pull, "LMCACHE_CONTROLLER_REPLY_URL="+e.controller.reply,
			"LMCACHE_CONTROLLER_HEARTBEAT_URL="+e.controller.heartbeat, "LMCACHE_LMCACHE_WORKER_PORTS="+e.lmcachePort,
			"LMCACHE_LMCACHE_WORKER_HEARTBEAT_TIME=1", "LMCACHE_LMCACHE_WORKER_HEARTBEAT_DELAY_TIME=1")
	case fromMemory:
	}
	e.process = start(t, e.name, env, filepath.Join(venv, "bin", "vllm"), args...)
}

// patienceForEngine is how long an engine may take to start on a busy machine.
const patienceForEngine = 8 * time.Minute

// ready waits until the engine serves, and warms it with a prompt that is not
// counted: LMCache does not report the first one after a start.
func (e *engine) ready(t *testing.T) {
	t.Helper()
	eventually(t, patienceForEngine, e.name+" serves", e.process, func() bool {
		resp, err := http.Get("http://" + e.address + "/health")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	c := newClient("http://" + e.address)
	for range 2 {
		if _, err := c.complete(t.Context(), words(newRand(e.name), 400), 4); err != nil {
			t.Fatalf("first prompt of %s: %v", e.name, err)
		}
	}
}

// resetCache makes the engine forget its own blocks.
func (e *engine) resetCache(t *testing.T) {
	t.Helper()
	resp, err := http.Post("http://"+e.address+"/reset_prefix_cache", "application/json", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("reset of %s: status %d", e.name, resp.StatusCode)
	}
}

// modelFolder is a folder that vLLM takes for a model: a tokenizer and the
// shape of a tiny Qwen2 whose weights are drawn at random.
func modelFolder(t *testing.T, tokenizer string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} {
		text, err := os.ReadFile(filepath.Join(tokenizer, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ids := vocabulary(t, tokenizer)
	last := ids[len(ids)-1]
	const multiple = 64
	config, err := json.Marshal(map[string]any{
		"architectures": []string{"Qwen2ForCausalLM"}, "model_type": "qwen2", "torch_dtype": "bfloat16",
		"vocab_size": (last/multiple + 1) * multiple, "bos_token_id": last, "eos_token_id": last,
		"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
		"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768, "tie_word_embeddings": true,
		"initializer_range": 0.02, "use_cache": true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// vocabulary are the token ids of a tokenizer, in order.
func vocabulary(t *testing.T, tokenizer string) []int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(tokenizer, "tokenizer.json"))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		AddedTokens []struct {
			ID int `json:"id"`
		} `json:"added_tokens"`
		Model struct {
			Vocab map[string]int `json:"vocab"`
		} `json:"model"`
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	var ids []int
	for _, id := range file.Model.Vocab {
		ids = append(ids, id)
	}
	for _, a := range file.AddedTokens {
		ids = append(ids, a.ID)
	}
	slices.Sort(ids)
	return ids
}
