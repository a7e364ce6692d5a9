package extproc

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
)

// The paths of questions that are about all engines, not for one of them.
const (
	PathModels  = "/v1/models"
	PathEngines = "/engines"
	PathHealth  = "/health"
	PathVersion = "/version"
)

var answerable = []string{PathModels, PathEngines, PathHealth, PathVersion}

// Answer is what a question about all engines is answered with.
type Answer struct {
	Status int
	// Body is written as JSON.
	Body any
}

// validateAnswers joins what is wrong with the list of paths.
func validateAnswers(path string, list []string) (faults []error) {
	for i, a := range list {
		switch {
		case !slices.Contains(answerable, a):
			faults = append(faults, fmt.Errorf("%s.answers[%d]: %q is nothing that the service can answer; write %s", path, i, a, strings.Join(answerable, ", ")))
		case slices.Contains(list[:i], a):
			faults = append(faults, fmt.Errorf("%s.answers[%d]: %q is listed twice", path, i, a))
		}
	}
	return faults
}

// ownAnswer answers a question about all engines in their place; nil where the
// request is none, or for an engine, or the service is switched off. The client's Authorization is looked at here
// alone: who may not ask an engine for its models may not ask us.
func (st *stream) ownAnswer(choosing bool, headers *corev3.HeaderMap) *extprocv3.ProcessingResponse {
	path, _, _ := strings.Cut(st.head.path, "?")
	if !choosing || st.answer == nil || st.head.method != http.MethodGet && st.head.method != http.MethodHead ||
		!slices.Contains(st.cfg.Answers, path) || st.pin() != "" {
		return nil
	}
	authorization := ""
	for _, kv := range headers.GetHeaders() {
		if strings.EqualFold(kv.GetKey(), "authorization") {
			authorization = headerValue(kv)
		}
	}
	a, ok := st.answer(path, authorization)
	if !ok {
		return nil
	}
	st.metrics.refused(a.Status)
	return refuse(a.Body, a.Status, "firsttoken_answer")
}
