package xds

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/peer"

	"github.com/firsttoken/firsttoken/envoy"
)

// envoys keeps what every Envoy has been told and has taken.
type envoys struct {
	log     *slog.Logger // set once
	metrics *Metrics     // set once

	// mu guards the following fields.
	mu sync.Mutex
	// open has an entry for each stream, which bounds it.
	open map[streamKey]*client
	// changed is closed, and made anew, when a client has answered or left.
	changed chan struct{}
}

// streamKey names a stream: each protocol counts its own.
type streamKey struct {
	protocol envoy.Protocol
	id       int64
}

// client is one Envoy's stream. All fields are guarded by envoys.mu.
type client struct {
	node, address string
	since         time.Time
	// asked are the types that it wants, told is what was sent last of each.
	// All are bounded by the types that we tell of.
	asked map[string]bool
	told  map[string]told
	// refused is Envoy's word on the last version that it did not take, by type.
	refused map[string]string
}

// told is one message: its nonce comes back with the answer.
type told struct {
	nonce, version string
	answered       bool
}

func newEnvoys(log *slog.Logger, metrics *Metrics) *envoys {
	return &envoys{log: log, metrics: metrics, open: make(map[streamKey]*client), changed: make(chan struct{})}
}

func (e *envoys) opened(ctx context.Context, key streamKey) {
	c := &client{since: time.Now(), asked: make(map[string]bool), told: make(map[string]told), refused: make(map[string]string)}
	if p, ok := peer.FromContext(ctx); ok {
		c.address = p.Addr.String()
	}
	e.mu.Lock()
	e.open[key] = c
	e.mu.Unlock()
	e.metrics.streams.WithLabelValues(string(key.protocol)).Inc()
}

func (e *envoys) closed(key streamKey) {
	e.mu.Lock()
	c := e.open[key]
	delete(e.open, key)
	e.wakeLocked()
	e.mu.Unlock()
	e.metrics.streams.WithLabelValues(string(key.protocol)).Dec()
	if c != nil {
		e.log.Info("Envoy has left the xDS server", "node", c.node, "address", c.address)
	}
}

// sent notes a message on its way.
func (e *envoys) sent(key streamKey, typeURL, nonce, version string) {
	e.metrics.sent.WithLabelValues(kindOf(typeURL)).Inc()
	e.mu.Lock()
	defer e.mu.Unlock()
	if c := e.open[key]; c != nil {
		c.told[typeURL] = told{nonce: nonce, version: version}
	}
}

// heard takes in a request, which may be the answer to what was sent. Where it is
// one that refuses, it returns the version which was refused.
func (e *envoys) heard(key streamKey, node *corev3.Node, typeURL, nonce string, fault *status.Status) (version string, refused bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	c := e.open[key]
	if c == nil {
		return "", false
	}
	if c.node == "" && node != nil {
		c.node = shortNode(node.GetId())
		e.log.Info("Envoy asks the xDS server", "node", c.node, "address", c.address, "protocol", key.protocol)
	}
	if _, ours := kinds[typeURL]; !ours {
		return "", false
	}
	c.asked[typeURL] = true
	last, ok := c.told[typeURL]
	if !ok || nonce == "" || last.nonce != nonce || last.answered {
		return "", false
	}
	defer e.wakeLocked()
	last.answered = true
	c.told[typeURL] = last
	if fault != nil {
		c.refused[typeURL] = fault.GetMessage()
		e.metrics.answers.WithLabelValues(kindOf(typeURL), "rejected").Inc()
		e.log.Error("Envoy does not take its configuration and goes on with what it had", "node", c.node, "address", c.address,
			"kind", kindOf(typeURL), "error", fault.GetMessage())
	} else {
		delete(c.refused, typeURL)
		e.metrics.answers.WithLabelValues(kindOf(typeURL), "accepted").Inc()
	}
	return last.version, fault != nil
}

// wakeLocked wakes who awaits answers. Caller must hold mu.
func (e *envoys) wakeLocked() {
	close(e.changed)
	e.changed = make(chan struct{})
}

// await returns when every Envoy that asks for the type has answered to
// version, or when ctx ends; it reports which Envoys have not.
func (e *envoys) await(ctx context.Context, typeURL, version string) (missing []string) {
	for {
		missing, changed := e.missing(typeURL, version)
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return missing
		}
	}
}

func (e *envoys) missing(typeURL, version string) (nodes []string, changed <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.open {
		if last := c.told[typeURL]; c.asked[typeURL] && (last.version != version || !last.answered) {
			nodes = append(nodes, c.node)
		}
	}
	return nodes, e.changed
}

// status lists the streams, the oldest first.
func (e *envoys) status(newest map[string]string) []EnvoyStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := make([]EnvoyStatus, 0, len(e.open))
	for key, c := range e.open {
		row := EnvoyStatus{Node: c.node, Address: c.address, Protocol: string(key.protocol), Since: c.since, Current: len(c.told) > 0 && len(c.refused) == 0}
		// What it has had since before this stream is not told again.
		for typeURL, last := range c.told {
			row.Current = row.Current && last.answered && last.version == newest[typeURL]
		}
		for typeURL, fault := range c.refused {
			row.Faults = append(row.Faults, kindOf(typeURL)+": "+fault)
		}
		slices.Sort(row.Faults)
		list = append(list, row)
	}
	slices.SortFunc(list, func(a, b EnvoyStatus) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.Address, b.Address))
	})
	return list
}
