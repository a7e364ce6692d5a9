package envoy

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// Config is what a bootstrap is made of.
type Config struct {
	// Listen is the host:port that clients reach; Admin that of Envoy's admin
	// interface, to be kept on loopback. Port 0 lets the system choose.
	Listen, Admin string
	// Service is where the service listens: host:port, or unix:/path.
	Service string
	// Standby are where further services listen, in order of priority: each is
	// asked while all before it are not healthy. They must be set up alike. Nil:
	// there is none.
	Standby []string
	// ServiceTLS says how the service is spoken to where it speaks TLS; nil where
	// it does not.
	ServiceTLS *PortTLS
	// DecisionDeadline is the service's own, above zero. Envoy's patience is set
	// above it, so that a choice which comes late is not lost.
	DecisionDeadline time.Duration
	// MaxMessageTimeout is the longest time that the service may ask Envoy to
	// wait for one answer, for requests that it holds: at most an hour. 0: it
	// holds none, and may not ask.
	MaxMessageTimeout time.Duration
	// Rescue is set where the service gives tries a deadline; nil: it does not.
	Rescue *Rescue
	// Canary is set where only some requests are put before the service; nil: all.
	Canary *Canary
	// BodyLimit is the service's own limit in bytes. Envoy's is set above it,
	// so that the client of too long a body gets the service's answer.
	BodyLimit int
	// BodyMode is how the service is shown requests; empty: BodyBuffered.
	BodyMode BodyMode
	// Route says how Envoy is told the choice.
	Route Route
	// Endpoints are the engines, in any order.
	Endpoints []Endpoint
	// CAFile is a PEM file of the authorities that https endpoints are
	// verified with; SkipVerify accepts any certificate.
	CAFile     string
	SkipVerify bool
	// Shadow: requests are shown to the service and go where they would without
	// it; nil: it chooses.
	Shadow *Shadow
}

// PortTLS is how a port of the service is spoken to. Files are paths on the
// machine that Envoy runs on.
type PortTLS struct {
	// CAFile is a PEM file of the authorities that must have signed the port's
	// certificate, which must be made out to the address that Envoy dials. Empty:
	// any certificate is taken.
	CAFile string
	// CertFile and KeyFile are what Envoy shows of itself; empty: nothing.
	CertFile, KeyFile string
}

// Endpoint is one engine as Envoy dials it.
type Endpoint struct {
	// Address is host:port. Names are resolved by Envoy.
	Address string
	// Cluster names the cluster of this endpoint alone, for RouteClusterHeader;
	// empty: the address.
	Cluster string
	// TLS: the engine speaks https.
	TLS bool
}

// Route is a way to tell Envoy the choice.
type Route string

// The ways.
const (
	// RouteOverrideHost: one cluster of all endpoints, whose balancer obeys
	// the destination header and goes down its list when it retries.
	RouteOverrideHost Route = "override-host"
	// RouteClusterHeader: one cluster for each endpoint, named by a header.
	// There is no retry on another endpoint.
	RouteClusterHeader Route = "cluster-header"
)

// The names of the clusters that are not an endpoint's own.
const (
	clusterService    = "firsttoken"
	clusterManagement = "firsttoken-xds"
	clusterPool       = "pool"
)

// systemAuthorities is where Debian and its relatives keep them.
const systemAuthorities = "/etc/ssl/certs/ca-certificates.crt"

// deadlineMargin is the time for a body to reach the service, for what it does
// after its deadline, and for its answer.
const deadlineMargin = 500 * time.Millisecond

// maxMessageTimeout is the largest that Envoy takes.
const maxMessageTimeout = time.Hour

// bodyLimitMargin keeps Envoy's own limit above the service's.
const bodyLimitMargin = 1 << 20

// cluster is the name of the endpoint's own cluster.
func (e Endpoint) cluster() string {
	if e.Cluster != "" {
		return e.Cluster
	}
	return e.Address
}

// validate joins all faults of a config without xDS.
func (c Config) validate() error {
	faults := []error{c.validateService(), c.ValidateResources()}
	if len(c.Endpoints) == 0 && (c.Shadow == nil || c.Shadow.Router == "") {
		faults = append(faults, errors.New("endpoints: there is none; name at least one engine"))
	}
	clusters := map[string]string{}
	for _, e := range c.Endpoints {
		if _, _, err := splitAddress(e.Address); err != nil {
			faults = append(faults, fmt.Errorf("endpoint: %w", err))
		}
		if c.Route != RouteClusterHeader {
			continue
		}
		owner := ReservedCluster(e.cluster())
		if other, ok := clusters[e.cluster()]; ok {
			owner = other
		}
		if owner != "" {
			faults = append(faults, fmt.Errorf("endpoint %s: cluster %q is that of %s; write another", e.Address, e.cluster(), owner))
		}
		clusters[e.cluster()] = e.Address
	}
	return errors.Join(faults...)
}

// ReservedCluster is what a cluster of this name would be, where it may be no
// endpoint's own; else empty.
func ReservedCluster(name string) string {
	if strings.HasPrefix(name, recordClusterPrefix) {
		return "the access log of a service"
	}
	return map[string]string{
		clusterService: "the service itself", clusterManagement: "the service's xDS server", clusterShadow: "the service that watches", clusterPool: "the pool of all endpoints",
		clusterPlain: "the endpoints that a canary leaves to Envoy",
	}[name]
}

// validateService joins all faults of what is this Envoy's own.
func (c Config) validateService() error {
	var faults []error
	if _, _, err := splitAddress(c.Admin); err != nil {
		faults = append(faults, fmt.Errorf("admin: %w", err))
	}
	if !strings.HasPrefix(c.Service, unixScheme) {
		if _, _, err := splitAddress(c.Service); err != nil {
			faults = append(faults, fmt.Errorf("service: %w", err))
		}
	}
	faults = append(faults, c.validateStandby())
	return errors.Join(faults...)
}

// ValidateResources joins all faults of what listeners, routes and clusters are
// made of.
func (c Config) ValidateResources() error {
	var faults []error
	if _, _, err := splitAddress(c.Listen); err != nil {
		faults = append(faults, fmt.Errorf("listen: %w", err))
	}
	if c.DecisionDeadline <= 0 {
		faults = append(faults, fmt.Errorf("decision deadline: is %s; write the service's own", c.DecisionDeadline))
	}
	if c.MaxMessageTimeout < 0 || c.MaxMessageTimeout > maxMessageTimeout {
		faults = append(faults, fmt.Errorf("max message timeout: is %s; write 0s to %s", c.MaxMessageTimeout, maxMessageTimeout))
	}
	if c.BodyLimit <= 0 {
		faults = append(faults, fmt.Errorf("body limit: is %d; write the number of bytes that the service takes", c.BodyLimit))
	}
	if c.BodyMode != "" && c.BodyMode != BodyBuffered && c.BodyMode != BodyFullDuplex {
		faults = append(faults, fmt.Errorf("body mode: %q is unknown; write %s or %s", c.BodyMode, BodyBuffered, BodyFullDuplex))
	}
	if c.Route != RouteOverrideHost && c.Route != RouteClusterHeader {
		faults = append(faults, fmt.Errorf("route: %q is unknown; write %s or %s", c.Route, RouteOverrideHost, RouteClusterHeader))
	}
	return errors.Join(append(faults, c.rescueFaults(), c.shadowFaults(), c.canaryFaults())...)
}

// splitAddress is net.SplitHostPort with the port as a number.
func splitAddress(address string) (host string, port uint32, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, fmt.Errorf("%q is no address (%w); write host:port", address, err)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("%q has no numeric port; write host:port", address)
	}
	return host, uint32(n), nil
}
