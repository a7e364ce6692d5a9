// Package demo plays the whole service on one machine: simulated engines that
// report to LMCache's protocol, the service, and a real Envoy, each a process of
// its own on loopback ports that the system chose. The same conversations go
// through Envoy once per policy, and the times to first token are compared.
package demo
