package engine

import (
	"net/http"
)

// follow calls step with how far every choice has come, whenever one has moved,
// until all are done or step returns false. False: the client or the engine has
// gone.
func (a *answer) follow(r *http.Request, step func([]standing) bool) bool {
	var now []standing
	for {
		select {
		case <-a.job.progress:
		case <-r.Context().Done():
			return false
		}
		now = a.life.loop.standings(a.job, now)
		if !step(now) {
			return false
		}
		done := true
		for _, g := range now {
			done = done && g.done
		}
		if done {
			return true
		}
	}
}

// promptOf is the prompt that a choice answers.
func (a *answer) promptOf(choice int) int { return choice / a.req.n }

// counts sum up the usage: every prompt once, every choice's tokens.
func (a *answer) counts(now []standing) (promptTokens, completionTokens, cached int) {
	for i, g := range now {
		if i%a.req.n == 0 {
			promptTokens += len(a.prompts[a.promptOf(i)].TokenIDs)
			cached += g.cached
		}
		completionTokens += g.tokens
	}
	return promptTokens, completionTokens, cached
}

// created is the number of prompt tokens that are cached now and were not
// before; vLLM tells it for chats only.
func (a *answer) created(cached int) *int {
	if !a.req.chat {
		return nil
	}
	block := a.server.cfg.BlockTokens
	n := max(0, len(a.prompts[0].TokenIDs)/block*block-cached)
	return &n
}

func (a *answer) usage(now []standing) usage {
	p, c, cached := a.counts(now)
	u := usage{PromptTokens: p, TotalTokens: p + c, CompletionTokens: c}
	if a.server.cfg.PromptTokensDetails {
		u.PromptTokensDetails = &usageDetails{CachedTokens: cached, CreatedCacheTokens: a.created(cached)}
	}
	return u
}

func (a *answer) streamUsage(now []standing) *streamUsage {
	p, c, cached := a.counts(now)
	u := &streamUsage{PromptTokens: p, TotalTokens: p + c, CompletionTokens: c}
	if a.server.cfg.PromptTokensDetails {
		u.PromptTokensDetails = &streamUsageDetails{CachedTokens: cached, CreatedCacheTokens: a.created(cached)}
	}
	return u
}

// ifAsked gives ids to clients that want token ids.
func (a *answer) ifAsked(ids []uint32) []uint32 {
	if a.req.returnTokenIDs {
		return ids
	}
	return nil
}

// plain answers when everything is generated.
func (a *answer) plain(w http.ResponseWriter, r *http.Request) {
	var last []standing
	if !a.follow(r, func(now []standing) bool { last = now; return true }) {
		return
	}
	lexicon := a.server.words
	if a.req.chat {
		c := chat{head: a.head, SystemFingerprint: a.life.fingerprint, Usage: a.usage(last), PromptTokenIDs: a.ifAsked(a.prompts[0].TokenIDs)}
		for i, g := range a.job.generations {
			c.Choices = append(c.Choices, chatChoice{
				Index: i, Message: chatMessage{Role: "assistant", Content: lexicon.text(g.output)},
				FinishReason: g.finishReason(), TokenIDs: a.ifAsked(g.output),
			})
		}
		writeJSON(w, http.StatusOK, c)
		return
	}
	c := completion{head: a.head, SystemFingerprint: a.life.fingerprint, Usage: a.usage(last)}
	for i, g := range a.job.generations {
		c.Choices = append(c.Choices, completionChoice{
			Index: i, Text: a.echo(r, i) + lexicon.text(g.output), FinishReason: g.finishReason(),
			TokenIDs: a.ifAsked(g.output), PromptTokenIDs: a.ifAsked(a.prompts[a.promptOf(i)].TokenIDs),
		})
	}
	writeJSON(w, http.StatusOK, c)
}

// echo is the prompt's text where the client wants it before the answer.
func (a *answer) echo(r *http.Request, choice int) string {
	if !a.req.echo {
		return ""
	}
	p := a.prompts[a.promptOf(choice)]
	if p.Text != "" {
		return p.Text
	}
	text, err := a.server.text.decode(r.Context(), p.TokenIDs)
	if err != nil {
		a.server.log.Warn("prompt not decoded for echo", "error", err)
	}
	return text
}

// stream answers event by event: the headers at once, then what every engine
// step brings.
func (a *answer) stream(w http.ResponseWriter, r *http.Request) {
	flush := http.NewResponseController(w).Flush
	w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	w.WriteHeader(http.StatusOK)
	if flush() != nil {
		return
	}
	if a.req.chat {
		a.head.Object = "chat.completion.chunk"
	}
	sent := make([]standing, len(a.job.generations)) // what the client knows
	var buf []byte
	ok := a.follow(r, func(now []standing) bool {
		buf = buf[:0]
		for more := true; more; { // one event a token, the choices side by side
			more = false
			for i, g := range now {
				if sent[i].tokens == g.tokens {
					continue
				}
				sent[i].tokens++
				sent[i].cached, sent[i].done = g.cached, g.done && sent[i].tokens == g.tokens
				buf = a.event(buf, r, i, sent)
				more = true
			}
			if a.drop(sent) {
				_, _ = w.Write(buf) // the connection ends here anyway
				_ = flush()
				panic(http.ErrAbortHandler)
			}
		}
		_, err := w.Write(buf)
		return err == nil && flush() == nil
	})
	if !ok {
		return
	}
	buf = buf[:0]
	if a.req.includeUsage {
		buf = appendEvent(buf, event{head: a.head, Choices: []any{}, Usage: a.streamUsage(sent), SystemFingerprint: a.life.fingerprint})
	}
	buf = append(buf, "data: [DONE]\n\n"...)
	_, _ = w.Write(buf) // a client that went away is not our fault
}

// drop reports whether the fault is due that cuts the connection.
func (a *answer) drop(sent []standing) bool {
	after := a.server.Faults().DropAfter
	return after > 0 && sent[0].tokens >= after
}

// event appends the event of a choice's newest token.
func (a *answer) event(buf []byte, r *http.Request, choice int, sent []standing) []byte {
	g, s := a.job.generations[choice], sent[choice]
	first := s.tokens == 1
	ids := g.output[s.tokens-1 : s.tokens]
	text := a.server.words.text(ids)
	e := event{head: a.head}
	if a.req.continuousUsage {
		e.Usage = a.streamUsage(sent)
	}
	if s.done && !a.req.includeUsage {
		e.SystemFingerprint = a.life.fingerprint
	}
	if !a.req.chat {
		c := completionDelta{Index: choice, Text: text, TokenIDs: a.ifAsked(ids)}
		if first {
			c.Text = a.echo(r, choice) + text
			c.PromptTokenIDs = a.ifAsked(a.prompts[a.promptOf(choice)].TokenIDs)
		}
		if s.done {
			reason := g.finishReason()
			c.FinishReason = &reason
		}
		e.Choices = []any{c}
		return appendEvent(buf, e)
	}
	if first {
		role := chatRole{head: a.head, Usage: e.Usage, PromptTokenIDs: a.ifAsked(a.prompts[0].TokenIDs), Choices: []chatRoleChoice{{Index: choice}}}
		role.Choices[0].Delta.Role = "assistant"
		buf = appendEvent(buf, role)
	}
	if s.done {
		e.Choices = []any{chatLast{Index: choice, Delta: content{text}, FinishReason: g.finishReason(), TokenIDs: a.ifAsked(ids)}}
	} else {
		e.Choices = []any{chatDelta{Index: choice, Delta: content{text}, TokenIDs: a.ifAsked(ids)}}
	}
	return appendEvent(buf, e)
}

func appendEvent(b []byte, v any) []byte {
	b = append(b, "data: "...)
	b = appendJSON(b, v)
	return append(b, "\n\n"...)
}
