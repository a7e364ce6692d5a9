package manifests

// istioClass is the GatewayClass of Istio.
const istioClass = "istio"

// inferencePool makes the service the endpoint picker of an InferencePool.
func (c Config) inferencePool() ([]document, error) {
	const group = "inference.networking.k8s.io"
	documents := append(c.alone("http2"),
		document{
			`The engines as the gateway knows them: the same pods, by the same labels, as the headless Service by which the
service finds them. What the service names and is not in the pool, the gateway does not use.`,
			object{
				"apiVersion": group + "/v1", "kind": "InferencePool", "metadata": c.metadata(c.Engines.Service, c.Namespace),
				"spec": object{
					"selector":    object{"matchLabels": c.Engines.Selector},
					"targetPorts": list{object{"number": c.Engines.Port}},
					"endpointPickerRef": object{
						"kind": "Service", "name": c.Name, "port": object{"number": portChoices},
						"failureMode": "FailOpen",
					},
				},
			},
		},
		document{"What clients reach.", c.gateway()},
		document{"The route to the pool.", c.httpRoute(object{"group": group, "kind": "InferencePool", "name": c.Engines.Service})},
	)
	if c.Gateway.Class == istioClass {
		documents = append(documents, document{
			"Istio speaks TLS with the picker as this says, and verifies no certificate: the service makes its own.",
			c.destinationRule(c.Name, c.pickerPolicy()),
		})
	}
	return documents, nil
}
