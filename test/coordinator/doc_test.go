// Package coordinator_test runs LMCache's own coordinator, the reporting code of
// its servers, and its controller against ours.
package coordinator_test
