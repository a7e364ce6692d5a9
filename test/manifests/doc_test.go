// Package manifests_test checks every Kubernetes manifest of examples/ as an API
// server would: custom resources against the schemas and rules that the gateways
// ship, the others against Kubernetes' own types. It is a module of its own, so
// that what this needs stays out of the service's go.mod.
package manifests_test
