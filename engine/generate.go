package engine

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/simulator"
)

// maxChoices bounds the engine requests that one HTTP request may become.
const maxChoices = 1024

// serveGeneration answers chats and completions.
func (s *Server) serveGeneration(w http.ResponseWriter, r *http.Request) {
	req, fault := readRequest(r)
	if fault != nil {
		writeError(w, fault)
		return
	}
	if rate := s.Faults().ErrorRate; rate > 0 && rand.Float64() < rate { //nolint:gosec // a simulated fault need not be unpredictable
		writeError(w, &requestError{Status: http.StatusInternalServerError, Type: "InternalServerError", Message: "simulated fault"})
		return
	}
	a, fault := s.prepare(r, req)
	if fault != nil {
		writeError(w, fault)
		return
	}
	if err := a.life.loop.submit(a.job); err != nil {
		writeError(w, badRequest("", "%v", err))
		return
	}
	defer a.life.loop.cancel(a.job)
	if a.req.stream {
		a.stream(w, r)
	} else {
		a.plain(w, r)
	}
}

// answer is one generation request that the engine has accepted.
type answer struct {
	server  *Server
	life    *life // that took it
	req     generationRequest
	prompts []prompt.EncodedPrompt
	job     *job // generations in the order of choices: prompt by prompt
	head    head
}

// prepare checks a request and makes the engine's work of it.
func (s *Server) prepare(r *http.Request, body prompt.Request) (*answer, *requestError) {
	req, fault := parseGeneration(body.Path, body.Body)
	if fault != nil {
		return nil, s.reword(r, body, fault)
	}
	prompts, fault := s.encode(r, body, req)
	if fault != nil {
		return nil, fault
	}
	if len(prompts)*req.n > maxChoices {
		return nil, badRequest("n", "%d prompts with n=%d are more than %d choices. (parameter=n, value=%d)", len(prompts), req.n, maxChoices, req.n)
	}
	a := &answer{server: s, life: s.life.Load(), req: req, prompts: prompts, job: &job{progress: make(chan struct{}, 1)}}
	for _, p := range prompts {
		for range req.n {
			a.job.generations = append(a.job.generations, s.generation(a.job, req, p.TokenIDs, len(a.job.generations)))
		}
	}
	a.head = head{ID: "cmpl-", Object: "text_completion", Created: time.Now().Unix(), Model: s.cfg.Models[0]}
	if s.adapters[req.model] != nil {
		a.head.Model = req.model
	}
	if req.chat {
		a.head.ID, a.head.Object = "chatcmpl-", "chat.completion"
	}
	if id := r.Header.Get("X-Request-Id"); id != "" {
		a.head.ID += id
	} else {
		a.head.ID += randomHex(8)
	}
	return a, nil
}

// encode gives the prompts of a request that names a model of ours and fits
// into it.
func (s *Server) encode(r *http.Request, body prompt.Request, req generationRequest) ([]prompt.EncodedPrompt, *requestError) {
	if fault := s.checkModel(req.model); fault != nil {
		return nil, fault
	}
	if limit := s.cfg.MaxModelLen; req.maxTokens > limit {
		return nil, badRequest("max_tokens", "max_tokens=%d cannot be greater than max_model_len=%d. Please request fewer output tokens. (parameter=max_tokens, value=%d)", req.maxTokens, limit, req.maxTokens)
	}
	prompts, err := s.text.encode(r.Context(), body)
	if err != nil {
		if fault, ok := errors.AsType[*requestError](err); ok {
			return nil, fault
		}
		return nil, &requestError{Status: http.StatusInternalServerError, Type: "InternalServerError", Message: err.Error()}
	}
	for _, p := range prompts {
		switch n, limit := len(p.TokenIDs), s.cfg.MaxModelLen; {
		case n > limit:
			return nil, badRequest("input_tokens", "This model's maximum context length is %d tokens. However, your prompt contains at least %d input tokens, "+
				"which exceeds this limit even without any output tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value=%d)", limit, limit+1, limit+1)
		case n == limit:
			return nil, badRequest("max_tokens", "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)")
		}
	}
	return prompts, nil
}

// reword says a fault of the body in the words of the prompt package, which
// knows vLLM's for everything that concerns the prompt.
func (s *Server) reword(r *http.Request, body prompt.Request, fault *requestError) *requestError {
	_, err := s.text.encode(r.Context(), body)
	if better, ok := errors.AsType[*requestError](err); ok {
		return better
	}
	return fault
}

func (s *Server) checkModel(name string) *requestError {
	if name == "" || slices.Contains(s.cfg.Models, name) || s.adapters[name] != nil {
		return nil
	}
	return &requestError{
		Status: http.StatusNotFound, Type: "NotFoundError", Param: "model",
		Message: "The model `" + name + "` does not exist. Valid aliases: " + strings.Join(s.cfg.Models, ", ") + ".",
	}
}

// generation is one choice: how long it gets, its words, and the keys under
// which it is cached.
func (s *Server) generation(j *job, req generationRequest, ids []uint32, choice int) *generation {
	room := s.cfg.MaxModelLen - len(ids)
	length, stop := room, false
	switch {
	case req.maxTokens > 0:
		length = min(room, req.maxTokens)
	case !req.ignoreEOS:
		wanted := max(s.cfg.AnswerTokens, req.minTokens)
		length, stop = min(room, wanted), wanted <= room
	}
	g := &generation{
		job: j, stop: stop, prompt: ids, output: s.words.answer(ids, choice, length),
		salt: req.cacheSalt, adapter: s.adapters[req.model],
	}
	g.request = simulator.Request{
		PromptTokens: len(ids), OutputTokens: length, NoCache: req.noCache,
		Blocks: blockKeys(s.cfg.BlockTokens, g.salt, g.adapter, ids, g.output), Chunks: chunkKeys(s.hasher, ids),
	}
	return g
}

// blockKeys are the keys of the full blocks of the ids of all parts together.
// Prompts with another salt or adapter share none; a may be nil.
func blockKeys(block int, salt string, a *adapter, parts ...[]uint32) []simulator.Key {
	var keys []simulator.Key
	d := xxhash.New()
	if a != nil {
		_, _ = d.WriteString("adapter\x00" + a.Name + "\x00")
	}
	if salt != "" {
		_, _ = d.WriteString("salt\x00" + salt + "\x00")
	}
	var word [4]byte
	n := 0
	for _, ids := range parts {
		for _, id := range ids {
			binary.LittleEndian.PutUint32(word[:], id)
			_, _ = d.Write(word[:])
			if n++; n%block == 0 {
				keys = append(keys, simulator.Key(d.Sum64()))
			}
		}
	}
	return keys
}

// lexicon is the words that answers are made of.
type lexicon struct {
	byID  map[uint32]string
	words []word
}

func newLexicon(words []word) *lexicon {
	l := &lexicon{byID: make(map[uint32]string, len(words)), words: words}
	for _, w := range words {
		l.byID[w.id] = w.text
	}
	return l
}

// answer makes up an answer to ids: always the same to the same prompt and
// choice, and another to another.
func (l *lexicon) answer(ids []uint32, choice, length int) []uint32 {
	d := xxhash.New()
	var word [4]byte
	for _, id := range ids {
		binary.LittleEndian.PutUint32(word[:], id)
		_, _ = d.Write(word[:])
	}
	rng := rand.New(rand.NewPCG(d.Sum64(), uint64(choice))) //nolint:gosec // nonsense need not be unpredictable
	output := make([]uint32, length)
	for i := range output {
		output[i] = l.words[1+rng.IntN(len(l.words)-1)].id
	}
	output[0] = l.words[0].id
	return output
}

// text is the text of part of an answer.
func (l *lexicon) text(ids []uint32) string {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(l.byID[id])
	}
	return b.String()
}
