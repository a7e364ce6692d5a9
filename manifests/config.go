package manifests

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/firsttoken/firsttoken/envoy"
)

// Kind is a way to run the service in Kubernetes.
type Kind string

// The kinds.
const (
	// Istio: an ingress gateway of Istio asks the service, by EnvoyFilter.
	Istio Kind = "istio"
	// EnvoyGateway: a Gateway of Envoy Gateway asks it, by EnvoyExtensionPolicy.
	EnvoyGateway Kind = "envoy-gateway"
	// InferencePool: it is the endpoint picker of an InferencePool.
	InferencePool Kind = "inferencepool"
	// Sidecar: an Envoy of its own in the same pod asks it, over a unix socket.
	Sidecar Kind = "sidecar"
)

// Kinds are all of them.
var Kinds = []Kind{Istio, EnvoyGateway, InferencePool, Sidecar}

// Config is what manifests are made of.
type Config struct {
	// Name is that of every object except the engines' Service; Namespace is
	// where they all are, but for what belongs to Istio's gateway.
	Name, Namespace string
	// Labels are put on every object besides our own.
	Labels map[string]string
	// Image is the service's container image; EnvoyImage that of a sidecar's Envoy.
	Image, EnvoyImage string
	// File is the text of the service's configuration file.
	File string
	// Ports are further ports of the service that others connect to, such as
	// LMCache's workers.
	Ports []Port
	// TLS: the port for choices speaks TLS.
	TLS bool
	// Grace is how long the service may take to end.
	Grace time.Duration
	// Mounts are put into the service's container.
	Mounts []Mount
	// Engines is the Service of the engines. A sidecar needs none.
	Engines Engines
	// Gateway is what takes the clients' requests; none for a sidecar.
	Gateway Gateway
	// Envoy is what Envoy is told, by a sidecar's bootstrap or by patches. What
	// depends on the kind is filled in here.
	Envoy envoy.Config
}

// Port is one that others connect to.
type Port struct {
	Name   string
	Number int
}

// Mount is a volume that exists already.
type Mount struct {
	// Source is claim, configmap or secret; Object its name.
	Source, Object string
	// Path is where it is mounted, read-only.
	Path string
}

// Engines is the headless Service of the engines.
type Engines struct {
	// Service is its name; empty: there is none. Domain is what follows
	// name.namespace, such as svc.cluster.local.
	Service, Domain string
	Port            int
	// Selector are the labels of the engines' pods.
	Selector map[string]string
}

// Gateway is what takes clients' requests.
type Gateway struct {
	// Class is the GatewayClass of the Gateway API.
	Class string
	// Host is what clients ask for; "*": anything.
	Host string
	// Namespace and Selector are where Istio's ingress gateway runs, and the
	// labels of its pods.
	Namespace string
	Selector  map[string]string
}

// Ports of the service and of a sidecar's Envoy. In a pod of its own nothing
// else can have them.
const (
	portChoices = 9002
	portAdmin   = 9090
	portClients = 8080
)

// dnsLabel is what Kubernetes takes for a name.
var dnsLabel = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)

// ParseMount reads claim/NAME:/path, configmap/NAME:/path or secret/NAME:/path.
func ParseMount(text string) (Mount, error) {
	from, at, _ := strings.Cut(text, ":")
	source, name, _ := strings.Cut(from, "/")
	m := Mount{source, name, path.Clean(at)}
	if !slices.Contains([]string{"claim", "configmap", "secret"}, source) || name == "" || !path.IsAbs(at) {
		return Mount{}, fmt.Errorf("%q is no mount; write claim/NAME:/path, configmap/NAME:/path or secret/NAME:/path", text)
	}
	return m, nil
}

func (c Config) validate(kind Kind) error {
	var faults []error
	if !slices.Contains(Kinds, kind) {
		faults = append(faults, fmt.Errorf("kind: %q is unknown; write one of %q", kind, Kinds))
	}
	for _, n := range []struct{ what, name string }{{"name", c.Name}, {"namespace", c.Namespace}} {
		if !dnsLabel.MatchString(n.name) {
			faults = append(faults, fmt.Errorf("%s: %q is no name in Kubernetes; write at most 63 lower-case letters, digits and hyphens", n.what, n.name))
		}
	}
	if c.Image == "" || kind == Sidecar && c.EnvoyImage == "" {
		faults = append(faults, errors.New("image: is empty; name the container image"))
	}
	if kind != Sidecar && c.Engines.Service == "" {
		faults = append(faults, errors.New("engines: there is no Service; name it as the one endpoint"))
	}
	if c.Engines.Service != "" && len(c.Engines.Selector) == 0 {
		faults = append(faults, errors.New("engines: there is no selector; give the labels of the engines' pods"))
	}
	if c.Engines.Service == c.Name {
		faults = append(faults, fmt.Errorf("engines: their Service has the name of ours, %q; give another --name", c.Name))
	}
	switch {
	case kind == InferencePool && !c.TLS:
		faults = append(faults, errors.New("server.tls.enabled: is false, but gateways speak TLS with the picker of an InferencePool; write true"))
	case kind == Sidecar && c.TLS:
		faults = append(faults, errors.New("server.tls.enabled: is true, but a sidecar's Envoy reaches the service over a unix socket, which has no TLS; write false"))
	case kind == EnvoyGateway && c.TLS:
		faults = append(faults, errors.New("server.tls.enabled: is true, but Envoy Gateway would verify the certificate against a BackendTLSPolicy that is not printed; write false"))
	case kind == EnvoyGateway && c.Gateway.Class == "" || kind == InferencePool && c.Gateway.Class == "":
		faults = append(faults, errors.New("gateway class: is empty; name the GatewayClass"))
	case kind == Istio && (c.Gateway.Namespace == "" || len(c.Gateway.Selector) == 0):
		faults = append(faults, errors.New("gateway: give the namespace of Istio's ingress gateway and the labels of its pods"))
	}
	return errors.Join(faults...)
}

// Print makes the manifests of a kind, as YAML documents. The error joins every
// fault of c.
func (c Config) Print(kind Kind) ([]byte, error) {
	if err := c.validate(kind); err != nil {
		return nil, err
	}
	documents, err := map[Kind]func() ([]document, error){
		Istio: c.istio, EnvoyGateway: c.envoyGateway, InferencePool: c.inferencePool, Sidecar: c.sidecar,
	}[kind]()
	if err != nil {
		return nil, err
	}
	return print("Printed by \"firsttoken envoy manifests --kind "+string(kind)+"\"; print it anew rather than edit it.", documents)
}

// metadata is that of an object of ours.
func (c Config) metadata(name, namespace string) object {
	return object{"name": name, "namespace": namespace, "labels": c.labels()}
}

func (c Config) labels() map[string]string {
	labels := map[string]string{"app.kubernetes.io/name": c.Name, "app.kubernetes.io/part-of": "firsttoken"}
	maps.Copy(labels, c.Labels)
	return labels
}

// selector are the labels by which our pods are found; they can never change.
func (c Config) selector() object { return object{"app.kubernetes.io/name": c.Name} }

// host is a Service of this namespace by its whole name.
func (c Config) host(service string) string {
	return service + "." + c.Namespace + "." + c.Engines.Domain
}
