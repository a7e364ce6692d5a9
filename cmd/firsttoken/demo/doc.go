// Package demo plays the whole service on one machine, with engines that report
// by LMCache's protocol. The same conversations go through Envoy once per policy,
// and the times to first token are compared.
package demo
