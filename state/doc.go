// Package state keeps what the service has learnt of its engines over a
// restart: how fast each pool computes. The file is small, for people to read,
// and never needed: without it the service learns anew.
package state
