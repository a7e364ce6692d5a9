package extproc

import (
	"strconv"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// An alias is a name that no engine knows: the body must leave with the model's
// own. What was read is whole, and has not left, in all modes in which the body
// comes before the choice; where headers leave first there is nothing to do, the
// engine is asked for the alias and refuses.

// rename gives the stream the body that the engine must get.
func (st *stream) rename(p *scoring.Prompt) {
	if p.Alias == "" {
		return
	}
	st.body, st.renamed = prompt.Rename(st.body, p), true
}

// renaming adds the body that takes the client's place to the answer that lets
// the request go. In full duplex the body follows in messages of its own, and the
// answer tells only its length.
func (st *stream) renaming(reply *extprocv3.ProcessingResponse) *extprocv3.ProcessingResponse {
	if !st.renamed {
		return reply
	}
	c := reply.GetRequestHeaders().GetResponse()
	if c == nil {
		c = reply.GetRequestBody().GetResponse()
		c.BodyMutation = &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_Body{Body: st.body}}
	}
	// Envoy refuses a body of another length than the header says.
	c.HeaderMutation.SetHeaders = append(c.HeaderMutation.SetHeaders, setHeader("content-length", strconv.Itoa(len(st.body))))
	return reply
}
