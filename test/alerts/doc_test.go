// Package alerts tests the alert rules and the dashboard below deploy/ with
// Prometheus' own code. It is a module of its own, so that what Prometheus needs
// stays out of what the service needs.
package alerts
