// Package certificate is how a port of ours speaks TLS: with the certificate of
// files that may change while it serves, or with one that it makes itself.
package certificate
