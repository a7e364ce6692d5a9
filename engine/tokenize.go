package engine

import (
	"encoding/json"
	"net/http"
	"strings"

	"github.com/firsttoken/firsttoken/prompt"
)

// serveTokenize counts and lists the ids of one prompt or conversation.
func (s *Server) serveTokenize(w http.ResponseWriter, r *http.Request) {
	req, fault := readRequest(r)
	if fault == nil {
		fault = s.tokenize(w, r, req)
	}
	if fault != nil {
		writeError(w, fault)
	}
}

func (s *Server) tokenize(w http.ResponseWriter, r *http.Request, req prompt.Request) *requestError {
	fields, fault := parseObject(req.Body)
	if fault != nil {
		return fault
	}
	read := &reader{fields: fields}
	generation := generationRequest{model: read.string("model")}
	if fields["messages"] != nil {
		req.Path = pathChat
	} else {
		req.Path = pathCompletions
		read.string("prompt")
	}
	if read.fault != nil {
		return read.fault
	}
	prompts, fault := s.encode(r, req, generation)
	if fault != nil {
		return fault
	}
	writeJSON(w, http.StatusOK, struct {
		Count       int      `json:"count"`
		MaxModelLen int      `json:"max_model_len"`
		Tokens      []uint32 `json:"tokens"`
		TokenStrs   []string `json:"token_strs"`
	}{len(prompts[0].TokenIDs), s.cfg.MaxModelLen, prompts[0].TokenIDs, nil})
	return nil
}

func (s *Server) serveDetokenize(w http.ResponseWriter, r *http.Request) {
	req, fault := readRequest(r)
	if fault != nil {
		writeError(w, fault)
		return
	}
	var body struct {
		Model  string   `json:"model"`
		Tokens []uint32 `json:"tokens"`
	}
	fields, fault := parseObject(req.Body)
	switch {
	case fault != nil:
	case fields["tokens"] == nil:
		fault = badSchema("body.tokens", "missing", "Field required", "<dict>")
	case json.Unmarshal(req.Body, &body) != nil:
		fault = badSchema("body.tokens", "list_type", "Input should be a valid list", "")
	default:
		fault = s.checkModel(body.Model)
	}
	if fault != nil {
		writeError(w, fault)
		return
	}
	text, err := s.text.decode(r.Context(), body.Tokens)
	if err != nil {
		writeError(w, badRequest("", "%v", err))
		return
	}
	writeJSON(w, http.StatusOK, map[string]string{"prompt": text})
}

// rendered is a prompt as the engine would run it.
type rendered struct {
	RequestID      string         `json:"request_id"`
	TokenIDs       []uint32       `json:"token_ids"`
	Features       *struct{}      `json:"features"`
	SamplingParams samplingParams `json:"sampling_params"`
	Model          string         `json:"model"`
	Stream         bool           `json:"stream"`
	StreamOptions  *struct{}      `json:"stream_options"`
	CacheSalt      *string        `json:"cache_salt"`
	Priority       int            `json:"priority"`
}

type samplingParams struct {
	N         int  `json:"n"`
	MaxTokens int  `json:"max_tokens"`
	MinTokens int  `json:"min_tokens"`
	IgnoreEOS bool `json:"ignore_eos"`
}

// serveRender answers with the ids instead of running them: an object for a
// chat, a list for completions.
func (s *Server) serveRender(w http.ResponseWriter, r *http.Request) {
	req, fault := readRequest(r)
	if fault != nil {
		writeError(w, fault)
		return
	}
	req.Path = strings.TrimSuffix(req.Path, "/render")
	a, fault := s.prepare(r, req)
	if fault != nil {
		writeError(w, fault)
		return
	}
	list := make([]rendered, 0, len(a.prompts))
	for i, p := range a.prompts {
		out := rendered{RequestID: a.head.ID, TokenIDs: p.TokenIDs, Model: a.head.Model, Stream: a.req.stream}
		out.SamplingParams = samplingParams{N: a.req.n, MaxTokens: a.limit(i), MinTokens: a.req.minTokens, IgnoreEOS: a.req.ignoreEOS}
		if a.req.cacheSalt != "" {
			out.CacheSalt = &a.req.cacheSalt
		}
		list = append(list, out)
	}
	if a.req.chat {
		writeJSON(w, http.StatusOK, list[0])
		return
	}
	writeJSON(w, http.StatusOK, list)
}

// limit is the most tokens that an answer to a prompt may get.
func (a *answer) limit(i int) int {
	room := a.server.cfg.MaxModelLen - len(a.prompts[i].TokenIDs)
	if a.req.maxTokens > 0 {
		return min(room, a.req.maxTokens)
	}
	return room
}
