package manifests

import (
	"fmt"
	"math"
	"path"

	"github.com/firsttoken/firsttoken/envoy"
)

// socketFolder is shared by the two containers of a sidecar.
const socketFolder = "/run/firsttoken"

// sidecar runs Envoy and the service in one pod.
func (c Config) sidecar() ([]document, error) {
	socket := "unix:" + path.Join(socketFolder, "choices.sock")
	c.Envoy.Listen, c.Envoy.Admin, c.Envoy.Service = "0.0.0.0:8080", "127.0.0.1:9901", socket
	bootstrap, err := envoy.Bootstrap(c.Envoy)
	if err != nil {
		return nil, fmt.Errorf("manifests: %w", err)
	}
	// Envoy ends at once when told to, and cuts what it carries. Before that both
	// stay for as long as the service would wait for its streams; new requests
	// go elsewhere, since the Service no longer has this pod.
	grace := int(math.Ceil(c.Grace.Seconds()))
	linger := object{"preStop": object{"sleep": object{"seconds": grace}}}
	c.Grace *= 2
	shared := object{"name": "socket", "mountPath": socketFolder}
	service := c.container(socket)
	service["ports"] = c.containerPorts()
	service["volumeMounts"] = append(service["volumeMounts"].(list), shared)
	service["lifecycle"] = linger
	proxy := object{
		"name":  "envoy",
		"image": c.EnvoyImage,
		"args":  list{"--config-path", "/etc/envoy/envoy.yaml", "--log-level", "warning"},
		"ports": list{object{"name": "http", "containerPort": portClients}},
		// A service that is gone does not make the pod unready: Envoy goes on.
		"readinessProbe":  object{"tcpSocket": object{"port": "http"}, "periodSeconds": 5},
		"lifecycle":       linger,
		"resources":       object{"requests": object{"cpu": "1", "memory": "256Mi"}, "limits": object{"memory": "1Gi"}},
		"securityContext": locked(),
		"volumeMounts":    list{object{"name": "envoy", "mountPath": "/etc/envoy", "readOnly": true}, shared},
	}
	name := c.Name + "-envoy"
	documents := []document{
		c.account(),
		c.configMap(),
		{
			"Envoy's configuration, made for the one above. Envoy reads it when it starts.",
			object{
				"apiVersion": "v1", "kind": "ConfigMap", "metadata": c.metadata(name, c.Namespace),
				"data": object{"envoy.yaml": string(bootstrap)},
			},
		},
		{
			`Envoy and the service in one pod, which speak over a unix socket. One replica: what several have sent is not
shared between them. A Secret of the same name, where there is one, becomes the service's environment
(HF_TOKEN, VLLM_API_KEY).`,
			c.deploymentOf(list{service, proxy}, append(c.volumes(),
				object{"name": "envoy", "configMap": object{"name": name}},
				object{"name": "socket", "emptyDir": object{}},
			)),
		},
		{
			"What clients reach, and where engines report.",
			c.serviceOf(append(list{
				object{"name": "http", "port": 80, "targetPort": "http", "appProtocol": "http"},
			}, c.servicePorts()...)),
		},
		c.networkPolicy("http"),
	}
	if c.Engines.Service != "" {
		documents = append(documents, c.engines())
	}
	return documents, nil
}
