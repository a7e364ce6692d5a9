package xds

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/firsttoken/firsttoken/certificate"
	"github.com/firsttoken/firsttoken/envoy"
)

// Config sets what Envoys are told at run time.
type Config struct {
	// Listen is where Envoys ask for their configuration: host:port, or
	// unix:/path. It is a port of its own, so that it can be kept from whoever
	// may ask for choices, and is there while the service is not ready or
	// drains. Empty: they get a static one ("firsttoken envoy bootstrap").
	Listen string `yaml:"listen"`
	// TLS makes that port speak TLS.
	TLS certificate.Config `yaml:"tls"`
	// EnvoyListen is the host:port on which each Envoy takes clients' requests.
	EnvoyListen string `yaml:"envoy_listen"`
	// Route is how Envoy is told the choice: override-host, or cluster-header
	// with a cluster for each engine.
	Route string `yaml:"route"`
	// BodyMode is how Envoy shows the service requests: buffered, or full-duplex,
	// as gateways with an InferencePool do. docs/gateways.md compares them.
	BodyMode string `yaml:"body_mode"`
	// Shadow lets Envoys choose by themselves, by least_request or round_robin, and
	// only show the service the requests. Their bootstrap must be printed anew then.
	// Empty: the service chooses.
	Shadow string `yaml:"shadow"`
	// Canary lets Envoys share requests out themselves: some are put before the
	// service, the others never meet it.
	Canary CanaryConfig `yaml:"canary"`
	// Linger is how long the cluster of a removed engine stays, for requests whose
	// choice was made before. It must be longer than Envoy waits for a choice,
	// half a second more than server.decision_deadline.
	Linger time.Duration `yaml:"linger"`
}

// CanaryConfig is what each Envoy begins with. POST /runtime_modify at its admin
// interface changes it, until it is restarted.
type CanaryConfig struct {
	// Enabled lets Envoys share out. Their bootstrap must be printed anew then, with
	// the runtime by which that can be changed.
	Enabled bool `yaml:"enabled"`
	// Percent is the share that is put before the service: 0 to 100.
	Percent int `yaml:"percent"`
	// Header is "name: value" of requests that are, whatever the share; without a
	// colon any value counts. Empty: none.
	Header string `yaml:"header"`
	// UserHeader names a header by whose value requests are shared out, so that all of
	// a user's are on one side; empty: each by itself.
	UserHeader string `yaml:"user_header"`
}

// Envoy is the canary as Envoy is told it; nil where there is none.
func (c CanaryConfig) Envoy() *envoy.Canary {
	if !c.Enabled {
		return nil
	}
	return &envoy.Canary{Percent: c.Percent, Header: c.Header, UserHeader: c.UserHeader}
}

// DefaultConfig is what holds where the operator says nothing.
func DefaultConfig() Config {
	return Config{EnvoyListen: "127.0.0.1:8080", Route: string(envoy.RouteOverrideHost), BodyMode: string(envoy.BodyBuffered), Linger: 10 * time.Second}
}

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	var faults []error
	if c.Listen != "" && !strings.HasPrefix(c.Listen, "unix:") {
		if _, _, err := net.SplitHostPort(c.Listen); err != nil {
			faults = append(faults, fmt.Errorf("%s.listen: %q is no address (%w); write host:port or unix:/path", path, c.Listen, err))
		}
	}
	if err := c.TLS.Validate(path + ".tls"); err != nil {
		faults = append(faults, err)
	} else if c.TLS.Enabled && strings.HasPrefix(c.Listen, "unix:") {
		faults = append(faults, fmt.Errorf("%s.tls.enabled: is true, but listen is a unix socket, which nobody else can read; write false", path))
	}
	if _, _, err := net.SplitHostPort(c.EnvoyListen); err != nil {
		faults = append(faults, fmt.Errorf("%s.envoy_listen: %q is no address (%w); write host:port", path, c.EnvoyListen, err))
	}
	if r := envoy.Route(c.Route); r != envoy.RouteOverrideHost && r != envoy.RouteClusterHeader {
		faults = append(faults, fmt.Errorf("%s.route: %q is unknown; write %s or %s", path, c.Route, envoy.RouteOverrideHost, envoy.RouteClusterHeader))
	}
	if m := envoy.BodyMode(c.BodyMode); m != envoy.BodyBuffered && m != envoy.BodyFullDuplex {
		faults = append(faults, fmt.Errorf("%s.body_mode: %q is unknown; write %s or %s", path, c.BodyMode, envoy.BodyBuffered, envoy.BodyFullDuplex))
	}
	switch b := envoy.Balancer(c.Shadow); {
	case c.Shadow != "" && b != envoy.LeastRequest && b != envoy.RoundRobin:
		faults = append(faults, fmt.Errorf("%s.shadow: %q is unknown; write %s, %s, or nothing where the service chooses", path, c.Shadow, envoy.LeastRequest, envoy.RoundRobin))
	case c.Shadow != "" && c.Route == string(envoy.RouteClusterHeader):
		faults = append(faults, fmt.Errorf("%s.route: is %s, but with %s.shadow nobody is told a choice; write %s", path, c.Route, path, envoy.RouteOverrideHost))
	}
	if c.Shadow != "" && c.BodyMode == string(envoy.BodyFullDuplex) {
		faults = append(faults, fmt.Errorf("%s.body_mode: is %s, but with %s.shadow bodies are shown as they pass; write %s", path, c.BodyMode, path, envoy.BodyBuffered))
	}
	if c.Shadow != "" && c.Canary.Enabled {
		faults = append(faults, fmt.Errorf("%s.canary.enabled: is true, but with %s.shadow the service makes no choices that could be tried; write false, or leave %s.shadow empty", path, path, path))
	}
	if err := c.Canary.Envoy().Validate(path + ".canary"); err != nil {
		faults = append(faults, err)
	}
	if c.Linger <= 0 {
		faults = append(faults, fmt.Errorf("%s.linger: is %s; write a duration above zero, such as 10s", path, c.Linger))
	}
	return errors.Join(faults...)
}
