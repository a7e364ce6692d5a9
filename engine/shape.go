package engine

// The JSON of answers. The order of keys is vLLM's; a nil pointer or slice is
// written as null unless it is marked omitempty, as vLLM leaves out what was
// never set.

// head begins every answer and every event of a streamed one.
type head struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	Model   string `json:"model"`
}

// tail ends every plain answer.
type tail struct {
	KVTransferParams *struct{} `json:"kv_transfer_params"`
	ECTransferParams *struct{} `json:"ec_transfer_params"`
	Metrics          *struct{} `json:"metrics"`
}

type usage struct {
	PromptTokens            int           `json:"prompt_tokens"`
	TotalTokens             int           `json:"total_tokens"`
	CompletionTokens        int           `json:"completion_tokens"`
	PromptTokensDetails     *usageDetails `json:"prompt_tokens_details"`
	CompletionTokensDetails *struct{}     `json:"completion_tokens_details"`
}

type usageDetails struct {
	CachedTokens       int       `json:"cached_tokens"`
	CreatedCacheTokens *int      `json:"created_cache_tokens"`
	MultimodalTokens   *struct{} `json:"multimodal_tokens"`
}

// streamUsage is the usage in an event.
type streamUsage struct {
	PromptTokens        int                 `json:"prompt_tokens"`
	TotalTokens         int                 `json:"total_tokens"`
	CompletionTokens    int                 `json:"completion_tokens"`
	PromptTokensDetails *streamUsageDetails `json:"prompt_tokens_details,omitempty"`
}

type streamUsageDetails struct {
	CachedTokens       int  `json:"cached_tokens"`
	CreatedCacheTokens *int `json:"created_cache_tokens,omitempty"`
}

type completion struct {
	head
	Choices           []completionChoice `json:"choices"`
	ServiceTier       *string            `json:"service_tier"`
	SystemFingerprint string             `json:"system_fingerprint"`
	Usage             usage              `json:"usage"`
	tail
}

type completionChoice struct {
	Index          int       `json:"index"`
	Text           string    `json:"text"`
	Logprobs       *struct{} `json:"logprobs"`
	FinishReason   string    `json:"finish_reason"`
	StopReason     *string   `json:"stop_reason"`
	TokenIDs       []uint32  `json:"token_ids"`
	PromptLogprobs *struct{} `json:"prompt_logprobs"`
	PromptTokenIDs []uint32  `json:"prompt_token_ids"`
	RoutedExperts  *struct{} `json:"routed_experts"`
}

type chat struct {
	head
	Choices           []chatChoice `json:"choices"`
	ServiceTier       *string      `json:"service_tier"`
	SystemFingerprint string       `json:"system_fingerprint"`
	Usage             usage        `json:"usage"`
	PromptLogprobs    *struct{}    `json:"prompt_logprobs"`
	PromptTokenIDs    []uint32     `json:"prompt_token_ids"`
	PromptText        *string      `json:"prompt_text"`
	tail
}

type chatChoice struct {
	Index         int         `json:"index"`
	Message       chatMessage `json:"message"`
	Logprobs      *struct{}   `json:"logprobs"`
	FinishReason  string      `json:"finish_reason"`
	StopReason    *string     `json:"stop_reason"`
	TokenIDs      []uint32    `json:"token_ids"`
	RoutedExperts *struct{}   `json:"routed_experts"`
}

type chatMessage struct {
	Role         string    `json:"role"`
	Content      string    `json:"content"`
	Refusal      *string   `json:"refusal"`
	Annotations  *struct{} `json:"annotations"`
	Audio        *struct{} `json:"audio"`
	FunctionCall *struct{} `json:"function_call"`
	Reasoning    *string   `json:"reasoning"`
}

// event is what most events of a streamed answer look like; choices are
// completionDelta, chatDelta or chatLast.
type event struct {
	head
	Choices           []any        `json:"choices"`
	Usage             *streamUsage `json:"usage,omitempty"`
	SystemFingerprint string       `json:"system_fingerprint,omitempty"`
}

type completionDelta struct {
	Index          int       `json:"index"`
	Text           string    `json:"text"`
	Logprobs       *struct{} `json:"logprobs"`
	FinishReason   *string   `json:"finish_reason"`
	StopReason     *string   `json:"stop_reason"`
	PromptTokenIDs []uint32  `json:"prompt_token_ids"`
	TokenIDs       []uint32  `json:"token_ids"`
}

// chatRole is the first event of a choice of a streamed chat.
type chatRole struct {
	head
	Choices        []chatRoleChoice `json:"choices"`
	Usage          *streamUsage     `json:"usage,omitempty"`
	PromptTokenIDs []uint32         `json:"prompt_token_ids"`
	PromptText     *string          `json:"prompt_text"`
}

type chatRoleChoice struct {
	Index int `json:"index"`
	Delta struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	} `json:"delta"`
	Logprobs     *struct{} `json:"logprobs"`
	FinishReason *string   `json:"finish_reason"`
}

type content struct {
	Content string `json:"content"`
}

type chatDelta struct {
	Index        int       `json:"index"`
	Delta        content   `json:"delta"`
	Logprobs     *struct{} `json:"logprobs"`
	FinishReason *string   `json:"finish_reason"`
	TokenIDs     []uint32  `json:"token_ids"`
}

type chatLast struct {
	Index        int       `json:"index"`
	Delta        content   `json:"delta"`
	Logprobs     *struct{} `json:"logprobs"`
	FinishReason string    `json:"finish_reason"`
	StopReason   *string   `json:"stop_reason"`
	TokenIDs     []uint32  `json:"token_ids"`
}
