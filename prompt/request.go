package prompt

import (
	"encoding/json"
	"fmt"

	"github.com/firsttoken/firsttoken/prompt/native"
)

// Request is the part of an HTTP request that decides its prompt. The body is
// only read, and nothing keeps a reference to it after Encode returned, save a
// tokenization that outlives its deadline.
type Request struct {
	// Method is the HTTP method; empty means POST.
	Method string
	// Path may carry a query.
	Path string
	// ContentType is the header's value; empty means JSON, as for vLLM.
	ContentType string
	// ContentEncoding is the header's value. A body that has one is not read.
	ContentEncoding string
	// SessionKey names the member of the body that becomes Prompt.Session; empty:
	// none does.
	SessionKey string
	Body       []byte
}

// RequestError is a fault of the request, in the shape of vLLM's own answer.
type RequestError struct {
	// Status is the HTTP status.
	Status int
	// Message, Type and Param are the fields of the error object; an empty
	// Param is written as null.
	Message, Type, Param string
}

func (e *RequestError) Error() string {
	return fmt.Sprintf("%d %s: %s", e.Status, e.Type, e.Message)
}

// ErrorObject is the object under "error" in the answer.
type ErrorObject struct {
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param"`
	Code    int     `json:"code"`
}

// Object is the error as it is written.
func (e *RequestError) Object() ErrorObject {
	o := ErrorObject{Message: e.Message, Type: e.Type, Code: e.Status}
	if e.Param != "" {
		o.Param = &e.Param
	}
	return o
}

// MarshalJSON writes the body of the answer: {"error":{"message","type",
// "param","code"}}.
func (e *RequestError) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Error ErrorObject `json:"error"`
	}{e.Object()})
}

// Encoded is the exact prompt of one request to one model.
type Encoded struct {
	Prompts []EncodedPrompt
	// Remote names why this process cannot know the ids; the engine has to be
	// asked. Prompts is then empty. RemoteNone where Prompts is valid.
	Remote Remote

	rendered *native.Text // what Text is a view of, inside this package
}

// EncodedPrompt is one prompt of a request.
type EncodedPrompt struct {
	TokenIDs []uint32
	// Text is what was tokenized; empty where the client sent token ids.
	Text string
	// UsablePrefix is the number of leading ids that are certain; what follows
	// (from the first image on) depends on data this process does not read.
	UsablePrefix int

	media int // images and the like, whose tokens are not among TokenIDs
}

// Remote says why ids can only come from the engine. The values label metrics.
type Remote string

// The reasons for asking the engine.
const (
	RemoteNone Remote = ""
	// RemoteHarmony: the Harmony library builds the ids of gpt-oss chats.
	RemoteHarmony Remote = "harmony"
	// RemoteMistral: mistral-common builds the ids.
	RemoteMistral Remote = "mistral"
	// RemoteEmbeds: the prompt holds embeddings instead of text.
	RemoteEmbeds Remote = "embeds"
	// RemoteTokenizerMode: vLLM has a renderer of its own for the model.
	RemoteTokenizerMode Remote = "tokenizer_mode" //nolint:gosec // no credential
	// RemoteResponses: a body in the shape of OpenAI's Responses.
	RemoteResponses Remote = "responses"
	// RemoteMessages: a body in the shape of Anthropic's Messages.
	RemoteMessages Remote = "messages"
	// RemoteLoading: the tokenizer is not loaded yet.
	RemoteLoading Remote = "loading"
	// RemoteNoTokenizer: the model has no tokenizer folder, or this build no
	// native tokenizer, or it is switched off.
	RemoteNoTokenizer Remote = "no_tokenizer"
)
