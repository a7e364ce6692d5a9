package discovery

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Config says how the endpoints are watched.
type Config struct {
	// ProbePath is the path of the health probe, a GET that an engine which
	// can serve answers with a 2xx status.
	ProbePath string `yaml:"probe_path"`
	// ProbeInterval is the time between two health probes of an endpoint.
	ProbeInterval time.Duration `yaml:"probe_interval"`
	// ProbeTimeout bounds one health probe, and each question for models,
	// connection included.
	ProbeTimeout time.Duration `yaml:"probe_timeout"`
	// ProbeFailures is how many probes in a row must fail before an endpoint
	// that was ready gets no more requests. One success brings it back.
	ProbeFailures int `yaml:"probe_failures"`
	// ModelsInterval is the time after which an engine whose models are not
	// configured is asked anew which it serves. It is asked at once when it
	// comes back from being down.
	ModelsInterval time.Duration `yaml:"models_interval"`
	// ResolveInterval is the time after which a host name is resolved anew.
	ResolveInterval time.Duration `yaml:"resolve_interval"`
	// DNSServer is the ip:port of the DNS server that is asked for names; empty:
	// those of the system.
	DNSServer string `yaml:"dns_server"`
	// TLS says how https endpoints are verified: in our own calls, and by Envoy
	// in the config that "firsttoken envoy bootstrap" prints.
	TLS TLSConfig `yaml:"tls"`
}

// TLSConfig says how https endpoints are verified.
type TLSConfig struct {
	// CAFile is a PEM file of the authorities to trust in place of the
	// system's. The printed config names it to Envoy by its absolute path.
	CAFile string `yaml:"ca_file"`
	// SkipVerify accepts any certificate.
	SkipVerify bool `yaml:"skip_verify"`
}

// Entry is one endpoint as the operator writes it. A host name that resolves
// to several addresses makes one endpoint of each.
type Entry struct {
	// Name labels logs and metrics; empty: host:port of the address.
	Name string `yaml:"name"`
	// Address is where the engine listens: host:port, http://host:port or
	// https://host:port; or http+srv://name or https+srv://name, where each SRV
	// record of the name is an engine, whatever its priority and weight.
	Address string `yaml:"address"`
	// Models are the names that the engine serves, its own first, then
	// aliases; empty: the engine is asked (/v1/models).
	Models []string `yaml:"models"`
	// Kind labels the kind of engine, hardware and settings, for
	// scoring.fit_per_kind; all without a label are of one kind.
	Kind string `yaml:"kind"`
	// Role is what the engine does of a request: both (also where it is empty), or
	// prefill or decode alone. One that does a part only is probed and shown, but
	// never chosen for a whole request, nor does Envoy's fallback send it any.
	Role string `yaml:"role"`
	// Cluster is the Envoy cluster that holds this endpoint alone, for routes
	// with cluster_header; empty: the name. Where the host name has several
	// addresses no cluster is told, only the address.
	Cluster string `yaml:"cluster"`
	// Drain keeps new requests from the engine; those under way go on. Nothing is
	// lost when it is stopped after the last of them.
	Drain bool `yaml:"drain"`
	// LMCache tells which LMCache instance the engine runs.
	LMCache LMCacheEntry `yaml:"lmcache"`
	// KVEvents tells where the engine publishes its KV cache events. A host name
	// of several engines needs an endpoint with the host *, and no bind.
	KVEvents KVEventsEntry `yaml:"kv_events"`
}

// LMCacheEntry says how LMCache reports of this engine are recognised. Where
// all is empty, the engine's ip decides, if only one instance has it.
type LMCacheEntry struct {
	// Instance is the engine's lmcache_instance_id.
	Instance string `yaml:"instance"`
	// Server is the --instance-id of the lmcache server that the engine uses, in
	// multiprocess mode; the engines of a node have the same.
	Server string `yaml:"server"`
	// WorkerPort is the LMCache worker's port (lmcache_worker_ports) of the
	// first rank. It is never the engine's HTTP port.
	WorkerPort int `yaml:"worker_port"`
	// Group names the chunk key settings of this engine; empty: those of its
	// model.
	Group string `yaml:"group"`
}

// DefaultConfig is what holds where the operator says nothing.
func DefaultConfig() Config {
	return Config{
		ProbePath:       "/health",
		ProbeInterval:   2 * time.Second,
		ProbeTimeout:    3 * time.Second,
		ProbeFailures:   2,
		ModelsInterval:  time.Minute,
		ResolveInterval: 30 * time.Second,
	}
}

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	var faults []error
	if !strings.HasPrefix(c.ProbePath, "/") {
		faults = append(faults, fmt.Errorf("%s.probe_path: %q does not begin with a slash; write a path such as /health", path, c.ProbePath))
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{
		{"probe_interval", c.ProbeInterval},
		{"probe_timeout", c.ProbeTimeout},
		{"models_interval", c.ModelsInterval},
		{"resolve_interval", c.ResolveInterval},
	} {
		if d.value < time.Millisecond {
			faults = append(faults, fmt.Errorf("%s.%s: is %s; write a duration of at least 1ms, such as 2s", path, d.key, d.value))
		}
	}
	if c.ProbeFailures < 1 {
		faults = append(faults, fmt.Errorf("%s.probe_failures: is %d; write a number of at least 1", path, c.ProbeFailures))
	}
	if c.DNSServer != "" {
		if _, err := netip.ParseAddrPort(c.DNSServer); err != nil {
			faults = append(faults, fmt.Errorf("%s.dns_server: %q is no ip:port; write such as 10.0.0.10:53", path, c.DNSServer))
		}
	}
	if c.TLS.CAFile != "" {
		if _, err := c.TLS.authorities(); err != nil {
			faults = append(faults, fmt.Errorf("%s.tls.ca_file: %w", path, err))
		}
		if c.TLS.SkipVerify {
			faults = append(faults, fmt.Errorf("%s.tls: ca_file and skip_verify exclude each other; write one of them", path))
		}
	}
	return errors.Join(faults...)
}

// ValidateEntries joins all faults of the list of endpoints, each beginning
// with its path below path. An empty list is no fault here.
func ValidateEntries(path string, entries []Entry) error {
	var faults []error
	names, addresses := make(map[string]int), make(map[string]int)
	for i, e := range entries {
		at := fmt.Sprintf("%s[%d]", path, i)
		faults = append(faults, e.validate(at)...)
		target, err := parseAddress(e.Address)
		if err != nil {
			continue // Named by validate.
		}
		name := cmp.Or(e.Name, target.hostPort())
		if first, ok := names[name]; ok {
			faults = append(faults, fmt.Errorf("%s.name: %q is the name of %s[%d] too; write another", at, name, path, first))
		} else {
			names[name] = i
		}
		if first, ok := addresses[target.hostPort()]; ok {
			faults = append(faults, fmt.Errorf("%s.address: %q is the address of %s[%d] too; each engine is listed once", at, e.Address, path, first))
		} else {
			addresses[target.hostPort()] = i
		}
	}
	faults = append(faults, doubledInstances(path, entries)...)
	faults = append(faults, doubledFeeds(path, entries)...)
	return errors.Join(faults...)
}

func (e Entry) validate(path string) []error {
	var faults []error
	if _, err := parseAddress(e.Address); err != nil {
		faults = append(faults, fmt.Errorf("%s.address: %w", path, err))
	}
	faults = append(faults, e.validateRole(path)...)
	seen := make(map[string]bool, len(e.Models))
	for i, m := range e.Models {
		switch {
		case m == "":
			faults = append(faults, fmt.Errorf("%s.models[%d]: is empty; write the name that clients send as \"model\"", path, i))
		case seen[m]:
			faults = append(faults, fmt.Errorf("%s.models[%d]: %q is listed twice", path, i, m))
		}
		seen[m] = true
	}
	if p := e.LMCache.WorkerPort; p < 0 || p > 65535 {
		faults = append(faults, fmt.Errorf("%s.lmcache.worker_port: is %d; write a port between 1 and 65535", path, p))
	}
	return append(faults, e.KVEvents.validate(path+".kv_events")...)
}

// doubledInstances finds LMCache instances that two entries claim: the keys of
// an instance are in one engine only.
func doubledInstances(path string, entries []Entry) []error {
	var faults []error
	seen := make(map[string]int)
	for i, e := range entries {
		instance := e.LMCache.Instance
		if instance == "" {
			continue
		}
		if first, ok := seen[instance]; ok {
			faults = append(faults, fmt.Errorf("%s[%d].lmcache.instance: %q is the instance of %s[%d] too; each engine has its own", path, i, instance, path, first))
			continue
		}
		seen[instance] = i
	}
	return faults
}

// target is a parsed address: where an engine is, before names are resolved.
type target struct {
	scheme string // http or https
	host   string // a name in lower case, or an IP without brackets
	port   uint16 // 0 where srv
	srv    bool   // host names SRV records, which tell the ports
}

// hostPort is how the target is called.
func (t target) hostPort() string {
	if t.srv {
		return t.host
	}
	return net.JoinHostPort(t.host, strconv.Itoa(int(t.port)))
}

// literal is the IP, where the host is one and needs no resolving.
func (t target) literal() (netip.Addr, bool) {
	ip, err := netip.ParseAddr(t.host)
	return ip.Unmap(), err == nil
}

var errAddress = errors.New("write host:port, http://host:port, https://host:port, or http+srv://name for SRV records")

func parseAddress(address string) (target, error) {
	if address == "" {
		return target{}, fmt.Errorf("is empty; %w", errAddress)
	}
	text := address
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" {
		return target{}, fmt.Errorf("%q is not an address; %w", address, errAddress)
	}
	scheme, srv := strings.CutSuffix(u.Scheme, "+srv")
	switch {
	case scheme != "http" && scheme != "https":
		return target{}, fmt.Errorf("%q has the scheme %q; %w", address, u.Scheme, errAddress)
	case u.User != nil:
		// The address is not repeated: it holds a secret.
		return target{}, errors.New("holds user or password; give the key in the environment as VLLM_API_KEY")
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return target{}, fmt.Errorf("%q has a path or query, but Envoy sends the client's own path; %w", address, errAddress)
	case strings.Contains(u.Hostname(), "%"):
		return target{}, fmt.Errorf("%q has an IPv6 zone, which Envoy cannot dial by ip:port; write an address without zone", address)
	}
	port := u.Port()
	if srv {
		if port != "" || strings.HasSuffix(u.Host, ":") {
			return target{}, fmt.Errorf("%q has a port, but SRV records tell it; write %s+srv://name", address, scheme)
		}
		if _, err := netip.ParseAddr(u.Hostname()); err == nil {
			return target{}, fmt.Errorf("%q is an address, but SRV records belong to a name; write %s://ip:port", address, scheme)
		}
		return target{scheme: scheme, host: strings.ToLower(u.Hostname()), srv: true}, nil
	}
	if port == "" {
		if !strings.Contains(address, "://") || strings.HasSuffix(u.Host, ":") {
			return target{}, fmt.Errorf("%q has no port; %w", address, errAddress)
		}
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return target{}, fmt.Errorf("%q has the port %s; write one between 1 and 65535", address, port)
	}
	return target{scheme: scheme, host: strings.ToLower(u.Hostname()), port: uint16(n)}, nil
}

// readable reads a file named in the configuration.
func readable(file string) ([]byte, error) {
	content, err := os.ReadFile(file) //nolint:gosec // The operator names the file.
	if err != nil {
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	return content, nil
}
