//go:build race

package lmcache_test

// raceDetector: sync.Pool drops what it is given at random, so memory is not
// measured.
const raceDetector = true
