package discovery

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/firsttoken/firsttoken/scoring"
)

// KVEventsEntry says where the engine publishes its KV cache events, in the
// words of its --kv-events-config.
type KVEventsEntry struct {
	// Endpoint is where the engine publishes, such as tcp://*:5557; the host *
	// stands for the engine's own address. Empty: it publishes none.
	Endpoint string `yaml:"endpoint"`
	// ReplayEndpoint is where the engine is asked for what we missed or came too
	// late for, such as tcp://*:5558. Empty: nowhere; after a message that is
	// missed, all that was known of the engine is forgotten.
	ReplayEndpoint string `yaml:"replay_endpoint"`
	// Topic is what the engine publishes under. Empty: any topic is taken.
	Topic string `yaml:"topic"`
	// Bind makes us listen at endpoint, where the engine connects: vLLM does
	// where its endpoint has no *. Engines may share one by different topics.
	Bind bool `yaml:"bind"`
	// DataParallelRanks is the engine's --data-parallel-size, if it serves all
	// ranks at one address: each publishes one port up from the one before. 0: 1.
	DataParallelRanks int `yaml:"data_parallel_ranks"`
	// CapacityTokens bounds how much each rank is believed to hold, for engines
	// that do not tell of all that they remove.
	CapacityTokens CapacityTokens `yaml:"capacity_tokens"`
}

// CapacityTokens is how many tokens each tier of an engine's cache holds. Past
// it the blocks longest not announced are forgotten. Guess high.
type CapacityTokens struct {
	// GPU is the engine's own cache, num_gpu_blocks times block_size. 0: what
	// its counters tell, where they are read; vLLM tells of what it removes.
	GPU scoring.Tokens `yaml:"gpu"`
	// CPU is host memory, of vLLM's or LMCache's offloading. 0: 2,000,000.
	CPU scoring.Tokens `yaml:"cpu"`
	// Storage is everything slower. 0: 20,000,000.
	Storage scoring.Tokens `yaml:"storage"`
}

// What is believed of tiers whose capacity is not told: host memory of 256 GB
// with 128 KB for each token, and ten times that.
const (
	defaultCPUTokens     = 2_000_000
	defaultStorageTokens = 20_000_000
)

// maxRanks is far above what anybody runs in one engine.
const maxRanks = 1024

// feed is where the events of one engine are. alone says that the entry has no
// other address: else an address or a topic cannot mean one engine, unless it
// follows the engine's own.
func (e KVEventsEntry) feed(alone bool) scoring.EventFeed {
	if e.Endpoint == "" || (!alone && (e.Bind || !strings.HasPrefix(e.Endpoint, "tcp://*:"))) {
		return scoring.EventFeed{}
	}
	return scoring.EventFeed{
		Endpoint: e.Endpoint, Replay: e.ReplayEndpoint, Topic: e.Topic, Bind: e.Bind, Ranks: max(1, e.DataParallelRanks),
		Capacity: scoring.TierCapacity{
			GPU:     e.CapacityTokens.GPU,
			CPU:     cmp.Or(e.CapacityTokens.CPU, defaultCPUTokens),
			Storage: cmp.Or(e.CapacityTokens.Storage, defaultStorageTokens),
		},
	}
}

func (e KVEventsEntry) validate(path string) []error {
	if e.Endpoint == "" {
		if e != (KVEventsEntry{}) {
			return []error{fmt.Errorf("%s.endpoint: is empty; write the engine's, such as tcp://*:5557, or leave kv_events out", path)}
		}
		return nil
	}
	var faults []error
	if e.DataParallelRanks < 0 || e.DataParallelRanks > maxRanks {
		faults = append(faults, fmt.Errorf("%s.data_parallel_ranks: is %d; write a number between 1 and %d", path, e.DataParallelRanks, maxRanks))
		e.DataParallelRanks = 1
	}
	for _, a := range []struct{ key, value string }{{"endpoint", e.Endpoint}, {"replay_endpoint", e.ReplayEndpoint}} {
		if a.value == "" {
			continue
		}
		if _, err := eventPorts(a.value, e.DataParallelRanks); err != nil {
			faults = append(faults, fmt.Errorf("%s.%s: %w", path, a.key, err))
		}
	}
	for _, c := range []struct {
		key   string
		value scoring.Tokens
	}{{"gpu", e.CapacityTokens.GPU}, {"cpu", e.CapacityTokens.CPU}, {"storage", e.CapacityTokens.Storage}} {
		if c.value < 0 {
			faults = append(faults, fmt.Errorf("%s.capacity_tokens.%s: is %d; write the tokens that fit, or 0", path, c.key, c.value))
		}
	}
	return faults
}

var errEventAddress = errors.New("write tcp://host:port, or tcp://*:port for the engine's own address")

// eventPorts are the addresses of all ranks, host:port.
func eventPorts(address string, ranks int) ([]string, error) {
	hostPort, ok := strings.CutPrefix(address, "tcp://")
	if !ok {
		return nil, fmt.Errorf("%q has not the scheme tcp; %w", address, errEventAddress)
	}
	host, text, err := net.SplitHostPort(hostPort)
	if err != nil || host == "" {
		return nil, fmt.Errorf("%q is not an address; %w", address, errEventAddress)
	}
	port, err := strconv.ParseUint(text, 10, 16)
	last := int(port) + max(0, ranks-1)
	if err != nil || port == 0 || last > 65535 {
		return nil, fmt.Errorf("%q has the port %s; write one between 1 and 65535, with room for one of each rank", address, text)
	}
	var list []string
	for p := int(port); p <= last; p++ {
		list = append(list, net.JoinHostPort(host, strconv.Itoa(p)))
	}
	return list, nil
}

// doubledFeeds finds entries that would take each other's events: at one
// address only topics tell engines apart.
func doubledFeeds(path string, entries []Entry) []error {
	type claim struct {
		entry int
		topic string
	}
	var faults []error
	claims := make(map[string][]claim)
	for i, e := range entries {
		ports, err := eventPorts(e.KVEvents.Endpoint, e.KVEvents.DataParallelRanks)
		target, invalid := parseAddress(e.Address)
		if err != nil || invalid != nil {
			continue // Named by validate.
		}
		told := false
		for _, at := range ports {
			if !e.KVEvents.Bind {
				at = strings.Replace(at, "*", target.host, 1)
			}
			for _, c := range claims[at] {
				if !told && (c.topic == "" || e.KVEvents.Topic == "" || c.topic == e.KVEvents.Topic) {
					faults = append(faults, fmt.Errorf("%s[%d].kv_events.endpoint: takes %s, where %s[%d] has its events too; give each its own port, or its own topic", path, i, at, path, c.entry))
					told = true
				}
			}
			claims[at] = append(claims[at], claim{i, e.KVEvents.Topic})
		}
	}
	return faults
}
