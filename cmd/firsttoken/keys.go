package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/spelling"
)

// newKeysCommand prints LMCache's chunk keys, to hunt a mismatch between the
// settings of a key group and what an engine really reports.
func newKeysCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "keys",
		Short: "Print the LMCache chunk keys of token ids",
		Long: `Reads JSON Lines from standard input, each the settings of an engine and token ids:

  {"lmcache":"0.5.6","vllm":"0.33.0","python":"3.12","pythonhashseed":"0","algorithm":"builtin","chunk_size":2,"save_unfull_chunk":false,"tokens":[1,2,3]}

vllm is null where LMCache cannot import vLLM, pythonhashseed is null where it
is not set; save_unfull_chunk may be left out for LMCache's own default. Where
the engine's NONE_HASH is random, "none_hash" gives what was read from it: a
decimal integer, or bytes in hex.

For LMCache's multiprocess mode (lmcache server), whose keys depend on nothing
else:

  {"mode":"multiprocess","algorithm":"blake3","chunk_size":256,"tokens":[1,2,3]}

Writes one line for each, integers in decimal and digests in hex:

  {"none_hash":"5313149338359954478","chunks":["7819940253026951142"]}

or {"error":"..."}, and goes on with the next. Fields that are no settings, such
as an "id", are ignored unless one looks like a setting misspelt.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return printKeys(cmd.OutOrStdout(), cmd.InOrStdin())
		},
	}
}

// keysQuestion is one line of input.
type keysQuestion struct {
	// Mode is empty, or multiprocess for the keys of lmcache server.
	Mode            string    `json:"mode"`
	LMCache         string    `json:"lmcache"`
	VLLM            *string   `json:"vllm"`
	Python          string    `json:"python"`
	PythonHashSeed  *string   `json:"pythonhashseed"`
	Algorithm       string    `json:"algorithm"`
	ChunkSize       int       `json:"chunk_size"`
	SaveUnfullChunk *bool     `json:"save_unfull_chunk"`
	NoneHash        string    `json:"none_hash"`
	Tokens          *[]uint32 `json:"tokens"`
}

// keysAnswer is one line of output.
type keysAnswer struct {
	NoneHash string   `json:"none_hash"`
	Chunks   []string `json:"chunks"`
}

func printKeys(w io.Writer, r io.Reader) error {
	in, out := bufio.NewReader(r), bufio.NewWriter(w)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	for {
		line, readErr := in.ReadBytes('\n')
		if line = bytes.TrimSpace(line); len(line) > 0 {
			if err := encoder.Encode(answerKeys(line)); err != nil {
				return fmt.Errorf("writing keys: %w", err)
			}
		}
		// Who asks line by line gets each answer at once.
		if readErr != nil || in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return fmt.Errorf("writing keys: %w", err)
			}
		}
		if errors.Is(readErr, io.EOF) {
			return nil
		}
		if readErr != nil {
			return fmt.Errorf("reading standard input: %w", readErr)
		}
	}
}

// answerKeys is the keysAnswer to one line, or its error.
func answerKeys(line []byte) any {
	answer, err := chunkKeys(line)
	if err != nil {
		return struct {
			Error string `json:"error"`
		}{err.Error()}
	}
	return answer
}

func chunkKeys(line []byte) (keysAnswer, error) {
	var q keysQuestion
	if err := json.Unmarshal(line, &q); err != nil {
		return keysAnswer{}, err
	}
	if err := misspelt(line); err != nil {
		return keysAnswer{}, err
	}
	switch q.Mode {
	case "":
	case "multiprocess":
		return multiprocessKeys(q)
	default:
		return keysAnswer{}, fmt.Errorf("mode is %q; write multiprocess, or leave it out", q.Mode)
	}
	if q.LMCache == "" || q.Python == "" || q.Algorithm == "" || q.ChunkSize == 0 || q.Tokens == nil || q.VLLM != nil && *q.VLLM == "" {
		return keysAnswer{}, errors.New("lmcache, python, algorithm, chunk_size and tokens must all be given, and vllm as a version or null; see firsttoken keys --help")
	}
	group := lmcache.KeyGroup{
		LMCacheVersion: q.LMCache, VLLMVersion: lmcache.NoVLLM, PythonVersion: q.Python, PythonHashSeed: lmcache.SeedUnset,
		Algorithm: q.Algorithm, ChunkSize: q.ChunkSize, SaveUnfullChunk: q.SaveUnfullChunk, NoneHash: q.NoneHash,
	}
	if q.VLLM != nil {
		group.VLLMVersion = *q.VLLM
	}
	// Python takes an empty PYTHONHASHSEED for one that is not set.
	if q.PythonHashSeed != nil && *q.PythonHashSeed != "" {
		group.PythonHashSeed = *q.PythonHashSeed
	}
	hasher, err := lmcache.NewHasher(group)
	if err != nil {
		return keysAnswer{}, err
	}
	return keysAnswer{NoneHash: hasher.NoneHash(), Chunks: hasher.Texts(*q.Tokens)}, nil
}

// keysFields are the settings that a line may have.
var keysFields = []string{
	"mode", "lmcache", "vllm", "python", "pythonhashseed", "algorithm", "chunk_size", "save_unfull_chunk", "none_hash", "tokens",
}

// misspelt finds a field that was probably meant to be a setting: left unread,
// it would give keys of other settings without a word. Whatever else a line
// has is a label of whoever asks.
func misspelt(line []byte) error {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(line, &fields); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		if slices.ContainsFunc(keysFields, func(known string) bool { return strings.EqualFold(known, name) }) {
			continue // as encoding/json reads it
		}
		for _, known := range keysFields {
			low := strings.ToLower(name)
			if wrong := spelling.Distance(low, known); wrong <= 2 && 2*wrong < len(low) || len(low) > 3 && (strings.Contains(known, low) || strings.Contains(low, known)) {
				return fmt.Errorf("field %q is unknown; is it %s?", name, known)
			}
		}
	}
	return nil
}

func multiprocessKeys(q keysQuestion) (keysAnswer, error) {
	if q.ChunkSize == 0 || q.Tokens == nil {
		return keysAnswer{}, errors.New("chunk_size and tokens must be given; see firsttoken keys --help")
	}
	if q.Algorithm != "" && q.Algorithm != "blake3" {
		return keysAnswer{}, fmt.Errorf("algorithm is %q; in multiprocess mode only blake3, LMCache's default there, can be predicted", q.Algorithm)
	}
	hasher, err := lmcache.NewTokenHasher(q.ChunkSize)
	if err != nil {
		return keysAnswer{}, err
	}
	answer := keysAnswer{NoneHash: hasher.NoneHash(), Chunks: []string{}}
	for _, key := range hasher.Keys(nil, *q.Tokens) {
		answer.Chunks = append(answer.Chunks, key.String())
	}
	return answer, nil
}
