package main

import (
	"crypto/subtle"
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// answers are what questions about all engines are answered with. Immutable.
type answers struct {
	endpoints func() []scoring.Endpoint
	cards     func() map[scoring.EndpointID]map[string]json.RawMessage
	aliases   map[string]string
	// key is the engines', without which they tell nothing; empty: none.
	key     string
	started time.Time
}

// answer implements extproc.Deps.Answer.
func (a *answers) answer(path, authorization string) (extproc.Answer, bool) {
	switch path {
	case extproc.PathHealth:
		if slices.ContainsFunc(a.endpoints(), func(e scoring.Endpoint) bool { return e.TakesRequests() }) {
			return extproc.Answer{Status: http.StatusOK, Body: health{"healthy"}}, true
		}
		return extproc.Answer{Status: http.StatusServiceUnavailable, Body: health{"no engine is ready"}}, true
	case extproc.PathVersion:
		return extproc.Answer{Status: http.StatusOK, Body: versionAnswer{version()}}, true
	}
	if a.key != "" && subtle.ConstantTimeCompare([]byte(authorization), []byte("Bearer "+a.key)) != 1 {
		return extproc.Answer{}, false // an engine says what such a client is told
	}
	if path == extproc.PathEngines {
		return extproc.Answer{Status: http.StatusOK, Body: a.engines()}, true
	}
	list, known := a.models()
	return extproc.Answer{Status: http.StatusOK, Body: list}, known
}

type health struct {
	Status string `json:"status"`
}

type versionAnswer struct {
	Version string `json:"version"`
}

// engineCard is one engine as /engines lists it.
type engineCard struct {
	ID      string   `json:"engine_id"`
	Models  []string `json:"serving_models"`
	Created int64    `json:"created"`
}

func (a *answers) engines() []engineCard {
	list := []engineCard{}
	for _, e := range a.endpoints() {
		if e.TakesRequests() {
			list = append(list, engineCard{e.Name, append([]string{}, e.Models...), a.started.Unix()})
		}
	}
	return list
}

// modelList is the answer to /v1/models.
type modelList struct {
	Object string            `json:"object"`
	Data   []json.RawMessage `json:"data"`
}

// card is a model's where its engine told none.
type card struct {
	ID      string  `json:"id"`
	Object  string  `json:"object"`
	Created int64   `json:"created"`
	OwnedBy string  `json:"owned_by"`
	Parent  *string `json:"parent"`
}

// models is the union of the cards of engines that take requests, each model once,
// then the aliases of those models. known is false where engines are there and none
// has said yet what it serves.
func (a *answers) models() (list modelList, known bool) {
	list = modelList{"list", []json.RawMessage{}}
	told := a.cards()
	found := make(map[string]json.RawMessage)
	unknown := false
	for _, e := range a.endpoints() {
		if !e.TakesRequests() {
			continue
		}
		unknown = unknown || len(e.Models) == 0
		for _, name := range e.Models {
			if found[name] != nil {
				continue
			}
			if found[name] = told[e.ID][name]; found[name] == nil {
				found[name] = marshal(card{ID: name, Object: "model", Created: a.started.Unix(), OwnedBy: "vllm"})
			}
			list.Data = append(list.Data, found[name])
		}
	}
	for _, alias := range slices.Sorted(maps.Keys(a.aliases)) {
		if model := found[a.aliases[alias]]; model != nil && found[alias] == nil {
			list.Data = append(list.Data, renamedCard(model, alias))
		}
	}
	return list, len(found) > 0 || !unknown
}

// renamedCard is a card with another id.
func renamedCard(model json.RawMessage, id string) json.RawMessage {
	fields := make(map[string]json.RawMessage)
	if err := json.Unmarshal(model, &fields); err != nil {
		panic(err) // it was read as an object before
	}
	fields["id"] = marshal(id)
	return marshal(fields)
}

// marshal is for what always marshals.
func marshal(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}
