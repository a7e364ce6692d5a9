package stack

import (
	"path/filepath"

	"go.yaml.in/yaml/v3"
)

// serviceConfig is the service's configuration file. It is written with plain
// maps: what the file may hold is defined by the program that reads it.
func (s *Stack) serviceConfig() ([]byte, error) {
	// A path of the file counts from the file's folder.
	tokenizer, err := filepath.Abs(s.cfg.Tokenizer)
	if err != nil {
		return nil, err
	}
	type section = map[string]any
	var endpoints []section
	for i, address := range s.Engines {
		e := section{"address": address}
		switch s.cfg.Truth {
		case LMCache:
			e["lmcache"] = section{"instance": EngineName(i)}
		case KVEvents:
			e["kv_events"] = section{"endpoint": "tcp://" + s.events.address, "bind": true, "topic": EngineName(i)}
		}
		endpoints = append(endpoints, e)
	}
	const anyPort = "127.0.0.1:0"
	return yaml.Marshal(section{
		"server":    section{"listen": anyPort, "session_key": s.cfg.SessionKey},
		"admin":     section{"listen": anyPort},
		"endpoints": endpoints,
		"scoring":   s.cfg.Scoring,
		"prompt":    section{"models": []section{{"name": s.cfg.Model, "tokenizer": tokenizer}}},
		"lmcache": section{
			"enabled":    s.cfg.Truth == LMCache,
			"controller": section{"pull": anyPort, "reply": anyPort, "heartbeat": anyPort},
		},
	})
}
