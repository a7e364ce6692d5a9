package manifests

import (
	"fmt"
	"strconv"
)

// unlimited raises circuit breakers, whose defaults answer 503 long before
// engines are full.
const unlimited = 1_000_000

// istio has the ingress gateway ask the service by an EnvoyFilter.
func (c Config) istio() ([]document, error) {
	filter, err := c.envoyFilter()
	if err != nil {
		return nil, err
	}
	return append(c.alone("grpc"),
		document{
			"The port of Istio's ingress gateway that clients reach.",
			object{
				"apiVersion": "networking.istio.io/v1", "kind": "Gateway", "metadata": c.metadata(c.Name, c.Namespace),
				"spec": object{
					"selector": c.Gateway.Selector,
					"servers":  list{object{"port": object{"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": list{c.Gateway.Host}}},
				},
			},
		},
		document{
			"The route to the engines. Its name is what the EnvoyFilter knows it by; the retries are there.",
			object{
				"apiVersion": "networking.istio.io/v1", "kind": "VirtualService", "metadata": c.metadata(c.Name, c.Namespace),
				"spec": object{
					"hosts": list{c.Gateway.Host}, "gateways": list{c.Name},
					"http": list{object{
						"name":    c.atGateway(),
						"retries": object{"attempts": 0},
						"route":   list{object{"destination": object{"host": c.host(c.Engines.Service), "port": object{"number": c.Engines.Port}}}},
					}},
				},
			},
		},
		document{
			`Connections to the engines: idle ones are closed before the engine does it (uvicorn after 5 s), and limits
are raised. A locality setting would exclude the balancer that obeys the choice.`,
			c.destinationRule(c.Engines.Service, object{
				"loadBalancer":   object{"simple": "LEAST_REQUEST", "localityLbSetting": object{"enabled": false}},
				"connectionPool": connectionPool(object{"idleTimeout": "4s", "h2UpgradePolicy": "DO_NOT_UPGRADE"}),
			}),
		},
		document{"Connections to the service.", c.destinationRule(c.Name, c.pickerPolicy())},
		filter,
	), nil
}

// pickerPolicy is how Istio speaks with the service.
func (c Config) pickerPolicy() object {
	policy := object{"connectionPool": connectionPool(object{})}
	if c.TLS {
		// The service's own certificate is signed by nobody.
		policy["tls"] = object{"mode": "SIMPLE", "insecureSkipVerify": true}
	}
	return policy
}

func connectionPool(http object) object {
	http["http1MaxPendingRequests"], http["http2MaxRequests"], http["maxRetries"] = unlimited, unlimited, unlimited
	return object{"tcp": object{"maxConnections": unlimited}, "http": http}
}

func (c Config) destinationRule(service string, policy object) object {
	return object{
		"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": c.metadata(service, c.Namespace),
		"spec": object{"host": c.host(service), "trafficPolicy": policy},
	}
}

// atGateway names what is ours in a gateway that other installations may share:
// the EnvoyFilter, the route and the HTTP filter.
func (c Config) atGateway() string { return c.Name + "." + c.Namespace }

// cluster is what Istio calls a Service's port.
func (c Config) cluster(service string, port int) string {
	return "outbound|" + strconv.Itoa(port) + "||" + c.host(service)
}

func (c Config) envoyFilter() (document, error) {
	service, engines := c.cluster(c.Name, portChoices), c.cluster(c.Engines.Service, c.Engines.Port)
	p, err := c.Envoy.Patches(c.atGateway(), service)
	if err != nil {
		return document{}, fmt.Errorf("manifests: %w", err)
	}
	manager := object{"filterChain": object{"filter": object{"name": "envoy.filters.network.http_connection_manager"}}}
	beforeRouter := object{"filterChain": object{"filter": object{
		"name": "envoy.filters.network.http_connection_manager", "subFilter": object{"name": "envoy.filters.http.router"},
	}}}
	route := object{"vhost": object{"route": object{"name": c.atGateway()}}}
	return document{
		`What the gateway's Envoy is told: to ask the service on the engines' route, and on no other; to obey its choice
where the engines' pods are; to leave a service alone that is gone. On all routes of the gateway it
takes bodies of the service's limit, and no control header from a client.`,
		object{
			"apiVersion": "networking.istio.io/v1alpha3", "kind": "EnvoyFilter",
			"metadata": c.metadata(c.atGateway(), c.Gateway.Namespace),
			"spec": object{
				"workloadSelector": object{"labels": c.Gateway.Selector},
				"configPatches": list{
					patch("LISTENER", "listener", object{}, "MERGE", p.Listener),
					patch("NETWORK_FILTER", "listener", manager, "MERGE", p.Manager),
					patch("HTTP_FILTER", "listener", beforeRouter, "INSERT_BEFORE", p.Filter),
					patch("HTTP_ROUTE", "routeConfiguration", route, "MERGE", p.Route),
					patch("CLUSTER", "cluster", object{"name": engines}, "MERGE", p.Pool),
					patch("CLUSTER", "cluster", object{"name": service}, "MERGE", p.Service),
				},
			},
		},
	}, nil
}

func patch(kind, where string, match object, operation string, value any) object {
	return object{
		"applyTo": kind,
		"match":   object{"context": "GATEWAY", where: match},
		"patch":   object{"operation": operation, "value": value},
	}
}
