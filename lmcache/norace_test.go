//go:build !race

package lmcache_test

const raceDetector = false
