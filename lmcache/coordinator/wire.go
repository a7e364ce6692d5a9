package coordinator

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// ObjectKey is a key as the interface writes it: one rank's part of one chunk.
type ObjectKey struct {
	ChunkHash   string `json:"chunk_hash_hex"`
	ModelName   string `json:"model_name"`
	KVRank      int64  `json:"kv_rank"`
	ObjectGroup int64  `json:"object_group_id"`
	CacheSalt   string `json:"cache_salt"`
}

// Placement is one place where a key's bytes are.
type Placement struct {
	Instance    string `json:"instance_id"`
	Incarnation int64  `json:"incarnation"`
	Tier        Tier   `json:"tier"`
	Backend     string `json:"backend"`
	Size        int64  `json:"size_bytes"`
	// Shared: every server that mounts the backend can load it.
	Shared bool `json:"shared"`
}

// Tier is a tier of a server's cache.
type Tier string

// The tiers, the nearest first.
const (
	TierL1 Tier = "l1" // the server's memory
	TierL2 Tier = "l2" // storage behind it
)

// LookupRequest asks for the placements of a prompt's complete chunks, or of
// keys.
type LookupRequest struct {
	TokenIDs  []uint32    `json:"token_ids,omitempty"`
	Keys      []ObjectKey `json:"keys,omitempty"`
	ModelName string      `json:"model_name"`
	WorldSize int         `json:"world_size"`
	CacheSalt string      `json:"cache_salt"`
}

// LookupResponse has the results chunk by chunk; of each chunk rank by rank,
// and of each rank one for every object group.
type LookupResponse struct {
	Chunks  int            `json:"chunks"`
	Results []LookupResult `json:"results"`
}

// LookupResult is what is known of one key.
type LookupResult struct {
	Key        ObjectKey   `json:"key"`
	Placements []Placement `json:"placements"`
	// TokenIDs is empty where the tokens are not known; a Directory keeps none.
	TokenIDs    []uint32 `json:"token_ids"`
	AccessCount int64    `json:"access_count"`
}

// Server is one registered server, as GET /instances lists it.
type Server struct {
	Instance   string            `json:"instance_id"`
	IP         string            `json:"ip"`
	HTTPPort   int               `json:"http_port"`
	Registered float64           `json:"registration_time"` // Unix seconds
	Metadata   map[string]string `json:"metadata"`
	P2PURL     string            `json:"p2p_advertised_url"`
	MQPort     int               `json:"mq_port"`
}

// long reports whether more would have to be kept of a server than there is
// reason for.
func (s *Server) long() bool {
	n := 0
	for k, v := range s.Metadata {
		n += len(k) + len(v)
	}
	return max(len(s.Instance), len(s.IP), len(s.P2PURL), n) > maxName
}

// maxName bounds in bytes what is kept of strangers' words: names of servers,
// models and backends.
const maxName = 4096

// KVRank is the rank part of a key, for engines whose ranks are all on one
// node: LMCache's lookup knows no others.
func KVRank(worldSize, rank int) int64 {
	return int64(worldSize)<<24 | int64(rank)<<16 | int64(worldSize)<<8 | int64(rank)
}

// eventsRequest is the body of POST /events.
type eventsRequest struct {
	Batches []batch `json:"batches"`
}

// batch is one change of one kind to many keys.
type batch struct {
	Instance    string  `json:"instance_id"`
	Incarnation int64   `json:"incarnation"`
	Seq         int64   `json:"seq"`
	Event       string  `json:"event_type"`
	Tier        Tier    `json:"tier"`
	Backend     string  `json:"backend"`
	Entries     []entry `json:"entries"`
	Shared      bool    `json:"shared"`
	Time        float64 `json:"ts"`
	// Capacity and Revision come with a config batch only.
	Capacity int64 `json:"capacity_bytes"`
	Revision int64 `json:"capacity_revision"`
}

// The kinds of batches. A config batch declares a tier's capacity in bytes,
// which we have no use for: blocks of a size that we do not know.
const (
	eventStore  = "store"
	eventDelete = "delete"
	eventAccess = "access"
	eventConfig = "config"
)

// entry is the change to one key.
type entry struct {
	Key  ObjectKey `json:"key"`
	Size int64     `json:"size_bytes"`
	// TokenIDs are the chunk's, read only where its key is checked.
	TokenIDs json.RawMessage `json:"token_ids"`
	// TokenOffset is where the chunk begins in its prompt; absent or -1: not
	// told.
	TokenOffset *int64 `json:"token_offset"`
}

// validate is what the real coordinator refuses a batch for.
func (b *batch) validate() error {
	switch {
	case b.Instance == "":
		return errors.New("instance_id must be non-empty")
	case len(b.Instance) > maxName || len(b.Backend) > maxName:
		return fmt.Errorf("instance_id and backend must not exceed %d bytes", maxName)
	case !slices.Contains([]string{eventStore, eventDelete, eventAccess, eventConfig}, b.Event):
		return fmt.Errorf("event_type %q is unknown", b.Event)
	case b.Backend == "" && b.Event != eventAccess:
		return fmt.Errorf("backend must be non-empty for %s batches", b.Event)
	case b.Event == eventConfig && len(b.Entries) > 0:
		return errors.New("config batches declare capacity and carry no entries")
	case b.Incarnation < 0, b.Capacity < 0, b.Revision < 0, b.Time < 0:
		return errors.New("incarnation, capacity_bytes, capacity_revision and ts must be >= 0")
	case b.Seq < 1:
		return fmt.Errorf("seq must be >= 1 (got %d)", b.Seq)
	case b.Tier != TierL1 && b.Tier != TierL2:
		return fmt.Errorf("cache events must target a concrete tier (got %q)", b.Tier)
	}
	for i := range b.Entries {
		if err := b.Entries[i].validate(); err != nil {
			return err
		}
	}
	return nil
}

func (e *entry) validate() error {
	if e.Size < 0 {
		return fmt.Errorf("size_bytes must be >= 0 (got %d)", e.Size)
	}
	if e.TokenOffset != nil && *e.TokenOffset < -1 {
		return fmt.Errorf("token_offset must be >= 0 or -1, got %d", *e.TokenOffset)
	}
	return e.Key.validate()
}

// validate holds a key to the invariants of LMCache's ObjectKey.
func (k *ObjectKey) validate() error {
	if _, err := hex.DecodeString(k.ChunkHash); err != nil {
		return fmt.Errorf("chunk_hash_hex: %w", err)
	}
	if strings.Contains(k.ModelName, "@") {
		return fmt.Errorf("model_name must not contain '@' (got %q)", k.ModelName)
	}
	if len(k.ModelName) > maxName {
		return fmt.Errorf("model_name must not exceed %d bytes", maxName)
	}
	if k.ObjectGroup < 0 {
		return fmt.Errorf("object_group_id must be >= 0 (got %d)", k.ObjectGroup)
	}
	if !ValidSalt(k.CacheSalt) {
		return errors.New("cache_salt must not contain '@', '/', '\\' or NUL, nor exceed 128 characters")
	}
	return nil
}

// ValidSalt reports whether LMCache's server caches anything under the salt.
func ValidSalt(salt string) bool {
	return !strings.ContainsAny(salt, "@/\\\x00") && utf8.RuneCountInString(salt) <= 128
}
