package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firsttoken/firsttoken/prompt"
)

// newEncodeCommand prints the token ids of requests, so that they can be compared
// with an engine's.
func newEncodeCommand() *cobra.Command {
	cfg := prompt.DefaultModelConfig()
	var now string
	cmd := &cobra.Command{
		Use:   "encode --tokenizer DIR < requests.jsonl",
		Short: "Print the token ids of OpenAI requests as the engine would compute them",
		Long: `Reads JSON Lines from standard input, one request each:

  {"path": "/v1/chat/completions", "body": {...}}
  {"path": "/v1/completions", "raw": "any text", "headers": {"content-type": "application/json"}}

and writes one line for each: the prompts, or who has to be asked instead, or
the error that the engine would answer with because of the prompt:

  {"prompts": [{"token_ids": [...], "text": "...", "usable_prefix": 12}]}
  {"remote": "harmony"}
  {"error": {"message": "...", "type": "...", "param": null, "code": 400}, "status": 400}`,
		Example: `  echo '{"path":"/v1/completions","body":{"prompt":"Hello world"}}' | firsttoken encode --tokenizer models/qwen3`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			clock := time.Now
			if now != "" {
				at, err := time.Parse(time.RFC3339, now)
				if err != nil {
					return fmt.Errorf("--now %q: %w; write a time such as 2026-01-15T00:00:00Z", now, err)
				}
				clock = func() time.Time { return at }
			}
			if err := validateModel(cfg); err != nil {
				return err
			}
			var err error
			if cfg.Tokenizer, err = tokenizerFolder(cmd.Context(), cfg.Tokenizer, cfg.TokenizerRevision, cmd.ErrOrStderr()); err != nil {
				return fmt.Errorf("--tokenizer: %w", err)
			}
			model, err := prompt.LoadModel(cfg)
			if err != nil {
				return err
			}
			defer model.Close()
			return encodeLines(cmd.Context(), model, clock, cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&cfg.Tokenizer, "tokenizer", "", "`folder` with tokenizer.json and tokenizer_config.json, or a model's id on a Hugging Face hub")
	flags.StringVar(&cfg.TokenizerRevision, "tokenizer-revision", "", "branch, tag or commit on the hub (default: main)")
	flags.StringVar(&cfg.Engine, "engine", cfg.Engine, "fastokens, or tokenizers (the reference)")
	flags.StringVar(&cfg.ChatTemplate, "template", "", "`file` with a chat template instead of the folder's")
	flags.StringVar(&cfg.ContentFormat, "content-format", cfg.ContentFormat, "what the template takes as content: auto, string or openai")
	flags.IntVar(&cfg.MaxModelLen, "max-model-len", 0, "the engine's context length in `tokens`; 0: not checked")
	flags.StringVar(&cfg.Name, "served-model-name", "", "the model's `name`; requests for another get a 404 (default: any is taken)")
	flags.StringVar(&cfg.ToolParser, "tool-parser", cfg.ToolParser, "the engine's --tool-call-parser; none: requests with tools are refused")
	flags.StringVar(&now, "now", "", "`time` that templates print, such as 2026-01-15T00:00:00Z (default: the clock)")
	_ = cmd.MarkFlagRequired("tokenizer") // it exists
	return cmd
}

// validateModel names faults by flag instead of by key.
func validateModel(cfg prompt.ModelConfig) error {
	whole := prompt.DefaultConfig()
	if cfg.Name == "" {
		cfg.Name = "any"
	}
	whole.Models = []prompt.ModelConfig{cfg}
	err := whole.Validate("encode")
	if err == nil {
		return nil
	}
	text := err.Error()
	for key, flag := range map[string]string{"engine": "engine", "content_format": "content-format", "max_model_len": "max-model-len"} {
		text = strings.ReplaceAll(text, "encode.models[0]."+key+":", "--"+flag+":")
	}
	return errors.New(text)
}

// maxLineBytes bounds one line of input.
const maxLineBytes = 64 << 20

// encodeLines answers each line of in with one line, also a bad one. It ends with
// in, ctx or a failure to write.
func encodeLines(ctx context.Context, model *prompt.Model, now func() time.Time, in io.Reader, out io.Writer) error {
	reader, writer := bufio.NewReaderSize(in, 64<<10), bufio.NewWriter(out)
	encoder := json.NewEncoder(writer)
	encoder.SetEscapeHTML(false)
	for number := 1; ctx.Err() == nil; number++ {
		line, err := readLine(reader)
		if err == io.EOF { //nolint:errorlint // readLine returns it bare
			break
		}
		var answer any
		if err == nil {
			answer = encodeLine(ctx, model, line, now())
		} else {
			answer = badLine(http.StatusRequestEntityTooLarge, "line %d: %v", number, err)
		}
		if err := encoder.Encode(answer); err != nil {
			return err
		}
		if reader.Buffered() == 0 {
			if err := writer.Flush(); err != nil {
				return err
			}
		}
	}
	return errors.Join(writer.Flush(), ctx.Err())
}

// readLine is the next line without its end; io.EOF after the last. A line that
// is too long is read to its end and is an error.
func readLine(r *bufio.Reader) (line []byte, err error) {
	long := false
	for {
		piece, err := r.ReadSlice('\n')
		if long = long || len(line)+len(piece) > maxLineBytes; !long {
			line = append(line, piece...)
		}
		switch {
		case err == bufio.ErrBufferFull: //nolint:errorlint // ReadSlice returns it bare
			continue
		case err != nil && err != io.EOF:
			return nil, err
		case err != nil && len(line) == 0 && !long:
			return nil, io.EOF
		case long:
			return nil, fmt.Errorf("more than %d bytes", maxLineBytes)
		}
		return bytes.TrimRight(line, "\r\n"), nil
	}
}

// The lines of output.
type (
	encodedLine struct {
		Prompts []encodedPrompt `json:"prompts"`
	}
	encodedPrompt struct {
		TokenIDs     []uint32 `json:"token_ids"`
		Text         string   `json:"text"`
		UsablePrefix int      `json:"usable_prefix"`
	}
	remoteLine struct {
		Remote prompt.Remote `json:"remote"`
	}
	errorLine struct {
		Error  prompt.ErrorObject `json:"error"`
		Status int                `json:"status"`
	}
)

func badLine(status int, format string, args ...any) errorLine {
	fault := prompt.RequestError{Status: status, Type: "InputError", Message: fmt.Sprintf(format, args...)}
	return errorLine{fault.Object(), status}
}

func encodeLine(ctx context.Context, model *prompt.Model, line []byte, now time.Time) any {
	var input struct {
		Path    string            `json:"path"`
		Body    json.RawMessage   `json:"body"`
		Raw     *string           `json:"raw"`
		Headers map[string]string `json:"headers"`
	}
	if err := json.Unmarshal(line, &input); err != nil {
		return badLine(http.StatusBadRequest, "the line is no request: %v", err)
	}
	request := prompt.Request{Path: input.Path, Body: input.Body}
	if input.Raw != nil {
		request.Body = []byte(*input.Raw)
	}
	for name, v := range input.Headers {
		if strings.EqualFold(name, "content-type") {
			request.ContentType = v
		}
	}
	encoded, err := model.Encode(ctx, request, now)
	var fault *prompt.RequestError
	switch {
	case errors.As(err, &fault):
		return errorLine{fault.Object(), fault.Status}
	case err != nil:
		return badLine(http.StatusInternalServerError, "%v", err)
	case encoded.Remote != prompt.RemoteNone:
		return remoteLine{encoded.Remote}
	}
	answer := encodedLine{Prompts: make([]encodedPrompt, len(encoded.Prompts))}
	for i, p := range encoded.Prompts {
		answer.Prompts[i] = encodedPrompt{p.TokenIDs, p.Text, p.UsablePrefix}
	}
	return answer
}
