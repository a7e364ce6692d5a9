package extproc

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// A request may be restricted to some endpoints: to one by its client, to a
// subset by the gateway. It goes there or nowhere.

// unknownPinError is that of a client that names an engine there is none of.
type unknownPinError struct{ id string }

func (e *unknownPinError) Error() string { return fmt.Sprintf("no engine has the id %q", e.id) }

// readSubset keeps the gateway's hint, of whichever message brings it first.
func (st *stream) readSubset(msg *extprocv3.ProcessingRequest) {
	if st.subset != nil {
		return
	}
	hint, ok := msg.GetMetadataContext().GetFilterMetadata()[envoy.MetadataSubset].GetFields()[envoy.KeySubset]
	if !ok {
		return
	}
	st.subset = []string{} // present: without an address in it, nothing may serve
	texts := []string{hint.GetStringValue()}
	for _, v := range hint.GetListValue().GetValues() {
		texts = append(texts, v.GetStringValue())
	}
	for _, text := range texts {
		for address := range strings.SplitSeq(text, ",") {
			if address = strings.TrimSpace(address); address != "" {
				st.subset = append(st.subset, address)
			}
		}
	}
}

// restrict tells the prompt the addresses of the endpoints that the request is
// for. The error says that there is no such endpoint.
func (st *stream) restrict(p *scoring.Prompt) error {
	id := st.pin()
	if id == "" && st.subset == nil {
		return nil
	}
	p.Only = []string{}
	pinned := false
	for _, e := range st.picker.Endpoints() {
		if id != "" && !st.hasID(&e, id) {
			continue
		}
		pinned = true
		if st.subset == nil || slices.ContainsFunc(st.subset, func(address string) bool { return isAt(&e, address) }) {
			p.Only = append(p.Only, e.Address)
		}
	}
	if id != "" && !pinned {
		return &unknownPinError{id}
	}
	return nil
}

// pin is the id of the one engine that the client asks for; empty: it does not,
// or may not.
func (st *stream) pin() string {
	_, query, found := strings.Cut(st.head.path, "?")
	if !found || !st.cfg.Pins || !strings.Contains(query, "id=") {
		return ""
	}
	values, _ := url.ParseQuery(query) // of a faulty query what can be read counts
	return values.Get("id")
}

// hasID reports whether an endpoint is called so: by its name, its address, or
// the id of its LMCache instance.
func (s *Server) hasID(e *scoring.Endpoint, id string) bool {
	return e.Name == id || e.Address == id || e.Cache.Instance == id || s.lmcache != nil && s.lmcache(e.ID) == id
}

// isAt reports whether an endpoint is at an address of a hint: "ip:port", or an
// IP alone, on which all ports are meant.
func isAt(e *scoring.Endpoint, address string) bool {
	host, _, err := net.SplitHostPort(e.Address)
	return e.Address == address || err == nil && host == strings.Trim(address, "[]")
}
