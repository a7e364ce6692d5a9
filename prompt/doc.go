// Package prompt turns the body of an OpenAI request into the token ids that
// the engine itself will compute: the chat template, the message rules, the
// special tokens and the truncation of vLLM 0.33, and the tokenizer of the
// model, all in this process. It asks the engine only where it cannot do the
// work itself, and estimates the length where even that fails: a request is
// never refused because it could not be tokenized.
package prompt
