// Package bench drives an OpenAI endpoint with streamed chat completions and
// measures what a client sees: the time to the first token, the time between
// tokens, the end. It knows nothing of the service in front of the engines.
//
// A Load says what is sent and when; a Run sends it and keeps a Record of each
// request. Requests that fail are records too.
package bench
