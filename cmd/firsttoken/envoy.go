package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/envoy"
)

// newEnvoyCommand makes "firsttoken envoy": what Envoy must be told.
func newEnvoyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "envoy",
		Short: "Print what Envoy must be told",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newEnvoyBootstrapCommand())
	return cmd
}

// newEnvoyBootstrapCommand makes "firsttoken envoy bootstrap".
func newEnvoyBootstrapCommand() *cobra.Command {
	var service configFlags
	proxy := envoy.Config{}
	var route string
	cmd := &cobra.Command{
		Use:   "bootstrap {--config FILE | --backends HOST:PORT,…}",
		Short: "Print a complete Envoy config for the service's configuration",
		Long: "Bootstrap prints a static Envoy config (YAML) that asks the service of the given\n" +
			"configuration about every request and sends it to the engine chosen:\n\n" +
			"  firsttoken envoy bootstrap --config firsttoken.yml > envoy.yaml\n" +
			"  envoy -c envoy.yaml",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := service.load(cmd.Flags())
			if err != nil {
				return err
			}
			proxy.Route = envoy.Route(route)
			if err := forEnvoy(cfg, &proxy); err != nil {
				return err
			}
			text, err := envoy.Bootstrap(proxy)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	service.register(cmd.Flags())
	flags := cmd.Flags()
	flags.StringVar(&proxy.Listen, "envoy-listen", "127.0.0.1:8080", "`address` on which Envoy takes clients' requests")
	flags.StringVar(&proxy.Admin, "envoy-admin", "127.0.0.1:9901", "`address` of Envoy's admin interface; keep it on loopback")
	flags.StringVar(&proxy.Service, "service", "", "`address` at which Envoy reaches the service (default: the service's own --listen)")
	flags.StringVar(&route, "route", string(envoy.RouteOverrideHost), "how Envoy is told the choice: override-host or cluster-header")
	return cmd
}

// forEnvoy fills in what the service's configuration says. The error names
// what does not go together.
func forEnvoy(cfg config, proxy *envoy.Config) error {
	switch {
	case proxy.Route == envoy.RouteClusterHeader && !cfg.Server.ClusterHeader:
		return errors.New("--route cluster-header needs server.cluster_header: true in the service's configuration")
	case proxy.Route == envoy.RouteOverrideHost && !cfg.Server.DestinationHeader && !cfg.Server.DestinationMetadata:
		return errors.New("--route override-host needs server.destination_header or server.destination_metadata: true in the service's configuration")
	}
	proxy.Service = cmp.Or(proxy.Service, dialable(cfg.Server.Listen))
	proxy.BodyLimit, proxy.DecisionDeadline = cfg.Server.BodyLimit, cfg.Server.DecisionDeadline
	proxy.SkipVerify = cfg.Discovery.TLS.SkipVerify
	if file := cfg.Discovery.TLS.CAFile; file != "" {
		// Envoy may be started in another folder.
		absolute, err := filepath.Abs(file)
		if err != nil {
			return fmt.Errorf("discovery.tls.ca_file: %w", err)
		}
		proxy.CAFile = absolute
	}
	for _, e := range cfg.Endpoints {
		endpoint, err := endpointForEnvoy(e)
		if err != nil {
			return err
		}
		proxy.Endpoints = append(proxy.Endpoints, endpoint)
	}
	return nil
}

// endpointForEnvoy is how Envoy dials a valid entry. Its cluster has the name
// that discovery gives it.
func endpointForEnvoy(e discovery.Entry) (envoy.Endpoint, error) {
	address := e.Address
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return envoy.Endpoint{}, fmt.Errorf("endpoint %q: %w", e.Address, err)
	}
	https := u.Scheme == "https"
	port := u.Port()
	switch {
	case port != "":
	case https:
		port = "443"
	default:
		port = "80"
	}
	hostPort := net.JoinHostPort(strings.ToLower(u.Hostname()), port)
	return envoy.Endpoint{Address: hostPort, Cluster: cmp.Or(e.Cluster, e.Name, hostPort), TLS: https}, nil
}

// dialable is an address to reach a listener on this machine: one that listens
// everywhere is reached by loopback.
func dialable(listen string) string {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return listen // unix:/path
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "" || (err == nil && ip == netip.IPv4Unspecified()):
		return net.JoinHostPort("127.0.0.1", port)
	case err == nil && ip == netip.IPv6Unspecified():
		return net.JoinHostPort("::1", port)
	}
	return listen
}
