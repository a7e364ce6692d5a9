package overhead_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
)

// engine answers at once with what vLLM would send. It reads no more of a
// request than it must; see client_test.go for why.
type engine struct{ address string }

// chunks is how many events a streamed answer has; each is a write of its own.
const chunks = 50

// events are the chunks of a streamed answer.
var events = func() (all [chunks]string) {
	for i := range all {
		all[i] = fmt.Sprintf(`data: {"id":"chatcmpl-0123456789abcdef","object":"chat.completion.chunk","created":1790000000,"model":"m",`+
			`"choices":[{"index":0,"delta":{"content":" word %02d"},"logprobs":null,"finish_reason":null}]}`, i) + "\n\n"
	}
	all[chunks-1] += "data: [DONE]\n\n"
	return all
}()

// whole is an answer that is not streamed.
var whole = `{"id":"chatcmpl-0123456789abcdef","object":"chat.completion","created":1790000000,"model":"m","choices":[{"index":0,"message":` +
	`{"role":"assistant","content":"` + strings.Repeat(" word", chunks) + `"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"total_tokens":51,"completion_tokens":50}}`

// answerLength is the length of an answer's body.
func answerLength(streamed bool) (n int) {
	if !streamed {
		return len(whole)
	}
	for _, e := range events {
		n += len(e)
	}
	return n
}

// startEngine serves until the test ends.
func startEngine(t *testing.T) *engine {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go serve(conn) // ends when its client closes
		}
	}()
	return &engine{l.Addr().String()}
}

func serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReaderSize(conn, 32<<10)
	for {
		post, streamed, err := readRequest(in)
		if err != nil {
			return
		}
		switch {
		case !post:
			_, err = io.WriteString(conn, answerGet)
		case streamed:
			err = writeStream(conn)
		default:
			_, err = conn.Write(answerWhole)
		}
		if err != nil {
			return
		}
	}
}

// answerGet is the list of models, which does for /health as well.
var answerGet = func() string {
	body := `{"object":"list","data":[{"id":"` + model + `","object":"model","owned_by":"vllm","root":"` + model + `","max_model_len":131072}]}`
	return fmt.Sprintf("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(body), body)
}()

var (
	answerWhole = fmt.Appendf(nil, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s", len(whole), whole)
	answerHead  = []byte("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n")
	// answerChunks are the events on the wire.
	answerChunks = func() (all [chunks][]byte) {
		for i, e := range events {
			all[i] = fmt.Appendf(nil, "%x\r\n%s\r\n", len(e), e)
		}
		all[chunks-1] = append(all[chunks-1], "0\r\n\r\n"...)
		return all
	}()
)

func writeStream(conn net.Conn) error {
	if _, err := conn.Write(answerHead); err != nil {
		return err
	}
	for _, c := range answerChunks {
		if _, err := conn.Write(c); err != nil {
			return err
		}
	}
	return nil
}

// readRequest reads one request to its end.
func readRequest(in *bufio.Reader) (post, streamed bool, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return false, false, err
	}
	post = bytes.HasPrefix(line, []byte("POST "))
	length, chunked := 0, false
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return false, false, err
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			break
		}
		key, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(key, []byte("content-length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return false, false, err
			}
		case bytes.EqualFold(key, []byte("transfer-encoding")):
			chunked = true
		}
	}
	const enough = 64 // the first chunk has it
	var start []byte
	if chunked || length > 0 {
		if start, err = in.Peek(enough); err != nil {
			return false, false, err
		}
		streamed = bytes.Contains(start, []byte(`"stream":true`))
	}
	if chunked {
		return post, streamed, discardChunks(in)
	}
	_, err = in.Discard(length)
	return post, streamed, err
}

// discardChunks reads a chunked body to its end.
func discardChunks(in *bufio.Reader) error {
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		n, err := strconv.ParseUint(string(bytes.TrimSpace(line)), 16, 32)
		if err != nil {
			return err
		}
		if _, err := in.Discard(int(n) + len("\r\n")); err != nil {
			return err
		}
		if n == 0 {
			return nil
		}
	}
}
