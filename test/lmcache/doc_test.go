// Package lmcache_test runs LMCache's own worker code against the controller.
package lmcache_test
