package manifests

// gateway is one of the Gateway API with one port.
func (c Config) gateway() object {
	return object{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": c.metadata(c.Name, c.Namespace),
		"spec": object{
			"gatewayClassName": c.Gateway.Class,
			"listeners":        list{object{"name": "http", "port": 80, "protocol": "HTTP"}},
		},
	}
}

// httpRoute sends everything for the host to a backend. A request may queue and
// stream for as long as it takes.
func (c Config) httpRoute(backend object) object {
	spec := object{
		"parentRefs": list{object{"name": c.Name}},
		"rules": list{object{
			"matches":     list{object{"path": object{"type": "PathPrefix", "value": "/"}}},
			"timeouts":    object{"request": "0s"},
			"backendRefs": list{backend},
		}},
	}
	if c.Gateway.Host != "*" {
		spec["hostnames"] = list{c.Gateway.Host}
	}
	return object{
		"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": c.metadata(c.Name, c.Namespace),
		"spec": spec,
	}
}
