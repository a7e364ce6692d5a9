// Package stack runs the whole service on one machine: simulated engines, the
// service and a real Envoy, each a process of its own on loopback ports that the
// system chose. What is sent through it is the caller's business.
package stack
