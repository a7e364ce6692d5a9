package hub

import (
	"fmt"
	"net/http"
)

// Error is a refusal of the hub.
type Error struct {
	Status int
	// What the hub calls the reason, such as GatedRepo or RepoNotFound; empty
	// where it gives none.
	Code string
	// Advice is what to do about it.
	Advice string
	url    string
}

func (e *Error) Error() string {
	text := fmt.Sprintf("%s: status %d", e.url, e.Status)
	if e.Code != "" {
		text += " (" + e.Code + ")"
	}
	return text + "; " + e.Advice
}

// MayPass reports whether the same call may succeed later.
func (e *Error) MayPass() bool {
	return e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout || e.Status >= http.StatusInternalServerError
}

// refusal is the error of an answer that is none.
func refusal(m Model, resp *http.Response) *Error {
	e := &Error{Status: resp.StatusCode, Code: resp.Header.Get("X-Error-Code")}
	e.url = resp.Request.URL.Scheme + "://" + resp.Request.URL.Host + resp.Request.URL.Path // queries hold signatures
	switch {
	case e.Code == "GatedRepo" || resp.StatusCode == http.StatusForbidden:
		e.Advice = "accept the model's licence on the hub and set HF_TOKEN to a token of that account"
	case e.Code == "RevisionNotFound":
		e.Advice = fmt.Sprintf("the model has no revision %q", m.revision())
	case e.Code == "EntryNotFound":
		e.Advice = "the model has no such file"
	case resp.StatusCode == http.StatusUnauthorized:
		// The hub does not tell strangers which private models there are.
		e.Advice = "no such model, or a private one: check the name, or set HF_TOKEN"
	case resp.StatusCode == http.StatusNotFound:
		e.Advice = "check the model's name and revision"
	case e.MayPass():
		e.Advice = "try again later"
	default:
		e.Advice = "the hub, or HF_ENDPOINT, is not what it should be"
	}
	return e
}
