package main

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/test/shared"
)

// runKeys gives firsttoken keys its standard input and returns what it writes.
func runKeys(t *testing.T, input string) []string {
	t.Helper()
	var out bytes.Buffer
	root := newRootCommand()
	root.SetArgs([]string{"keys"})
	root.SetIn(strings.NewReader(input))
	root.SetOut(&out)
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

// TestKeysCommand: a line for each line, and after a bad one it goes on.
func TestKeysCommand(t *testing.T) {
	const rest = `"python":"3.12","algorithm":"builtin","chunk_size":2,"save_unfull_chunk":true`
	questions := []struct{ in, want string }{
		{`{"lmcache":"0.5.6","vllm":"0.33.0","pythonhashseed":"0",` + rest + `,"tokens":[]}`, `{"none_hash":"5313149338359954478","chunks":[]}`},
		{`not JSON`, `{"error":"invalid character 'o' in literal null (expecting 'u')"}`},
		{`{"lmcache":"0.5.6","vllm":"0.33.0","pythonhashseed":"0",` + rest + `,"tokens":[-1]}`, `{"error":"json: cannot unmarshal number -1 into Go struct field keysQuestion.tokens of type uint32"}`},
		{`{"vllm":"0.33.0","pythonhashseed":"0",` + rest + `,"tokens":[1]}`, `{"error":"lmcache, python, algorithm, chunk_size and tokens must all be given, and vllm as a version or null; see firsttoken keys --help"}`},
		{`{"lmcache":"0.3.11","vllm":null,"pythonhashseed":null,"python":"3.11","algorithm":"builtin","chunk_size":2,"tokens":[1]}`, `{"error":"builtin keys of LMCache 0.3.4 to 0.3.15 (here 0.3.11) hash None, which Python below 3.12 (here 3.11) does by its address in memory: every engine process has other keys; use algorithm sha256_cbor, Python 3.12, or LMCache 0.4.1 or newer"}`},
		{`{"lmcache":"0.5.6","vllm":"0.33.0","pythonhashseed":"",` + rest + `,"none_hash":"5","tokens":[]}`, `{"none_hash":"5","chunks":[]}`},
		{`{"lmcache":"0.5.6","vllm":"0.33.0","hashseed":"0",` + rest + `,"tokens":[]}`, `{"error":"field \"hashseed\" is unknown; is it pythonhashseed?"}`},
		{`{"lmcache_version":"0.5.6","vllm":"0.33.0",` + rest + `,"tokens":[]}`, `{"error":"field \"lmcache_version\" is unknown; is it lmcache?"}`},
		{`{"mode":"multiprocess","chunksize":2,"tokens":[]}`, `{"error":"field \"chunksize\" is unknown; is it chunk_size?"}`},
		{`{"id":"q1","note":"mine","mode":"multiprocess","chunk_size":2,"tokens":[]}`, `{"none_hash":"7e3eff9ef7613a50340eb12677ee03b83ac759fcba9bb32705f07248d56d473b","chunks":[]}`},
		{`{"mode":"multiprocess","algorithm":"sha256_cbor","chunk_size":2,"tokens":[1]}`, `{"error":"algorithm is \"sha256_cbor\"; in multiprocess mode only blake3, LMCache's default there, can be predicted"}`},
		{`{"mode":"multiprocess","chunk_size":2}`, `{"error":"chunk_size and tokens must be given; see firsttoken keys --help"}`},
		{`{"mode":"cluster","chunk_size":2,"tokens":[1]}`, `{"error":"mode is \"cluster\"; write multiprocess, or leave it out"}`},
		{`{"mode":"multiprocess","chunk_size":9000,"tokens":[1]}`, `{"error":"chunk_size: is 9000; write a number from 1 to 8192, such as 256"}`},
	}
	var input strings.Builder
	var want []string
	for _, q := range questions {
		input.WriteString(q.in + "\n\n")
		want = append(want, q.want)
	}
	if diff := cmp.Diff(want, runKeys(t, strings.TrimRight(input.String(), "\n"))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// value is a key as the vectors write it: an integer, or bytes in hex, which
// those of multiprocess mode write as a plain string.
type value struct{ Int, Bytes string }

func (v *value) UnmarshalJSON(data []byte) error {
	if data[0] == '"' {
		return json.Unmarshal(data, &v.Bytes)
	}
	type plain value
	return json.Unmarshal(data, (*plain)(v))
}

// TestKeysCommandGolden asks for all that the real token databases made.
func TestKeysCommandGolden(t *testing.T) {
	data, err := os.ReadFile(shared.File(t, "golden", "lmcache-hash.json"))
	if err != nil {
		t.Fatal(err)
	}
	var golden struct {
		TokenLists map[string]json.RawMessage   `json:"token_lists"`
		Records    []map[string]json.RawMessage `json:"records"`
		MP         struct {
			Records []map[string]json.RawMessage `json:"records"`
		} `json:"mp_records"`
	}
	if err := json.Unmarshal(data, &golden); err != nil {
		t.Fatal(err)
	}
	for _, r := range golden.MP.Records {
		r["mode"] = json.RawMessage(`"multiprocess"`) // the file's says which class of LMCache's made them
	}
	var input strings.Builder
	var want []string
	for _, r := range append(golden.Records, golden.MP.Records...) {
		var list string
		var none value
		var chunks []value
		for key, to := range map[string]any{"tokens": &list, "none_hash": &none, "chunks": &chunks} {
			if err := json.Unmarshal(r[key], to); err != nil {
				t.Fatal(err)
			}
			delete(r, key)
		}
		r["tokens"] = golden.TokenLists[list]
		line, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		input.Write(append(line, '\n'))
		answer := keysAnswer{NoneHash: none.Int + none.Bytes, Chunks: []string{}}
		for _, c := range chunks {
			answer.Chunks = append(answer.Chunks, c.Int+c.Bytes)
		}
		line, err = json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, string(line))
	}
	if diff := cmp.Diff(want, runKeys(t, input.String())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	t.Logf("%d records", len(want))
}
