package native

import (
	"cmp"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Engine names the implementation that turns text into token ids.
type Engine string

// The engines. They give the same ids.
const (
	// Fastokens is 10 to 100 times as fast as the reference.
	Fastokens Engine = "fastokens"
	// Tokenizers is Hugging Face's own implementation, the reference.
	Tokenizers Engine = "tokenizers"
)

// Options bound and choose a Tokenizer. The zero value is usable.
type Options struct {
	// Engine is the implementation; empty: Fastokens.
	Engine Engine
	// MaxInputBytes is the longest text Encode takes, in bytes; 0: 32 MiB.
	MaxInputBytes int
	// MaxConcurrent is the number of calls that run at once; further calls wait.
	// Each has an operating system thread of its own, with a cache of 16 to 64 MB
	// (Fastokens) or 9 MB (Tokenizers). 0: GOMAXPROCS, but at most 8.
	MaxConcurrent int
	// CacheBytes bounds the segment cache: the ids of the pieces of text between
	// added tokens are kept by their text, so that a conversation that comes
	// again with one more turn costs that turn. The ids are the same with it and
	// without. What is longer than a 64th of it (text and ids) is not kept. 0: no
	// cache. Only Fastokens has one, and not for a tokenizer with BPE dropout,
	// whose ids are random.
	CacheBytes int
}

// CacheStats is what a segment cache did since the tokenizer was loaded, and
// what it holds.
type CacheStats struct {
	// Hits and Misses count pieces of text; HitBytes and MissBytes are the
	// lengths of those texts.
	Hits, Misses, HitBytes, MissBytes uint64
	// Bytes is what the cache holds: texts, ids and bookkeeping.
	Bytes uint64
}

const (
	defaultMaxInputBytes = 32 << 20
	defaultMaxConcurrent = 8
)

// Tokenizer is one loaded tokenizer.json. Safe for concurrent use.
type Tokenizer struct {
	limits  Options // complete; set once in LoadTokenizer
	vocab   int     // set once in LoadTokenizer
	workers *workers
}

// LoadTokenizer reads tokenizer.json from the folder dir, and the added tokens of
// tokenizer_config.json where that file exists, and warms the engine up. Either
// file may be gzipped, with .gz at the end of its name. It takes 0.2 to 1.5 s and
// 60 to 200 MB for a vocabulary of 128k to 262k tokens, beside the caches of
// MaxConcurrent; Close gives all of it back. The error names the file.
func LoadTokenizer(dir string, o Options) (*Tokenizer, error) {
	switch o.Engine {
	case "":
		o.Engine = Fastokens
	case Fastokens, Tokenizers:
	default:
		return nil, fmt.Errorf("tokenizer engine %q: write %q or %q", o.Engine, Fastokens, Tokenizers)
	}
	if o.MaxInputBytes <= 0 {
		o.MaxInputBytes = defaultMaxInputBytes
	}
	if o.MaxConcurrent <= 0 {
		o.MaxConcurrent = min(runtime.GOMAXPROCS(0), defaultMaxConcurrent)
	}
	if !built {
		return nil, ErrNotBuilt
	}
	path, text, err := readEither(filepath.Join(dir, "tokenizer.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("tokenizer: no tokenizer.json and no tokenizer.json.gz in %q: copy it there from the model's folder: %w", dir, fs.ErrNotExist)
	}
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	_, config, err := readEither(filepath.Join(dir, "tokenizer_config.json"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("tokenizer: %w", err)
	}
	workers, vocab, err := startWorkers(o.MaxConcurrent, func() (tokenizerHandle, int, error) {
		return loadTokenizer(text, config, o.Engine, max(0, o.CacheBytes))
	})
	if err != nil {
		return nil, fmt.Errorf("tokenizer: %s: %s engine: %w", path, o.Engine, err)
	}
	return &Tokenizer{limits: o, vocab: vocab, workers: workers}, nil
}

// maxTokenizerBytes bounds what a tokenizer.json.gz may unpack to. The largest
// known tokenizer.json has 35 MB.
const maxTokenizerBytes = 512 << 20

// readEither reads the file at path or, where there is none, path.gz.
func readEither(path string) (found string, text []byte, err error) {
	text, err = os.ReadFile(path) //nolint:gosec // the operator names the folder
	if !errors.Is(err, fs.ErrNotExist) {
		return path, text, err
	}
	path += ".gz"
	packed, err := os.Open(path) //nolint:gosec // the operator names the folder
	if err != nil {
		return path, nil, err
	}
	defer packed.Close()
	unpacked, err := gzip.NewReader(packed)
	if err != nil {
		return path, nil, fmt.Errorf("%s: gzip: %w", path, err)
	}
	text, err = io.ReadAll(io.LimitReader(unpacked, maxTokenizerBytes+1))
	if err != nil {
		return path, nil, fmt.Errorf("%s: gzip: %w", path, err)
	}
	if len(text) > maxTokenizerBytes {
		return path, nil, fmt.Errorf("%s: unpacks to more than %d bytes", path, maxTokenizerBytes)
	}
	return path, text, nil
}

// Encode gives the token ids of text, which must be UTF-8; the caller owns them.
// Strings of special tokens inside the text become their ids. With addSpecial the
// tokenizer's post-processor adds its own (a BOS, mostly). ctx bounds the wait
// for a free thread, not the work, which takes about 0.5 ms per 100 kB with
// Fastokens and a hundred times as long with Tokenizers.
func (t *Tokenizer) Encode(ctx context.Context, text string, addSpecial bool) (ids []uint32, err error) {
	if len(text) > t.limits.MaxInputBytes {
		return nil, fmt.Errorf("encode: %w: text of %d bytes, limit %d", ErrInputTooLarge, len(text), t.limits.MaxInputBytes)
	}
	waiting := t.workers.do(ctx, func(h tokenizerHandle) { ids, err = h.encode(text, addSpecial) })
	if err := cmp.Or(waiting, err); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return ids, nil
}

// Decode gives the text of ids; special tokens are written as their strings.
// Bytes that are not UTF-8 (a character cut in the middle) become U+FFFD. ctx
// bounds the wait for a free thread.
func (t *Tokenizer) Decode(ctx context.Context, ids []uint32) (text string, err error) {
	if len(ids) > t.limits.MaxInputBytes {
		return "", fmt.Errorf("decode: %w: %d ids, limit %d", ErrInputTooLarge, len(ids), t.limits.MaxInputBytes)
	}
	waiting := t.workers.do(ctx, func(h tokenizerHandle) { text, err = h.decode(ids) })
	if err := cmp.Or(waiting, err); err != nil {
		return "", fmt.Errorf("decode: %w", err)
	}
	return text, nil
}

// CacheStats reads the segment cache's counters; false where there is none, and
// after Close. It waits for a free thread.
func (t *Tokenizer) CacheStats() (s CacheStats, on bool) {
	_ = t.workers.do(context.Background(), func(h tokenizerHandle) { s, on = h.cacheStats() })
	return s, on
}

// VocabSize is the number of token ids, added tokens included.
func (t *Tokenizer) VocabSize() int { return t.vocab }

// TokenID is the id of a token by its exact string in the vocabulary (special
// tokens mostly); false where there is none, and after Close.
func (t *Tokenizer) TokenID(token string) (id uint32, found bool) {
	_ = t.workers.do(context.Background(), func(h tokenizerHandle) { id, found = h.tokenID(token) })
	return id, found
}

// Close waits for the calls in progress and gives the memory and the threads
// back. Calls that still wait, and later ones, return ErrClosed. Closing twice is
// harmless.
func (t *Tokenizer) Close() { t.workers.close() }
