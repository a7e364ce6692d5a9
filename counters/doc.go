// Package counters reads what each engine counts and says of itself: how much
// its cache holds, how much of what it was asked for it found there, and when
// it was started. Its Scraper asks every engine for /metrics by itself, so one
// that is slow or silent delays no other.
package counters
