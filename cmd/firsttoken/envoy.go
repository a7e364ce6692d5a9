package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/extproc"
	"github.com/firsttoken/firsttoken/scoring"
)

// newEnvoyCommand makes "firsttoken envoy": what Envoy must be told.
func newEnvoyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "envoy",
		Short: "Print what Envoy must be told",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newEnvoyBootstrapCommand(), newEnvoyManifestsCommand())
	return cmd
}

// newEnvoyBootstrapCommand makes "firsttoken envoy bootstrap".
func newEnvoyBootstrapCommand() *cobra.Command {
	var service configFlags
	proxy := envoy.Config{}
	var route, bodyMode, protocol, node string
	var services, xdsAddresses []string
	var dynamic bool
	var secure portTLSFlags
	var shadow shadowFlags
	share := envoy.Canary{}
	cmd := &cobra.Command{
		Use:   "bootstrap {--config FILE | --backends HOST:PORT,…}",
		Short: "Print a complete Envoy config for the service's configuration",
		Long: "Bootstrap prints a static Envoy config (YAML) that asks the service of the given\n" +
			"configuration about every request and sends it to the engine chosen:\n\n" +
			"  firsttoken envoy bootstrap --config firsttoken.yml > envoy.yaml\n" +
			"  envoy -c envoy.yaml\n\n" +
			"With --xds it holds the way to the service only. Envoy asks there (xds.listen) for\n" +
			"everything else, and hears of engines that come and go.\n\n" +
			"With several services, the first that is healthy makes all choices:\n\n" +
			"  firsttoken envoy bootstrap --config firsttoken.yml --service 10.0.1.1:9002,10.0.1.2:9002\n\n" +
			"With --shadow Envoy chooses by itself and only shows the service the requests, which\n" +
			"records what it would have chosen; with --shadow-router another router chooses. With\n" +
			"--xds the service's configuration says so (xds.shadow).",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := service.load(cmd.Flags())
			if err != nil {
				return err
			}
			if err := idleFlags(cmd.Flags(), dynamic, shadow.snippet); err != nil {
				return err
			}
			proxy.Route, proxy.BodyMode = envoy.Route(route), envoy.BodyMode(bodyMode)
			reachServices(cfg, services, &proxy)
			if err := secure.forService(cfg, &proxy); err != nil {
				return err
			}
			if dynamic {
				proxy.Shadow, err = shadow.withXDS(cmd.Flags(), cfg.XDS.Shadow)
			} else {
				proxy.Shadow, err = shadow.config(cmd.Flags())
			}
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("canary") {
				proxy.Canary = &share
			}
			var text []byte
			if shadow.snippet {
				if text, err = envoy.ShadowSnippet(proxy); err != nil {
					return err
				}
			} else if dynamic {
				if err := agreesWithXDS(cfg, proxy); err != nil {
					return err
				}
				proxy.BodyMode, proxy.Canary = envoy.BodyMode(cfg.XDS.BodyMode), cfg.XDS.Canary.Envoy()
				m, err := managementForEnvoy(cfg, proxy, xdsAddresses, protocol, node)
				if err != nil {
					return err
				}
				if m.TLS, err = secure.forPort(cfg.XDS.TLS, "xds"); err != nil {
					return err
				}
				text, err = envoy.DynamicBootstrap(proxy, m)
				if err != nil {
					return err
				}
			} else if text, err = staticBootstrap(cfg, proxy); err != nil {
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
	flags.StringSliceVar(&services, "service", nil, "`addresses` at which Envoy reaches the service and its standbys, in order of priority (default: server.services, else the service's own --listen)")
	flags.StringVar(&route, "route", string(envoy.RouteOverrideHost), "how Envoy is told the choice: override-host or cluster-header")
	flags.StringVar(&bodyMode, "body-mode", string(envoy.BodyBuffered), "how Envoy shows the service requests: buffered, or full-duplex as gateways with an InferencePool do")
	flags.IntVar(&share.Percent, "canary", 0, "put this `percentage` of the requests before the service, and leave the others to Envoy; POST /runtime_modify?canary.fraction=N at Envoy's admin interface changes it")
	flags.StringVar(&share.Header, "canary-header", "", "with --canary: `\"name: value\"` of requests that are put before the service whatever the percentage")
	flags.StringVar(&share.UserHeader, "canary-user-header", "", "with --canary: `name` of a header by which all requests of a user are on one side")
	secure.register(flags)
	shadow.register(flags)
	flags.BoolVar(&dynamic, "xds", false, "let Envoy ask the service for listeners, routes, clusters and endpoints (xds.listen)")
	flags.StringSliceVar(&xdsAddresses, "xds-address", nil, "with --xds: `addresses` at which Envoy asks, in order of priority (default: the service's own xds.listen; with standbys its port at their hosts)")
	flags.StringVar(&protocol, "xds-protocol", string(envoy.StateOfTheWorld), "with --xds: sotw (all of a kind at every change) or delta (what has changed)")
	flags.StringVar(&node, "node", "envoy", "with --xds: `name` of this Envoy, as /status of the service shows it")
	return cmd
}

// idleFlags is an error where a flag says nothing to what is printed.
func idleFlags(flags *pflag.FlagSet, dynamic, snippet bool) error {
	given := func(names ...string) string {
		if i := slices.IndexFunc(names, flags.Changed); i >= 0 {
			return names[i]
		}
		return ""
	}
	if snippet {
		if flag := given("xds", "envoy-listen", "envoy-admin", "route", "body-mode", "canary", "canary-header", "canary-user-header"); flag != "" {
			return fmt.Errorf("--%s: says nothing to --snippet, which goes into an Envoy's own config; leave one of the two out", flag)
		}
	}
	if dynamic {
		if flag := given("envoy-listen", "route", "body-mode", "canary", "canary-header", "canary-user-header"); flag != "" {
			return fmt.Errorf("--%s: with --xds the service tells it; write xds.%s in its configuration", flag, keyOf(flag))
		}
		return nil
	}
	if flag := given("xds-address", "xds-protocol", "node"); flag != "" {
		return fmt.Errorf("--%s: belongs to --xds; give that too", flag)
	}
	if !flags.Changed("canary") && given("canary-header", "canary-user-header") != "" {
		return errors.New("--canary: is not given; write the share of requests, 0 to 100, that is put before the service")
	}
	return nil
}

// keyOf is the key below xds that a flag stands for.
func keyOf(flag string) string {
	switch flag {
	case "canary":
		return "canary.percent"
	case "canary-header":
		return "canary.header"
	case "canary-user-header":
		return "canary.user_header"
	}
	return strings.ReplaceAll(flag, "-", "_")
}

// staticBootstrap is a config with everything in it.
func staticBootstrap(cfg config, proxy envoy.Config) ([]byte, error) {
	if err := forEnvoy(cfg, &proxy); err != nil {
		return nil, err
	}
	return envoy.Bootstrap(proxy)
}

// tells is an error where Envoy, with this route, would not be told the choice.
func tells(cfg extproc.Config, route envoy.Route) error {
	switch {
	case route == envoy.RouteClusterHeader && !cfg.ClusterHeader:
		return errors.New("cluster-header needs server.cluster_header: true in the service's configuration")
	case route == envoy.RouteOverrideHost && !cfg.DestinationHeader && !cfg.DestinationMetadata:
		return errors.New("override-host needs server.destination_header or server.destination_metadata: true in the service's configuration")
	case route == envoy.RouteClusterHeader && cfg.Rescue.Enabled:
		return errors.New("cluster-header goes with server.rescue.enabled: false alone: its clusters hold one endpoint each, so a second try has nowhere to go; write override-host, or false there")
	}
	return nil
}

// forEnvoy fills in what the service's configuration says. The error names
// what does not go together.
func forEnvoy(cfg config, proxy *envoy.Config) error {
	if proxy.Shadow == nil {
		if err := tells(cfg.Server, proxy.Route); err != nil {
			return fmt.Errorf("--route %w", err)
		}
	}
	if err := serviceForEnvoy(cfg, proxy); err != nil {
		return err
	}
	for _, e := range cfg.Endpoints {
		if e.RoleOf() != scoring.RoleBoth {
			continue // Envoy must not choose it either.
		}
		endpoint, err := endpointForEnvoy(e)
		if err != nil {
			return err
		}
		proxy.Endpoints = append(proxy.Endpoints, endpoint)
	}
	return nil
}

// serviceForEnvoy fills in what listeners, routes and clusters depend on.
func serviceForEnvoy(cfg config, proxy *envoy.Config) error {
	proxy.BodyLimit, proxy.DecisionDeadline = cfg.Server.BodyLimit, cfg.Server.DecisionDeadline
	if cfg.Scoring.Hold.Enabled {
		proxy.MaxMessageTimeout = cfg.Server.MaxMessageTimeout
	}
	if cfg.Server.Rescue.Enabled && proxy.Shadow == nil {
		proxy.Rescue = &envoy.Rescue{Longest: cfg.Server.Rescue.Longest()}
	}
	proxy.SkipVerify = cfg.Discovery.TLS.SkipVerify
	if file := cfg.Discovery.TLS.CAFile; file != "" {
		// Envoy may be started in another folder.
		absolute, err := filepath.Abs(file)
		if err != nil {
			return fmt.Errorf("discovery.tls.ca_file: %w", err)
		}
		proxy.CAFile = absolute
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
	if strings.HasSuffix(u.Scheme, "+srv") {
		return envoy.Endpoint{}, fmt.Errorf("endpoint %q: Envoy itself resolves no SRV records; set xds.listen and print the bootstrap with --xds", e.Address)
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
