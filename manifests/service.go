package manifests

import (
	"math"
	"path"
)

// configFolder is where the configuration file is mounted, as a whole folder:
// a file that is mounted alone never changes.
const configFolder = "/etc/firsttoken"

// StateFolder is the one folder of a pod for files that the service writes. It
// ends with the pod.
const StateFolder = "/var/lib/firsttoken"

const cacheFolder = "/var/cache/firsttoken"

// user is who the containers run as: the image's own. A sidecar's Envoy must be
// the same, or could not write to the socket.
const user = 65532

// account is the service's own, without any right.
func (c Config) account() document {
	return document{
		"Who the service is. It asks nothing of the Kubernetes API, so it has no role and no token.",
		object{
			"apiVersion": "v1", "kind": "ServiceAccount", "metadata": c.metadata(c.Name, c.Namespace),
			"automountServiceAccountToken": false,
		},
	}
}

// configMap has the service's configuration, as it was written.
func (c Config) configMap() document {
	return document{
		`The service's configuration. A change of endpoints is taken while it runs; the log names other keys
that have changed, which want a restart.`,
		object{
			"apiVersion": "v1", "kind": "ConfigMap", "metadata": c.metadata(c.Name, c.Namespace),
			"data": object{"firsttoken.yml": c.File},
		},
	}
}

// deployment runs the service by itself.
func (c Config) deployment() document {
	container := c.container("0.0.0.0:9002")
	container["ports"] = append(list{object{"name": "choices", "containerPort": portChoices}}, c.containerPorts()...)
	container["readinessProbe"] = object{"httpGet": object{"path": "/readyz", "port": "admin"}, "periodSeconds": 2, "failureThreshold": 1}
	return document{
		`The service. One replica: what several have sent is not shared between them. A Secret of the same name,
where there is one, becomes its environment (HF_TOKEN, VLLM_API_KEY).`,
		c.deploymentOf(list{container}, c.volumes()),
	}
}

func (c Config) deploymentOf(containers, volumes list) object {
	return object{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": c.metadata(c.Name, c.Namespace),
		"spec": object{
			"replicas": 1,
			"selector": object{"matchLabels": c.selector()},
			"template": object{
				"metadata": object{"labels": c.labels()},
				"spec": object{
					"serviceAccountName":            c.Name,
					"automountServiceAccountToken":  false,
					"terminationGracePeriodSeconds": int(math.Ceil(c.Grace.Seconds())),
					"securityContext": object{
						"runAsNonRoot": true, "runAsUser": user, "runAsGroup": user, "fsGroup": user,
						"seccompProfile": object{"type": "RuntimeDefault"},
					},
					"containers": containers,
					"volumes":    volumes,
				},
			},
		},
	}
}

// container runs the service, which Envoy reaches at listen. What must be so in
// a pod wins over the file by flags.
func (c Config) container(listen string) object {
	mounts := list{
		object{"name": "config", "mountPath": configFolder, "readOnly": true},
		object{"name": "state", "mountPath": StateFolder},
		object{"name": "cache", "mountPath": cacheFolder},
	}
	for _, m := range c.Mounts {
		mounts = append(mounts, object{"name": m.volume(), "mountPath": m.Path, "readOnly": true})
	}
	return object{
		"name":  "firsttoken",
		"image": c.Image,
		"args": list{
			"serve", "--config", path.Join(configFolder, "firsttoken.yml"), "--listen", listen,
			"--admin-listen", "0.0.0.0:9090", "--state-dir", StateFolder,
		},
		"env":     list{object{"name": "HF_HOME", "value": cacheFolder}},
		"envFrom": list{object{"secretRef": object{"name": c.Name, "optional": true}}},
		// Until tokenizers are there, which a hub may take its time for.
		"startupProbe":    object{"httpGet": object{"path": "/healthz", "port": "admin"}, "periodSeconds": 2, "failureThreshold": 150},
		"livenessProbe":   object{"httpGet": object{"path": "/healthz", "port": "admin"}, "periodSeconds": 10, "timeoutSeconds": 5},
		"resources":       object{"requests": object{"cpu": "1", "memory": "512Mi"}, "limits": object{"memory": "2Gi"}},
		"securityContext": locked(),
		"volumeMounts":    mounts,
	}
}

// locked is a container that can do nothing but what it is for.
func locked() object {
	return object{
		"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
		"capabilities": object{"drop": list{"ALL"}},
	}
}

// containerPorts are those besides the one for choices.
func (c Config) containerPorts() list {
	ports := list{object{"name": "admin", "containerPort": portAdmin}}
	for _, p := range c.Ports {
		ports = append(ports, object{"name": p.Name, "containerPort": p.Number})
	}
	return ports
}

func (c Config) volumes() list {
	volumes := list{
		object{"name": "config", "configMap": object{"name": c.Name}},
		object{"name": "state", "emptyDir": object{}},
		object{"name": "cache", "emptyDir": object{}},
	}
	for _, m := range c.Mounts {
		source := map[string]object{
			"claim":     {"persistentVolumeClaim": object{"claimName": m.Object, "readOnly": true}},
			"configmap": {"configMap": object{"name": m.Object}},
			"secret":    {"secret": object{"secretName": m.Object}},
		}[m.Source]
		source["name"] = m.volume()
		volumes = append(volumes, source)
	}
	return volumes
}

// volume is the name of a mount's volume.
func (m Mount) volume() string { return m.Source + "-" + m.Object }

// service is what gateways and engines reach the service by. The admin port is
// not in it: who needs it asks the pod.
func (c Config) service(protocol string) document {
	return document{
		"Where the gateway asks for choices, and where engines report.",
		c.serviceOf(append(list{
			object{"name": "grpc", "port": portChoices, "targetPort": "choices", "appProtocol": protocol},
		}, c.servicePorts()...)),
	}
}

func (c Config) serviceOf(ports list) object {
	return object{
		"apiVersion": "v1", "kind": "Service", "metadata": c.metadata(c.Name, c.Namespace),
		"spec": object{"selector": c.selector(), "ports": ports},
	}
}

// servicePorts are those that engines and Envoys elsewhere connect to.
func (c Config) servicePorts() list {
	var ports list
	for _, p := range c.Ports {
		ports = append(ports, object{"name": "tcp-" + p.Name, "port": p.Number, "targetPort": p.Name})
	}
	return ports
}

// labelAdmin is that of namespaces whose pods may reach the admin port.
const labelAdmin = "firsttoken/admin"

// networkPolicy lets anybody reach what the service is for, by the names of
// ports, and those who watch and steer it the admin port.
func (c Config) networkPolicy(ports ...string) document {
	var open list
	for _, p := range c.Ports {
		ports = append(ports, p.Name)
	}
	for _, name := range ports {
		open = append(open, object{"port": name, "protocol": "TCP"})
	}
	return document{
		`Who reaches the pod. The admin port switches choosing off and shows decisions: it is for namespaces that are
labelled so (kubectl label namespace monitoring ` + labelAdmin + `=true). The kubelet's probes and kubectl port-forward
need no rule. Only a network plugin that enforces NetworkPolicies heeds this.`,
		object{
			"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": c.metadata(c.Name, c.Namespace),
			"spec": object{
				"podSelector": object{"matchLabels": c.selector()},
				"policyTypes": list{"Ingress"},
				"ingress": list{
					object{"ports": open},
					object{
						"ports": list{object{"port": "admin", "protocol": "TCP"}},
						"from":  list{object{"namespaceSelector": object{"matchLabels": object{labelAdmin: "true"}}}},
					},
				},
			},
		},
	}
}

// engines is the headless Service by which the service finds the engines.
func (c Config) engines() document {
	return document{
		`The engines. Headless: its name has the address of every pod that is ready, and the service takes each for
an engine. It asks anew every discovery.resolve_interval.`,
		object{
			"apiVersion": "v1", "kind": "Service", "metadata": c.metadata(c.Engines.Service, c.Namespace),
			"spec": object{
				"clusterIP": "None", "selector": c.Engines.Selector,
				"ports": list{object{"name": "http", "port": c.Engines.Port, "targetPort": c.Engines.Port, "appProtocol": "http"}},
			},
		},
	}
}

// alone are the documents of a service that runs by itself.
func (c Config) alone(protocol string) []document {
	return []document{c.account(), c.configMap(), c.deployment(), c.service(protocol), c.networkPolicy("choices"), c.engines()}
}
