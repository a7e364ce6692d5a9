package prompt_test

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/prompt/native"
	"github.com/firsttoken/firsttoken/test/shared"
)

// noon is the frozen clock of the goldens.
var noon = time.Date(2026, 1, 15, 12, 0, 0, 0, time.UTC)

// families are the tokenizer folders; the extra templates of a family are named
// as the goldens name them.
var families = map[string]map[string]string{
	"qwen2.5":      {"": ""},
	"qwen3":        {"": ""},
	"llama3.1":     {"": "", "3.2": "chat_template.llama3.2.jinja"},
	"mistral-nemo": {"": "", "small3.2": "chat_template.mistral-small-3.2.jinja"},
	"deepseek-v3":  {"": "", "v3.1": "chat_template.v3.1.jinja"},
	"gemma3":       {"": ""},
	"gpt-oss":      {"": ""},
}

func readGolden(t *testing.T, name string, into any) {
	t.Helper()
	file, err := os.Open(shared.File(t, "golden", name))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	unpacked, err := gzip.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.NewDecoder(unpacked).Decode(into); err != nil {
		t.Fatal(err)
	}
}

func loadModel(tb testing.TB, cfg prompt.ModelConfig) *prompt.Model {
	tb.Helper()
	m, err := prompt.LoadModel(cfg)
	if errors.Is(err, native.ErrNotBuilt) {
		tb.Skip("this build has no native tokenizer")
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(m.Close)
	return m
}

// templateFile is the file of a template as the goldens name it.
func templateFile(t *testing.T, family, template string) string {
	t.Helper()
	_, extra, _ := strings.Cut(template, "+")
	if file := families[family][extra]; file != "" {
		return shared.File(t, "tokenizers", family, file)
	}
	return shared.File(t, "tokenizers", family, "chat_template.jinja")
}

// TestChatGolden: the texts and ids of ten templates, as transformers renders
// them. The gpt-oss chats follow its template, which has to be named: the model
// itself speaks Harmony.
func TestChatGolden(t *testing.T) {
	var inputs struct {
		ChatRequests []json.RawMessage `json:"chat_requests"`
	}
	readGolden(t, "tokenizer-inputs.json.gz", &inputs)
	for family := range families {
		t.Run(family, func(t *testing.T) {
			t.Parallel()
			var golden struct {
				Chat map[string]struct {
					ContentFormat string `json:"content_format"`
					Cases         []struct {
						Name  string
						Text  string
						IDs   []uint32 `json:"ids"`
						Error string
					}
				}
			}
			readGolden(t, "tokenizer-"+family+".json.gz", &golden)
			for _, template := range slices.Sorted(maps.Keys(golden.Chat)) {
				want := golden.Chat[template]
				cfg := prompt.DefaultModelConfig()
				cfg.Tokenizer = filepath.Join(shared.Dir(t), "tokenizers", family)
				cfg.ChatTemplate = templateFile(t, family, template)
				m := loadModel(t, cfg)
				if got := m.ContentFormat(); got != want.ContentFormat {
					t.Errorf("%s: content format %q, want %q", template, got, want.ContentFormat)
				}
				for i, c := range want.Cases {
					body := inputs.ChatRequests[i]
					got, err := m.Encode(t.Context(), prompt.Request{Path: "/v1/chat/completions", Body: body}, noon)
					if c.Error != "" {
						if err == nil {
							t.Errorf("%s: %s: no error, want %q", template, c.Name, c.Error)
						}
						continue
					}
					if err != nil {
						t.Errorf("%s: %s: %v", template, c.Name, err)
						continue
					}
					if diff := cmp.Diff(c.Text, got.Prompts[0].Text); diff != "" {
						t.Errorf("%s: %s: text (-want +got):\n%s", template, c.Name, diff)
					} else if diff := cmp.Diff(c.IDs, got.Prompts[0].TokenIDs); diff != "" {
						t.Errorf("%s: %s: ids (-want +got):\n%s", template, c.Name, diff)
					}
				}
			}
		})
	}
}

// enginesOwn are the requests whose fault is one of sampling or of the answer's
// shape. The prompt is not to blame and its ids do not depend on it: the engine
// refuses them, not we.
var enginesOwn = []string{
	"json_nan", "k_maxtok0", "maxtok0", "min_gt_max", "response_format_bad", "stream_options_only", "temp_bad", "temp_str", "top_logprobs_alone",
}

// TestRenderGolden: the answers of vLLM's own render endpoints.
func TestRenderGolden(t *testing.T) {
	type answer struct {
		Name     string
		Status   int
		TokenIDs json.RawMessage `json:"token_ids"`
		Error    struct {
			Error struct {
				Message, Type string
				Param         *string
			}
		}
	}
	var golden struct {
		Requests []struct {
			Name, Path string
			Body       json.RawMessage
			Raw        *string
			Headers    map[string]string
		}
		Families map[string][]answer
	}
	readGolden(t, "vllm-render.json.gz", &golden)
	for name, answers := range golden.Families {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			family, extra, _ := strings.Cut(name, "+")
			cfg := prompt.DefaultModelConfig()
			cfg.Name, cfg.MaxModelLen = family, 8192
			cfg.Tokenizer = filepath.Join(shared.Dir(t), "tokenizers", family)
			if extra != "" {
				cfg.ChatTemplate = shared.File(t, "tokenizers", family, families[family][extra])
			}
			m := loadModel(t, cfg)
			var differ []string
			params, messages := 0, 0
			for i, request := range golden.Requests {
				want := answers[i]
				if want.Name != request.Name {
					t.Fatalf("answer %d is to %s, the request is %s", i, want.Name, request.Name)
				}
				body := string(request.Body)
				if request.Raw != nil {
					body = *request.Raw
				}
				body = strings.ReplaceAll(body, "$MODEL", family)
				got, err := m.Encode(t.Context(), prompt.Request{Path: request.Path, ContentType: request.Headers["content-type"], Body: []byte(body)}, noon)
				if got.Remote == prompt.RemoteHarmony && family == "gpt-oss" && strings.Contains(request.Path, "chat") {
					continue // the engine's to say
				}
				status := 200
				var fault *prompt.RequestError
				if errors.As(err, &fault) {
					status = fault.Status
				} else if err != nil {
					t.Errorf("%s: %v", want.Name, err)
				}
				if status != want.Status {
					if slices.Contains(enginesOwn, want.Name) && status == 200 {
						differ = append(differ, want.Name)
						continue
					}
					t.Errorf("%s: status %d, want %d (%v; want %q)", want.Name, status, want.Status, err, want.Error.Error.Message)
					continue
				}
				if fault != nil {
					param := ""
					if p := want.Error.Error.Param; p != nil {
						param = *p
					}
					if fault.Type != want.Error.Error.Type || fault.Param != param {
						t.Errorf("%s: %s %q, want %s %q", want.Name, fault.Type, fault.Param, want.Error.Error.Type, param)
					}
					if params++; fault.Message == want.Error.Error.Message {
						messages++
					}
					continue
				}
				var lists [][]uint32
				if strings.Contains(request.Path, "chat") {
					lists = make([][]uint32, 1)
					err = json.Unmarshal(want.TokenIDs, &lists[0])
				} else {
					err = json.Unmarshal(want.TokenIDs, &lists)
				}
				if err != nil {
					t.Fatal(err)
				}
				var ids [][]uint32
				for _, p := range got.Prompts {
					ids = append(ids, p.TokenIDs)
				}
				if diff := cmp.Diff(lists, ids); diff != "" {
					t.Errorf("%s: ids (-want +got):\n%s", want.Name, diff)
				}
			}
			slices.Sort(differ)
			if family != "gpt-oss" && !slices.Equal(differ, enginesOwn) {
				t.Errorf("faults left to the engine: %q, want %q", differ, enginesOwn)
			}
			t.Logf("%d faults, %d of them with vLLM's own message", params, messages)
		})
	}
}
