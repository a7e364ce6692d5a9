package main

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/firsttoken/firsttoken/discovery"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/hub"
	"github.com/firsttoken/firsttoken/manifests"
)

// newEnvoyManifestsCommand makes "firsttoken envoy manifests".
func newEnvoyManifestsCommand() *cobra.Command {
	var service configFlags
	var kind string
	var mounts []string
	m := manifests.Config{Gateway: manifests.Gateway{Namespace: "istio-system"}}
	cmd := &cobra.Command{
		Use:   "manifests --kind KIND --config FILE",
		Short: "Print Kubernetes manifests for the service's configuration",
		Long: "Manifests prints everything that the service of the given configuration needs in\n" +
			"Kubernetes (YAML), for one of these:\n\n" +
			"  istio          Istio's ingress gateway, by EnvoyFilter\n" +
			"  envoy-gateway  a Gateway of Envoy Gateway, by EnvoyExtensionPolicy\n" +
			"  inferencepool  any gateway with InferencePool: the service is the endpoint picker\n" +
			"  sidecar        an Envoy of its own in the same pod, over a unix socket\n\n" +
			"The configuration names the engines by their headless Service:\n\n" +
			"  endpoints:\n" +
			"    - address: vllm.inference.svc.cluster.local:8000\n\n" +
			"  firsttoken envoy manifests --kind istio --config firsttoken.yml | kubectl apply -f -",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if service.file == "" {
				return errors.New("--config: is not given; name the service's configuration file")
			}
			// A relative path in it becomes one that is told from a model's id.
			file, err := filepath.Abs(service.file)
			if err != nil {
				return fmt.Errorf("--config: %w", err)
			}
			service.file = file
			cfg, err := service.load(cmd.Flags())
			if err != nil {
				return err
			}
			text, err := os.ReadFile(service.file)
			if err != nil {
				return fmt.Errorf("--config: %w", err)
			}
			m.File = string(text)
			for _, text := range mounts {
				mount, err := manifests.ParseMount(text)
				if err != nil {
					return fmt.Errorf("--mount: %w", err)
				}
				m.Mounts = append(m.Mounts, mount)
			}
			if err := forManifests(cfg, manifests.Kind(kind), &m); err != nil {
				return fmt.Errorf("%s:\n%w", service.file, err)
			}
			out, err := m.Print(manifests.Kind(kind))
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(out)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&service.file, "config", "", "YAML `file` with the service's configuration")
	flags.StringVar(&kind, "kind", "", "istio, envoy-gateway, inferencepool or sidecar")
	flags.StringVar(&m.Name, "name", "firsttoken", "`name` of the objects")
	flags.StringVar(&m.Namespace, "namespace", "", "`namespace` of the objects and of the engines (default: that of the engines' Service, else default)")
	flags.StringToStringVar(&m.Labels, "label", nil, "further `labels` of the objects, key=value")
	flags.StringVar(&m.Image, "image", "firsttoken:dev", "container `image` of the service; \"make image\" builds it")
	flags.StringVar(&m.EnvoyImage, "envoy-image", "envoyproxy/envoy:distroless-v1.40.0", "container `image` of a sidecar's Envoy")
	flags.StringSliceVar(&mounts, "mount", nil, "`volume` for the service's container: claim/NAME:/path, configmap/NAME:/path or secret/NAME:/path")
	flags.StringToStringVar(&m.Engines.Selector, "engine-selector", map[string]string{"app": "vllm"}, "`labels` of the engines' pods, key=value")
	flags.StringVar(&m.Gateway.Host, "host", "*", "`host` that clients ask for; * for any")
	flags.StringVar(&m.Gateway.Class, "gateway-class", "", "GatewayClass `name` (default: eg for envoy-gateway, istio for inferencepool)")
	flags.StringVar(&m.Gateway.Namespace, "gateway-namespace", m.Gateway.Namespace, "`namespace` of Istio's ingress gateway")
	flags.StringToStringVar(&m.Gateway.Selector, "gateway-selector", map[string]string{"istio": "ingressgateway"}, "`labels` of the pods of Istio's ingress gateway, key=value")
	return cmd
}

// forManifests fills in what the service's configuration says, and joins what
// of it cannot be in a pod.
func forManifests(cfg config, kind manifests.Kind, m *manifests.Config) error {
	faults := append(foreignPaths(cfg, m.Mounts), podPorts(cfg, kind, m)...)
	if err := engineService(cfg.Endpoints, kind, m); err != nil {
		faults = append(faults, err)
	}
	if m.Namespace == "" {
		m.Namespace = "default"
	}
	if c := cfg.LMCache.Controller; cfg.LMCache.Enabled && c.Heartbeat != "" && c.AdvertiseHeartbeat == "" {
		faults = append(faults, fmt.Errorf("lmcache.controller.advertise_heartbeat: is empty, so workers, which ask once, would be told the address of a pod, and none would reach the next one; write %s", servicesHost(*m)))
	}
	if n := len(cfg.Server.Services); n > 1 {
		faults = append(faults, fmt.Errorf("server.services: there are %d, but one service is printed; leave the key out, a pod that ends is replaced", n))
	}
	if kind == manifests.EnvoyGateway && !cfg.Server.DestinationHeader {
		faults = append(faults, errors.New("server.destination_header: is false, but Envoy Gateway reads the choice in that header alone; write true"))
	}
	if m.Gateway.Class == "" {
		m.Gateway.Class = map[manifests.Kind]string{manifests.EnvoyGateway: "eg", manifests.InferencePool: "istio"}[kind]
	}
	m.TLS = cfg.Server.TLS.Enabled
	m.Grace = cfg.Server.DrainDelay + cfg.Server.DrainTimeout + 5*time.Second
	m.Envoy.Route = envoy.RouteOverrideHost
	if kind != manifests.Sidecar {
		if cfg.Server.Rescue.Enabled {
			faults = append(faults, errors.New("server.rescue.enabled: is true, but gateways get no filter that holds answers back from what is printed; write false, or take --kind sidecar"))
		}
		faults = append(faults, tells(cfg.Server, envoy.RouteOverrideHost), serviceForEnvoy(cfg, &m.Envoy))
		return errors.Join(faults...)
	}
	return errors.Join(append(faults, forEnvoy(cfg, &m.Envoy))...)
}

// foreignPaths are files and folders of the configuration that a pod does not
// have. The state's folder is not among them: a flag names another.
func foreignPaths(cfg config, mounts []manifests.Mount) (faults []error) {
	below := func(file, folder string) bool { return file == folder || strings.HasPrefix(file, folder+"/") }
	look := func(key, file, instead string) {
		in := func(m manifests.Mount) bool { return below(file, m.Path) }
		if file != "" && !slices.ContainsFunc(mounts, in) {
			faults = append(faults, fmt.Errorf("%s: %q is a path of this machine, not of a pod; %sgive its folder there by --mount, such as claim/models:%s, and write the absolute path",
				key, file, instead, path.Dir(file)))
		}
	}
	for i, model := range cfg.Prompt.Models {
		key := fmt.Sprintf("prompt.models[%d]", i)
		if !hub.IsID(model.Tokenizer) {
			look(key+".tokenizer", model.Tokenizer, "write the model's id on a hub, or ")
		}
		look(key+".chat_template", model.ChatTemplate, "")
	}
	if file := cfg.Server.OffFile; !below(file, manifests.StateFolder) {
		look("server.off_file", file, "write one below "+manifests.StateFolder+", or ")
	}
	if file := cfg.Decisions.File; file != "" && !below(file, manifests.StateFolder) {
		// What is mounted is read-only.
		faults = append(faults, fmt.Errorf("decisions.file: %q is nothing that a pod could write; write a path below %s, which ends with the pod", file, manifests.StateFolder))
	}
	look("discovery.tls.ca_file", cfg.Discovery.TLS.CAFile, "")
	for _, port := range []struct {
		key   string
		files []*string
	}{{"server.tls", cfg.Server.TLS.Files()}, {"xds.tls", cfg.XDS.TLS.Files()}} {
		for _, file := range port.files {
			look(port.key, *file, "")
		}
	}
	return faults
}

// servicesHost is the printed Service by its whole name.
func servicesHost(m manifests.Config) string {
	return m.Name + "." + m.Namespace + "." + cmp.Or(m.Engines.Domain, "svc.cluster.local")
}

// podPorts fills in the ports that others connect to. The error names those
// that nobody outside the pod would reach.
func podPorts(cfg config, kind manifests.Kind, m *manifests.Config) (faults []error) {
	add := func(name, key, address string) {
		if address == "" {
			return
		}
		host, text, err := net.SplitHostPort(address)
		number, errNumber := strconv.Atoi(text)
		ip, errIP := netip.ParseAddr(host)
		switch {
		case err != nil || errNumber != nil:
			faults = append(faults, fmt.Errorf("%s: %q is no host:port, which engines and Envoys in other pods need", key, address))
		case host == "localhost" || errIP == nil && ip.IsLoopback():
			faults = append(faults, fmt.Errorf("%s: %q is reached by nobody outside the pod; write 0.0.0.0:%s", key, address, text))
		default:
			m.Ports = append(m.Ports, manifests.Port{Name: name, Number: number})
		}
	}
	if c := cfg.LMCache.Controller; cfg.LMCache.Enabled {
		add("lmcache-pull", "lmcache.controller.pull", c.Pull)
		add("lmcache-reply", "lmcache.controller.reply", c.Reply)
		add("lmcache-beat", "lmcache.controller.heartbeat", c.Heartbeat)
	}
	add("coordinator", "lmcache.coordinator.listen", cfg.LMCache.Coordinator.Listen)
	if kind != manifests.Sidecar {
		add("xds", "xds.listen", cfg.XDS.Listen)
	}
	return faults
}

// engineService fills in the headless Service that the one endpoint names, and
// the namespace where none was given. A sidecar's Envoy takes any endpoints.
func engineService(endpoints []discovery.Entry, kind manifests.Kind, m *manifests.Config) error {
	any := kind == manifests.Sidecar
	if len(endpoints) != 1 {
		if any {
			return nil
		}
		return fmt.Errorf("endpoints: there are %d; gateways know one pool of pods, so write one endpoint: the headless Service of all engines, such as vllm.inference.svc.cluster.local:8000", len(endpoints))
	}
	address := endpoints[0].Address
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("endpoints[0].address: %w", err)
	}
	labels := strings.Split(strings.TrimSuffix(u.Hostname(), "."), ".")
	_, errIP := netip.ParseAddr(u.Hostname())
	port, errPort := strconv.Atoi(u.Port())
	if u.Scheme != "http" || errIP == nil || errPort != nil || len(labels) > 2 && labels[2] != "svc" {
		if any {
			return nil
		}
		return fmt.Errorf("endpoints[0].address: %q is no Service of this cluster; write its name and port, such as vllm.inference.svc.cluster.local:8000 (plain http, no SRV records)", endpoints[0].Address)
	}
	m.Engines.Service, m.Engines.Port, m.Engines.Domain = labels[0], port, "svc.cluster.local"
	if len(labels) > 3 {
		m.Engines.Domain = strings.Join(labels[2:], ".")
	}
	if len(labels) == 1 {
		return nil
	}
	if m.Namespace != "" && m.Namespace != labels[1] {
		return fmt.Errorf("endpoints[0].address: the engines' Service is in namespace %s, --namespace is %s; put the service beside its engines", labels[1], m.Namespace)
	}
	m.Namespace = labels[1]
	return nil
}
