package trace_test

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/simulator/trace"
	"github.com/firsttoken/firsttoken/test/shared"
)

// read reads texts as files called a, b and so on.
func read(o trace.Options, texts ...string) (*trace.Trace, error) {
	var sources []trace.Source
	for i, text := range texts {
		sources = append(sources, trace.Source{Name: string(rune('a' + i)), Content: strings.NewReader(text)})
	}
	return trace.Read(o, sources...)
}

const (
	mooncake1 = `{"timestamp": 1000, "input_length": 1030, "output_length": 5, "hash_ids": [7, 8, 9]}`
	mooncake2 = `{"timestamp": 4000.5, "input_length": 10, "output_length": 1, "hash_ids": [7], "turn": 2}`
	azureHead = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
)

func TestFormatsAreToldByTheirContent(t *testing.T) {
	for _, c := range []struct {
		name  string
		texts []string
		want  trace.Trace
	}{
		{
			"mooncake",
			[]string{"\ufeff" + mooncake2 + "\r\n\n" + mooncake1 + "\n"},
			trace.Trace{Format: trace.Mooncake, BlockTokens: 512, Requests: []trace.Request{
				{Prompt: 1030, Output: 5, Blocks: []uint64{7, 8, 9}},
				{At: 3000500 * time.Microsecond, Prompt: 10, Output: 1, Blocks: []uint64{7}},
			}},
		},
		{
			"azure 2023, and 2024 in another file",
			[]string{
				azureHead + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.5,3,8\n",
				"X,GeneratedTokens,TIMESTAMP,ContextTokens\n,9,2023-11-16 18:17:04.000000+00:00,5\n",
			},
			trace.Trace{Format: trace.Azure, Requests: []trace.Request{
				{Prompt: 4808, Output: 10},
				{At: 20040 * time.Microsecond, Prompt: 5, Output: 9},
				{At: 520040 * time.Microsecond, Prompt: 3, Output: 8},
			}},
		},
		{
			"nothing computed, nothing answered",
			[]string{azureHead + "2023-11-16 18:17:03,0,10\n2023-11-16 18:17:05,7,0\n"},
			trace.Trace{
				Format: trace.Azure, Requests: []trace.Request{{Prompt: 7, Output: 1}},
				Notes: []string{"1 requests without a prompt left out", "1 requests without an answer taken for answers of one token"},
			},
		},
		{
			"decisions: a body, overlapped by a later one, and records a line",
			[]string{
				`{"decisions":[
				 {"id":"b","time":"2026-11-21T10:00:02Z","prompt_tokens":130,"prefix_blocks":["5","6"],"block_tokens":64},
				 {"id":"a","time":"2026-11-21T10:00:00Z","prompt_tokens":64,"prefix_blocks":["5"],"block_tokens":64,"session":"31",
				  "ttft_seconds":0.5,"ended":"2026-11-21T10:00:02.500Z","candidates":[{"endpoint":"x"}],"unheard_of":1}]}` + "\n" +
					`{"decisions":[{"id":"b","time":"2026-11-21T10:00:02Z","prompt_tokens":130,"prefix_blocks":["5","6"],"block_tokens":64,` +
					`"ttft_seconds":0.25,"ended":"2026-11-21T10:00:03.250Z"}]}`,
				`{"id":"c","time":"2026-11-21T10:00:03Z","promptTokens":3,"blockTokens":0,"prefixBlocks":[]}` + "\n" +
					`{"id":"d","time":"2026-11-21T10:00:03Z","prompt_tokens":0}` + "\n",
			},
			trace.Trace{
				Format: trace.Decisions, BlockTokens: 64,
				Requests: []trace.Request{
					{Prompt: 64, Output: 101, Blocks: []uint64{5}, Session: "1f"},
					{At: 2 * time.Second, Prompt: 130, Output: 51, Blocks: []uint64{5, 6}},
					{At: 3 * time.Second, Prompt: 3, Output: 77},
				},
				Notes: []string{
					"2 of 4 answers are taken to have 77 tokens: their records tell no first token or no end",
					"1 of 4 prompts have no prefix_blocks and are taken to share nothing: fetch the records with ?blocks=true",
					"1 requests without a prompt left out",
				},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := read(trace.Options{Output: 77, TokenTime: 20 * time.Millisecond}, c.texts...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(&c.want, got); diff != "" {
				t.Errorf("trace (-want +got):\n%s", diff)
			}
		})
	}
}

// A record tells when the choice was made, which is later than the request where
// that was held.
func TestAHeldRequestCameBeforeItsChoice(t *testing.T) {
	got, err := read(trace.Options{}, `{"id":"a","time":"2026-11-21T10:00:02Z","prompt_tokens":1}`+
		`{"id":"b","time":"2026-11-21T10:00:04Z","prompt_tokens":2,"held_seconds":3.5}`)
	if err != nil {
		t.Fatal(err)
	}
	if r := got.Requests; r[0].Prompt != 2 || r[1].At != 1500*time.Millisecond {
		t.Errorf("%+v; want the held one first, 1.5 s before the other", r)
	}
}

func TestTheLengthOfAnAnswerIsGuessedWhereNobodyToldIt(t *testing.T) {
	const record = `{"id":"a","time":"2026-11-21T10:00:00Z","prompt_tokens":1,"ttft_seconds":0.5,"ended":"2026-11-21T10:00:02.500Z"}`
	got, err := read(trace.Options{}, record)
	if err != nil {
		t.Fatal(err)
	}
	if got.Requests[0].Output != 200 || !strings.Contains(strings.Join(got.Notes, "; "), "1 of 1 answers are taken to have 200 tokens: name the time of one token") {
		t.Errorf("%d tokens, notes %q", got.Requests[0].Output, got.Notes)
	}
}

// Each fault names file and line, and what was expected there.
func TestABadLineIsAnErrorWithItsNumber(t *testing.T) {
	azure := azureHead + "2023-11-16 18:17:03.9799600,4808,10\n"
	const good = `{"id":"a","time":"2026-11-21T10:00:00Z","prompt_tokens":64}`
	for _, c := range []struct {
		name, text, want string
	}{
		{"empty", " \n", "a: is empty"},
		{"no request", azureHead, "a: has no request with a prompt"},
		{"unknown", "<html>", "a:1: is no known trace: expected lines of"},
		{"unknown object", `{"a": 1}` + "\n", "a:1: is no known trace"},
		{"cut", mooncake1 + "\n" + `{"timestamp": 1`, "a:2: unexpected end of JSON input; expected {"},
		{"field", mooncake1 + "\n\n" + `{"timestamp": 1, "input_length": 4, "hash_ids": []}`, "a:3: output_length is missing; expected {"},
		{"hashes", mooncake1 + "\n" + `{"timestamp": 1, "input_length": 4, "output_length": 4}`, "a:2: hash_ids is missing; [] says that nothing is shared"},
		{"text", mooncake1 + "\n" + `{"timestamp": 1, "input_length": "x"}`, "a:2: json: cannot unmarshal string into Go struct field mooncakeRow.input_length"},
		{"negative time", mooncake1 + "\n" + `{"timestamp": -1, "input_length": 4, "output_length": 4, "hash_ids": []}`, "a:2: timestamp is -1, expected 0 to 9e+12"},
		{"negative length", mooncake1 + "\n" + `{"timestamp": 1, "input_length": -4, "output_length": 4, "hash_ids": []}`, "a:2: input_length is -4, expected 0 to 100000000"},
		{"other block", mooncake1 + "\n" + `{"timestamp": 1, "input_length": 512, "output_length": 4, "hash_ids": [1, 2]}`, "a:2: hash_ids has 2 numbers, but 512 tokens are at most 1 blocks of 512 (is the block of another size?)"},
		{"column", "TIMESTAMP,ContextTokens\n", "a:1: the header has no column GeneratedTokens; expected TIMESTAMP,"},
		{"fields", azure + "2023-11-16 18:17:03,1\n", "a:3: wrong number of fields; expected TIMESTAMP,"},
		{"quote", azure + "\"2023\n", "a:3: "},
		{"time", azure + "noon,1,1\n", `a:3: TIMESTAMP is "noon", not a time; expected`},
		{"old", azure + "1848-11-16 18:17:03,1,1\n", "a:3: the time 1848-11-16T18:17:03Z is not between 1970 and 2200"},
		{"number", azure + "2023-11-16 18:17:03,many,1\n", `a:3: ContextTokens is "many", not a number`},
		{"answer", azure + "2023-11-16 18:17:03,1,1e9\n", `a:3: GeneratedTokens is "1e9", not a number`},
		{"huge", azure + "2023-11-16 18:17:03,1,1000000000\n", "a:3: GeneratedTokens is 1000000000, expected 0 to 100000000"},
		{"no JSON", good + "\n{]", "a:2: is not JSON: invalid character ']'"},
		{"cut record", good + "\n" + `{"id":`, "a:2: ends within a record; expected records of /decisions"},
		{"no id", good + "\n" + `{"time":"2026-11-21T10:00:00Z"}`, "a:2: id is missing"},
		{"no time", `{"decisions":[` + "\n" + good + ",\n\n" + `{"id":"b"}]}`, "a:4: time is missing"},
		{"foreign value", good + "\n7", "a:2: is no decision record: proto:"},
		{"held", good + "\n" + `{"id":"b","time":"2026-11-21T10:00:00Z","held_seconds":-1}`, "a:2: held_seconds is -1, expected 0 to 86400"},
		{"no list", good + "\n" + `{"decisions":7}`, "a:2: id is missing"},
		{"block", good + "\n" + `{"id":"b","time":"2026-11-21T10:00:00Z","prompt_tokens":64,"prefix_blocks":["1"]}`, "a:2: block_tokens is 0 with 1 prefix_blocks"},
		{"blocks", good + "\n" + `{"id":"b","time":"2026-11-21T10:00:00Z","prompt_tokens":64,"prefix_blocks":["1","2"],"block_tokens":64}`, "a:2: prefix_blocks has 2 names, but 64 tokens have 1 whole blocks of 64"},
		{
			"two sizes", `{"id":"b","time":"2026-11-21T10:00:00Z","prompt_tokens":64,"prefix_blocks":["1"],"block_tokens":64}` +
				` {"id":"c","time":"2026-11-21T10:00:00Z","prompt_tokens":64,"prefix_blocks":["1"],"block_tokens":32}`,
			"a:1: block_tokens is 32, but 64 in records before",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := read(trace.Options{}, c.text)
			if err == nil {
				t.Fatalf("read %d requests, want an error with %q", len(got.Requests), c.want)
			}
			if !strings.HasPrefix(err.Error(), c.want) {
				t.Errorf("error\n%s\nwant it to begin with\n%s", err, c.want)
			}
		})
	}
}

func TestAFormatThatIsToldIsNotGuessed(t *testing.T) {
	_, err := read(trace.Options{Format: trace.Azure}, mooncake1)
	if want := `a:1: bare " in non-quoted-field; expected TIMESTAMP,`; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("error %v, want %s", err, want)
	}
	_, err = read(trace.Options{Format: "csv"}, mooncake1)
	if want := `trace format "csv" is unknown; write one of auto, mooncake, azure, decisions`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
	got, err := read(trace.Options{MooncakeBlock: 16}, `{"timestamp": 1, "input_length": 33, "output_length": 4, "hash_ids": [1, 2, 3]}`)
	if err != nil || got.BlockTokens != 16 {
		t.Errorf("%+v, %v; want blocks of 16", got, err)
	}
}

func TestPublishedTraces(t *testing.T) {
	for name, want := range map[string]struct {
		requests int
		format   trace.Format
		period   time.Duration
	}{
		"conversation_0_2400s.jsonl":    {7851, trace.Mooncake, 3 * time.Second},
		"synthetic_0_680s.jsonl":        {2597, trace.Mooncake, 0},
		"azure_llm_2023_code_first.csv": {5879, trace.Azure, 0},
		"azure_llm_2023_conv_first.csv": {12910, trace.Azure, 0},
	} {
		f, err := os.Open(shared.File(t, "traces", name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := trace.Read(trace.Options{}, trace.Source{Name: name, Content: f})
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if got.Format != want.format || len(got.Requests) != want.requests || len(got.Notes) > 0 {
			t.Errorf("%s: %d requests as %s, notes %q; want %d as %s, none", name, len(got.Requests), got.Format, got.Notes, want.requests, want.format)
		}
		if p := trace.Period(got.Requests); p != want.period {
			t.Errorf("%s: batches %s apart, want %s", name, p, want.period)
		}
	}
}
