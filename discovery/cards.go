package discovery

import (
	"encoding/json"

	"github.com/firsttoken/firsttoken/scoring"
)

// Cards are the model cards with which the engines that are there answered
// /v1/models the last time, by model; of engines that were not asked yet, or did
// not answer, there are none. Nobody may write to a card.
func (w *Watcher) Cards() map[scoring.EndpointID]map[string]json.RawMessage {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make(map[scoring.EndpointID]map[string]json.RawMessage, len(w.roster.members))
	for _, m := range w.roster.members {
		cards := make(map[string]json.RawMessage, len(m.serves.cards))
		for i, card := range m.serves.cards {
			cards[m.serves.names[i]] = card
		}
		all[m.id] = cards
	}
	return all
}
