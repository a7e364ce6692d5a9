package manifests

import (
	"strconv"
	"time"

	"github.com/firsttoken/firsttoken/envoy"
)

// The policies of Envoy Gateway that are used came with its 1.5 (endpointOverride).
const envoyGatewayAPI = "gateway.envoyproxy.io/v1alpha1"

// envoyGateway has a Gateway of Envoy Gateway ask the service. Everything is
// said by its own policies; the choice is obeyed by endpointOverride.
func (c Config) envoyGateway() ([]document, error) {
	if _, err := c.Envoy.Patches(c.Name, c.Name); err != nil {
		return nil, err // for its limits, which are put in other words below
	}
	picker := list{object{"name": c.Name, "port": portChoices}}
	atGateway := list{object{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": c.Name}}
	atRoute := list{object{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": c.Name}}
	gateway := c.gateway()
	gateway["spec"].(object)["infrastructure"] = object{
		"parametersRef": object{"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": c.Name},
	}
	var control list
	for _, prefix := range envoy.ControlPrefixes {
		control = append(control, object{"type": "Prefix", "value": prefix})
	}
	route := c.httpRoute(object{"kind": "Service", "name": c.Engines.Service, "port": c.Engines.Port})
	rule := route["spec"].(object)["rules"].(list)[0].(object)
	rule["filters"] = list{object{"type": "ResponseHeaderModifier", "responseHeaderModifier": object{"set": list{
		object{"name": envoy.HeaderServed, "value": "%UPSTREAM_REMOTE_ADDRESS%"},
		object{"name": envoy.HeaderReason, "value": "%DYNAMIC_METADATA(" + envoy.Metadata + ":" + envoy.KeyReason + ")%"},
		object{"name": envoy.HeaderID, "value": "%DYNAMIC_METADATA(" + envoy.Metadata + ":" + envoy.KeyID + ")%"},
		object{"name": envoy.HeaderArm, "value": "%DYNAMIC_METADATA(" + envoy.Metadata + ":" + envoy.KeyArm + ")%"},
	}}}}
	return append(c.alone("kubernetes.io/h2c"),
		document{"What clients reach.", gateway},
		document{
			"The gateway's Envoys tell the service how requests end. The first setting is Envoy Gateway's own default, which a list replaces.",
			object{
				"apiVersion": envoyGatewayAPI, "kind": "EnvoyProxy", "metadata": c.metadata(c.Name, c.Namespace),
				"spec": object{"telemetry": object{"accessLog": object{"settings": list{
					object{"sinks": list{object{"type": "File", "file": object{"path": "/dev/stdout"}}}},
					object{"sinks": list{object{"type": "ALS", "als": object{"type": "HTTP", "logName": "firsttoken", "backendRefs": picker}}}},
				}}}},
			},
		},
		document{
			"Bodies of the service's limit fit, no client can send control headers, and requests may queue for long.",
			object{
				"apiVersion": envoyGatewayAPI, "kind": "ClientTrafficPolicy", "metadata": c.metadata(c.Name, c.Namespace),
				"spec": object{
					"targetRefs": atGateway,
					"connection": object{"bufferLimit": strconv.Itoa(c.Envoy.BufferLimit())},
					"headers":    object{"earlyRequestHeaders": object{"removeOnMatch": control}},
					"timeout":    object{"http": object{"streamIdleTimeout": "0s"}},
				},
			},
		},
		document{"The route to the engines.", route},
		document{
			`Envoy asks the service about every request of the route, and goes on without it where it is gone. Bodies are
buffered: FullDuplexStreamed excludes failOpen.`,
			object{
				"apiVersion": envoyGatewayAPI, "kind": "EnvoyExtensionPolicy", "metadata": c.metadata(c.Name, c.Namespace),
				"spec": object{
					"targetRefs": atRoute,
					"extProc": list{object{
						"backendRefs": picker,
						"failOpen":    true,
						// There is no max_message_timeout: where requests are held, this is for all.
						"messageTimeout": milliseconds(max(c.Envoy.MessageTimeout(), c.Envoy.MaxMessageTimeout)),
						"processingMode": object{
							"request":  object{"body": "Buffered"},
							"response": object{"body": "Streamed", "attributes": list{envoy.AttributeCode, envoy.AttributeUpstream}},
						},
						"metadata": object{"writableNamespaces": list{envoy.MetadataBalancer, envoy.Metadata}},
						"backendSettings": object{
							"circuitBreaker": circuitBreaker(),
							"timeout":        object{"tcp": object{"connectTimeout": "250ms"}},
							"healthCheck": object{"panicThreshold": 0, "active": object{
								"type": "GRPC", "grpc": object{"service": "envoy.service.ext_proc.v3.ExternalProcessor"},
								"interval": "300ms", "timeout": "1s", "healthyThreshold": 1, "unhealthyThreshold": 1,
							}},
						},
					}},
				},
			},
		},
		document{
			`The choice is obeyed; where it cannot be reached the next best is tried, and without a choice the engine with
the fewest requests is taken.`,
			object{
				"apiVersion": envoyGatewayAPI, "kind": "BackendTrafficPolicy", "metadata": c.metadata(c.Name, c.Namespace),
				"spec": object{
					"targetRefs": atRoute,
					"loadBalancer": object{
						"type":             "LeastRequest",
						"endpointOverride": object{"extractFrom": list{object{"header": envoy.HeaderEndpoint}}},
					},
					"circuitBreaker": circuitBreaker(),
					"healthCheck":    object{"panicThreshold": 0},
					"retry": object{
						"numRetries": 2,
						"retryOn": object{
							"triggers":        list{"connect-failure", "refused-stream", "reset", "retriable-status-codes"},
							"httpStatusCodes": list{503},
						},
						"perRetry": object{"backOff": object{"baseInterval": "1ms", "maxInterval": "10ms"}},
					},
					// Below the 5 s after which uvicorn closes idle connections.
					"timeout": object{
						"tcp":  object{"connectTimeout": "1s"},
						"http": object{"connectionIdleTimeout": "4s", "requestTimeout": "0s", "streamIdleTimeout": "0s"},
					},
				},
			},
		},
	), nil
}

func circuitBreaker() object {
	return object{
		"maxConnections": unlimited, "maxPendingRequests": unlimited,
		"maxParallelRequests": unlimited, "maxParallelRetries": unlimited,
	}
}

// milliseconds is a duration as the Gateway API takes it.
func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }
