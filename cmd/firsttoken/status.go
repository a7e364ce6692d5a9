package main

import (
	"slices"
	"strings"
	"time"

	"github.com/firsttoken/firsttoken/certificate"
	"github.com/firsttoken/firsttoken/counters"
	"github.com/firsttoken/firsttoken/envoy/xds"
	"github.com/firsttoken/firsttoken/fidelity"
	"github.com/firsttoken/firsttoken/kvevents"
	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/lmcache/remote"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/routed"
	"github.com/firsttoken/firsttoken/scoring"
)

// status is the service at one moment, as /status shows it.
type status struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	Policy  string    `json:"policy"`
	// ModelPolicies are the policies of models that have one of their own.
	ModelPolicies map[string]string `json:"model_policies,omitempty"`
	// Choosing says whether the service makes choices, or Envoy.
	Choosing choosingStatus `json:"choosing"`
	// Arms are those that requests are shared out to.
	Arms   []armStatus      `json:"arms"`
	Models []modelStatus    `json:"models"`
	Fleet  []endpointStatus `json:"endpoints"`
	// OpenBookings are requests decided for and not ended.
	OpenBookings int `json:"open_bookings"`
	// Held are requests that wait for an endpoint that is free.
	Held int `json:"held"`
	// Pools are what was learned of each model's engines.
	Pools map[string]poolStatus `json:"pools"`
	// LMCache is null where the controller is not hosted.
	LMCache *lmcacheStatus `json:"lmcache"`
	// Coordinator is null where we are not the LMCache servers' coordinator.
	Coordinator *coordinatorStatus `json:"lmcache_coordinator"`
	// Asked are the registries of LMCache elsewhere that are asked.
	Asked []remote.Status `json:"lmcache_asked"`
	// KVEvents has a row for each rank of each endpoint that publishes events;
	// null where none does.
	KVEvents []kvevents.Status `json:"kv_events"`
	// Config is what became of the configuration file; null where there is none.
	Config *reloadStatus `json:"config"`
	// TLS is that of the port for Envoy, XDSTLS that of the xDS server's; null
	// where they speak none.
	TLS    *certificate.Status `json:"tls"`
	XDSTLS *certificate.Status `json:"xds_tls"`
	// XDS is what running Envoys are told; null where they get a static config.
	XDS *xds.Status `json:"xds"`
}

// armStatus is one arm, as it is configured now. Policy is empty where it is as
// without arms.
type armStatus struct {
	Name   string   `json:"name"`
	Weight int      `json:"weight"`
	Policy string   `json:"policy"`
	Header string   `json:"header"`
	Models []string `json:"models"`
}

// lmcacheStatus is what is known of the engines' caches.
type lmcacheStatus struct {
	Addresses boundLMCache           `json:"addresses"`
	Workers   []lmcache.WorkerStatus `json:"workers"`
	// Unmapped are endpoints without instance and instances without endpoint,
	// with the reason.
	Unmapped []unmapped `json:"unmapped"`
	// Hashing is by which chunk-key settings each instance is read; null where
	// they are fixed.
	Hashing []lmcache.HashingStatus `json:"hashing"`
}

type unmapped struct {
	Endpoint string `json:"endpoint,omitempty"`
	Instance string `json:"instance,omitempty"`
	Reason   string `json:"reason"`
}

// modelStatus is one model whose prompts are tokenized.
type modelStatus struct {
	Name      string `json:"name"`
	Tokenizer string `json:"tokenizer"`
	Loaded    bool   `json:"loaded"`
	// State is what keeps it from being loaded: how far its files are fetched,
	// or what failed.
	State string `json:"state,omitempty"`
	// IDs is how its token ids compare with the engines' own; null where they
	// are not compared.
	IDs *prompt.IDStatus `json:"ids"`
}

// poolStatus is what was learned of the engines of one model.
type poolStatus struct {
	// SecondsPerToken is the time of computing one prompt token, attention aside,
	// SecondsPerStep that of each step besides; Groups how many groups of first
	// tokens taught them. Restored: they began with what the service before this
	// one had learnt.
	SecondsPerToken float64 `json:"seconds_per_token"`
	SecondsPerStep  float64 `json:"seconds_per_step"`
	Groups          uint64  `json:"groups"`
	Restored        bool    `json:"restored"`
	// Busy is the share of endpoints with a prefill under way, of late, and Kappa
	// what each second of a request's own work is taken to cost those behind it.
	Busy  float64 `json:"busy_share"`
	Kappa float64 `json:"kappa"`
	// Late is by how many seconds first tokens come later than backlog, KV wait
	// and work say; estimates have it in them.
	Late float64 `json:"late_seconds"`
	// KVRoom: requests are kept from engines whose KV memory is full. KVRoomOff
	// says why not.
	KVRoom    bool   `json:"kv_room"`
	KVRoomOff string `json:"kv_room_off,omitempty"`
	// Kinds are the model's engines by endpoints[].kind.
	Kinds map[string]kindStatus `json:"kinds"`
}

// kindStatus is what was learned of one kind of engine.
type kindStatus struct {
	SecondsPerToken float64 `json:"seconds_per_token"`
	SecondsPerStep  float64 `json:"seconds_per_step"`
	Groups          uint64  `json:"groups"`
	// HeldSeconds is how long a request holds KV memory after its first token,
	// OutputTokens how many tokens its answer has.
	HeldSeconds  float64 `json:"held_seconds"`
	OutputTokens float64 `json:"output_tokens"`
}

func (s *service) poolStatus(p scoring.PoolStats) poolStatus {
	view := poolStatus{
		SecondsPerToken: p.SecondsPerToken, SecondsPerStep: p.SecondsPerStep, Groups: p.Groups, Restored: p.Restored,
		Busy: p.Busy, Kappa: p.Kappa, Late: p.Late, KVRoom: p.KVRoom, Kinds: make(map[string]kindStatus, len(p.Kinds)),
	}
	for label, k := range p.Kinds {
		view.Kinds[label] = kindStatus(k)
	}
	switch {
	case p.KVRoom:
	case !s.cfg.Scoring.KVRoom:
		view.KVRoomOff = "scoring.kv_room is false"
	case !s.cfg.Counters.Enabled:
		view.KVRoomOff = "counters.enabled is false, so no engine's capacity is known"
	case len(p.NoCapacity) > 0:
		view.KVRoomOff = "capacity is not known of " + strings.Join(p.NoCapacity, ", ")
	default:
		view.KVRoomOff = "no endpoint is ready"
	}
	return view
}

// endpointStatus is one endpoint.
type endpointStatus struct {
	Name    string   `json:"name"`
	Address string   `json:"address"`
	Cluster string   `json:"cluster"`
	Models  []string `json:"models"`
	Ready   bool     `json:"ready"`
	// Role is absent where the engine takes whole requests.
	Role scoring.Role `json:"role,omitempty"`
	// Draining: it gets no new requests because its configuration says so.
	Draining bool `json:"draining,omitempty"`
	// Suspended: it let the deadline of a first token pass without a word; it gets
	// no requests where others serve its models. Trial is when it is asked for a
	// token.
	Suspended bool       `json:"suspended,omitempty"`
	Trial     *time.Time `json:"trial,omitempty"`
	// Probed is when the last health probe ended; null before the first. Fault
	// is why it failed.
	Probed *time.Time `json:"probed"`
	Fault  string     `json:"fault,omitempty"`
	// QueuedSeconds estimates how long the queued prefill work takes.
	QueuedSeconds float64 `json:"queued_seconds"`
	QueuedWork    float64 `json:"queued_work"`
	Waiting       int     `json:"waiting"`
	Decoding      int     `json:"decoding"`
	// DecodingFrom says where that is known from: ends, engine or predicted.
	DecodingFrom scoring.DecodingSource `json:"decoding_from"`
	// KVTokens is how much KV memory the requests in flight hold there, of
	// KVCapacity tokens; 0: not known.
	KVTokens   scoring.Tokens `json:"kv_tokens"`
	KVCapacity scoring.Tokens `json:"kv_capacity_tokens"`
	// OptimisticBlocks are blocks of prompts under way, or just over, that count
	// as cached until a source shows them.
	OptimisticBlocks int `json:"optimistic_blocks"`
	// Instance is the LMCache instance whose reports count here; empty: none.
	Instance string `json:"lmcache_instance,omitempty"`
	// Counters are what the engine says of itself; null where that is not read.
	Counters *counters.Status `json:"counters"`
	// Memory is what we believe it to hold of what was routed there; it counts
	// where no other source knows the endpoint.
	Memory *routed.Status `json:"memory"`
	// Sources are those that tell what the endpoint has cached, or should, with
	// what speaks for and against each.
	Sources []fidelity.SourceStatus `json:"sources"`
	// Findings are what else keeps its caches from being known.
	Findings []fidelity.Finding `json:"findings,omitempty"`
}

func (s *service) status() status {
	ledger := s.picker.Stats()
	owed := make(map[scoring.EndpointID]scoring.EndpointStats, len(ledger.Endpoints))
	for _, e := range ledger.Endpoints {
		owed[e.Endpoint.ID] = e
	}
	view := status{
		Version:       version(),
		Started:       s.started,
		Policy:        s.cfg.Scoring.Policy,
		ModelPolicies: s.cfg.Scoring.ModelPolicies(),
		Choosing:      s.choosing.view(),
		Arms:          []armStatus{},
		Models:        []modelStatus{},
		Fleet:         []endpointStatus{},
		OpenBookings:  ledger.Open,
		Held:          ledger.Held,
		Pools:         make(map[string]poolStatus, len(ledger.Pools)),
	}
	for _, arm := range s.arms.Load().Arms {
		view.Arms = append(view.Arms, armStatus(arm))
	}
	for model, p := range ledger.Pools {
		view.Pools[model] = s.poolStatus(p)
	}
	for _, m := range s.cfg.Prompt.Models {
		view.Models = append(view.Models, modelStatus{m.Name, m.Tokenizer, s.encoder.Model(m.Name) != nil, s.encoder.State(m.Name), nil})
	}
	for _, ids := range s.ids.Status() {
		i := slices.IndexFunc(view.Models, func(m modelStatus) bool { return m.Name == ids.Model })
		view.Models[i].IDs = &ids
	}
	var instances map[scoring.EndpointID]string
	if s.source != nil {
		mapping := s.source.Mapping()
		instances = mapping.Instances
		view.LMCache = &lmcacheStatus{Addresses: *s.bound().LMCache, Workers: s.controller.Status(), Unmapped: []unmapped{}}
		if s.hashing != nil {
			view.LMCache.Hashing = s.hashing.Status()
		}
		for _, u := range mapping.Unmapped {
			view.LMCache.Unmapped = append(view.LMCache.Unmapped, unmapped(u))
		}
	}
	view.XDS = s.envoys.status()
	view.TLS, view.XDSTLS = tlsStatus(s.serverTLS), tlsStatus(s.envoys.tls)
	view.Config = s.reloader.view()
	view.Coordinator, view.Asked = s.mp.status(), s.mp.elsewhere()
	if s.events != nil {
		view.KVEvents = s.events.Status()
	}
	counted := s.counted()
	for _, e := range s.watcher.Status() {
		o, told := owed[e.Endpoint.ID], s.checker.Status(e.Endpoint.ID)
		row := endpointStatus{
			Name:          e.Endpoint.Name,
			Address:       e.Endpoint.Address,
			Cluster:       e.Endpoint.Cluster,
			Models:        e.Endpoint.Models,
			Ready:         e.Endpoint.Ready,
			Role:          e.Endpoint.Role,
			Draining:      e.Draining,
			Suspended:     e.Suspended,
			QueuedSeconds: o.Backlog.Seconds(),
			QueuedWork:    float64(o.QueuedArea),
			Waiting:       o.Waiting,
			Decoding:      o.Decoding,
			DecodingFrom:  o.DecodingFrom,
			KVTokens:      o.HeldTokens,
			KVCapacity:    o.CapacityTokens,

			OptimisticBlocks: o.OptimisticBlocks,

			Instance: instances[e.Endpoint.ID],
			Counters: counted[e.Endpoint.ID],
			Memory:   s.memory.Status(e.Endpoint.ID),
			Sources:  told.Sources,
			Findings: told.Findings,
		}
		if e.Suspended {
			row.Trial = &e.Trial
		}
		if !e.Probed.IsZero() {
			row.Probed = &e.Probed
		}
		if e.Fault != nil {
			row.Fault = e.Fault.Error()
		}
		view.Fleet = append(view.Fleet, row)
	}
	return view
}
