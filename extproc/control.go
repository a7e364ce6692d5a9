package extproc

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/firsttoken/firsttoken/envoy"
)

// answerAhead answers the headers of a request whose choice comes with its
// body. Control headers that the client sent are removed at once: nobody knows
// whether the body will be answered. Where there are none, which is nearly
// always, Envoy need not look for them; the answer to the body removes them
// anyway, should they have been hidden from us.
func (st *stream) answerAhead(headers *corev3.HeaderMap) error {
	if hasControlHeaders(headers) {
		return st.send(st.replies.headers(nil))
	}
	return st.send(pass(requestHeaders))
}

// hasControlHeaders reports whether a client tries to say what only the service
// may.
func hasControlHeaders(headers *corev3.HeaderMap) bool {
	for _, kv := range headers.GetHeaders() {
		key := kv.GetKey()
		if len(key) == 0 || key[0]|0x20 != 'x' {
			continue
		}
		for _, name := range envoy.ControlHeaders {
			if strings.EqualFold(key, name) {
				return true
			}
		}
	}
	return false
}
