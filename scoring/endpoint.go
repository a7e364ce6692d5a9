package scoring

import "slices"

// EndpointID names one life of one endpoint, unique in this process. An
// address that is removed and added again gets a new EndpointID: what was
// booked on its former life must never be charged to the new one.
type EndpointID uint64

// Endpoint is one engine that a request may be sent to. It is an immutable
// value: a change of any field is published as a new value with the same ID.
type Endpoint struct {
	// ID is given by discovery when the endpoint is first seen.
	ID EndpointID
	// Name is what the operator wrote (host:port, or a pod's name). It labels
	// logs and metrics and is stable when a host name resolves anew.
	Name string
	// Address is what Envoy dials, always "ip:port" (IPv6 in brackets).
	Address string
	// Cluster names the Envoy cluster that holds this endpoint alone; it is
	// what a cluster_header route is told. Empty: no cluster does.
	Cluster string
	// Models are the names that the engine serves, the first is its own name,
	// the others are aliases. Empty: not known yet, the endpoint is then a
	// candidate for every model.
	Models []string
	// Adapters are those of Models that are LoRA adapters of another: what the
	// engine caches for one it never reuses for another, nor for the model.
	Adapters []string
	// Kind labels the kind of engine, hardware and settings; empty: all that have
	// no label are of one kind.
	Kind string
	// Role is what the engine does of a request; only one that does all of it is a
	// candidate.
	Role Role
	// Ready is false after failed probes; such an endpoint is no candidate.
	Ready bool
	// Cache tells the cache sources who this endpoint is to them.
	Cache CacheIdentity
}

// Role is what an engine does of a request.
type Role string

// The roles.
const (
	// RoleBoth: it takes whole requests.
	RoleBoth Role = ""
	// RolePrefill and RoleDecode: it computes prompts for another engine, or goes
	// on with what another one computed.
	RolePrefill Role = "prefill"
	RoleDecode  Role = "decode"
)

// CacheIdentity is how an endpoint is known to the systems that report what it
// has cached. Every field may be empty.
type CacheIdentity struct {
	// Instance is the LMCache instance id, where the operator named it.
	Instance string
	// Server is the instance id of the node's LMCache server (multiprocess
	// mode), where the operator named it. Endpoints of a node have the same.
	Server string
	// WorkerPort is the LMCache worker port, which the worker registers
	// together with its IP. It is never the engine's HTTP port. 0: not known.
	WorkerPort int
	// Group names the chunk-key settings of this engine; empty: the model's.
	Group string
	// Events is where the engine publishes its KV cache events.
	Events EventFeed
}

// EventFeed is where an engine publishes its KV cache events, in the words of
// its own settings. Without Endpoint it publishes none.
type EventFeed struct {
	// Endpoint is the ZeroMQ address of rank 0, tcp://host:port; the host *
	// stands for the engine's own address, or where Bind, for any of ours.
	Endpoint string
	// Replay is where missed events are asked for, in the same form; empty:
	// nowhere.
	Replay string
	// Topic is what the engine publishes under; empty: anything.
	Topic string
	// Bind: the engine connects to Endpoint, which is ours.
	Bind bool
	// Ranks is the number of data-parallel ranks, each with a cache of its own
	// and one port up from the one before. 0: 1.
	Ranks int
	// Capacity bounds what is believed of each rank.
	Capacity TierCapacity
}

// TierCapacity is how many tokens each tier of an engine's cache holds. 0: no
// bound.
type TierCapacity struct {
	GPU, CPU, Storage Tokens
}

// TakesRequests reports whether the endpoint may be sent requests now.
func (e *Endpoint) TakesRequests() bool { return e.Ready && e.Role == RoleBoth }

// Serves reports whether the endpoint may be sent a request for model. An
// endpoint whose models are not known yet serves all; the empty model is
// served by all.
func (e *Endpoint) Serves(model string) bool {
	return model == "" || len(e.Models) == 0 || slices.Contains(e.Models, model)
}
