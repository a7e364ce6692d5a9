package prompt

// check are the faults that are found before anything is rendered.
func (c cut) check() *RequestError {
	if c.limit == 0 {
		return nil
	}
	if c.output > int64(c.limit) {
		return refuseValue(c.outputName, c.output, "%s=%d cannot be greater than max_model_len=%d. Please request fewer output tokens.", c.outputName, c.output, c.limit)
	}
	if c.truncate && c.keep > c.limit {
		return refuseValue("truncate_prompt_tokens", c.keep, "truncate_prompt_tokens=%d cannot be greater than max_model_len = %d. "+
			"Please request a smaller truncation size.", c.keep, c.limit)
	}
	return nil
}

// kept is the number of ids that truncation leaves at most; -1 where it leaves
// all. For -1 one token of the context is held back for the answer, unless none
// is wanted.
func (c cut) kept() int {
	switch {
	case !c.truncate:
		return -1
	case c.keep >= 0:
		return c.keep
	case c.limit == 0:
		return -1
	case c.output == 0:
		return c.limit
	default:
		return c.limit - 1
	}
}

// apply shortens and checks the ids of one prompt. ids are those of the text
// alone, or those that the client sent; wrap is what the tokenizer puts around
// a text, empty for ids of the client. The result may share ids' memory.
//
// Without a side the tokenizer itself truncates, from the left, and then puts
// its tokens around what is left; with a side all that is cut.
func (c cut) apply(ids []uint32, wrap wrapping) ([]uint32, *RequestError) {
	kept := c.kept()
	if around := wrap.len(); c.side == "" && kept >= around && around > 0 && len(ids)+around > kept {
		ids = ids[len(ids)-(kept-around):]
	}
	ids = wrap.around(ids)
	if kept >= 0 && len(ids) > kept {
		if c.side == "right" {
			ids = ids[:kept]
		} else {
			ids = ids[len(ids)-kept:]
		}
	}
	switch {
	case len(ids) == 0:
		return nil, refuse("", "No token_ids rendered")
	case c.limit > 0 && len(ids) > c.limit:
		length := len(ids)
		if wrap.text {
			// The tokenizer stops at the limit and one.
			length = c.limit + 1
		}
		return nil, tooLong(c.limit, length)
	case c.limit > 0 && len(ids) == c.limit:
		// No room is left for the answer.
		return nil, refuseValue("max_tokens", 0, "max_tokens must be at least 1, got 0.")
	}
	return ids, nil
}

// wrapping is what a tokenizer puts before and after a text.
type wrapping struct {
	before, after []uint32
	text          bool // the ids are those of a text
}

func (w wrapping) len() int { return len(w.before) + len(w.after) }

func (w wrapping) around(ids []uint32) []uint32 {
	if w.len() == 0 {
		return ids
	}
	all := make([]uint32, 0, w.len()+len(ids))
	return append(append(append(all, w.before...), ids...), w.after...)
}
