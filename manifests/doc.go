// Package manifests makes Kubernetes manifests for the service: beside Envoy in
// one pod, and behind the gateways that speak ext_proc.
package manifests
