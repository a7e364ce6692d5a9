package canary

import (
	"encoding/binary"
	"math"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// Split is a configuration ready to share requests out. It is immutable and safe
// for concurrent use. The zero value has no arms.
type Split struct {
	arms []arm
	// userHeader is in lower case; empty: the session counts.
	userHeader string
	sticky     bool
	// headers are the names of the request headers that are looked at, in lower
	// case.
	headers []string
}

// arm is an Arm with what is computed once.
type arm struct {
	Arm
	// seed begins the hash of every key for this arm.
	seed uint64
	// header and value are what puts a request here; header is empty where nothing
	// does, value where any does.
	header, value string
}

// Request is what an assignment goes by.
type Request struct {
	// Model is what the engine is asked for, and Alias the name that the client used
	// in its place; empty: it used Model. An arm for either takes the request.
	Model, Alias string
	// Session is the value of the session key; empty: none.
	Session string
	// Header is the value of a request header, by its name in lower case; empty
	// where there is none. It is asked for the names of Headers only.
	Header func(name string) string
}

// New makes a Split of a valid configuration.
func New(c Config) *Split {
	s := &Split{sticky: c.Sticky, userHeader: strings.ToLower(c.UserHeader)}
	if s.userHeader != "" && len(c.Arms) > 0 {
		s.headers = append(s.headers, s.userHeader)
	}
	for _, a := range c.Arms {
		one := arm{Arm: a, seed: xxhash.Sum64String(a.Name)}
		if one.header, one.value = splitHeader(a.Header); one.header != "" {
			s.headers = append(s.headers, one.header)
		}
		s.arms = append(s.arms, one)
	}
	slices.Sort(s.headers)
	s.headers = slices.Compact(s.headers)
	return s
}

// Headers are the names of the request headers that assignments go by, in lower
// case. The caller must not write to it.
func (s *Split) Headers() []string { return s.headers }

// Arms are the names of the arms.
func (s *Split) Arms() []string {
	names := make([]string, len(s.arms))
	for i := range s.arms {
		names[i] = s.arms[i].Name
	}
	return names
}

// Assign is the arm that a request belongs to; ok is false where none takes it.
// draw is a random number, which decides for requests without a user.
//
// Each arm draws a number for the request from its hash and the arm's own name,
// exponentially distributed with the weight as its rate; the least wins. So the
// arms get shares as their weights (the least of exponential variables is each
// with the probability of its rate over the sum), the order of arms does not
// matter, and an arm whose weight grows beside the others' takes requests from
// them and gives none away: weighted rendezvous hashing (Schindelhauer and
// Schomaker, "Weighted Distributed Hash Tables", SPAA 2005).
func (s *Split) Assign(r Request, draw uint64) (chosen Arm, ok bool) {
	for i := range s.arms {
		a := &s.arms[i]
		if a.header == "" || !a.takes(r) {
			continue
		}
		if got := r.Header(a.header); got != "" && (a.value == "" || got == a.value) {
			return a.Arm, true
		}
	}
	key := s.key(r, draw)
	least := math.Inf(1)
	for i := range s.arms {
		a := &s.arms[i]
		if a.Weight == 0 || !a.takes(r) {
			continue
		}
		if at := a.arrival(key); at < least {
			least, chosen, ok = at, a.Arm, true
		}
	}
	return chosen, ok
}

// Knows reports whether the request has a user, who stays in an arm; else the draw
// decides.
func (s *Split) Knows(r Request) bool { return s.user(r) != "" }

// key is what the draw of a request goes by: who asks, else chance.
func (s *Split) key(r Request, draw uint64) string {
	if user := s.user(r); user != "" {
		return user
	}
	return string(binary.LittleEndian.AppendUint64(nil, draw))
}

// user is who asks, as far as that counts; empty: nobody known.
func (s *Split) user(r Request) string {
	switch {
	case !s.sticky:
		return ""
	case s.userHeader != "":
		return r.Header(s.userHeader)
	default:
		return r.Session
	}
}

// takes reports whether the arm is for requests of such a model.
func (a *arm) takes(r Request) bool {
	return len(a.Models) == 0 || slices.Contains(a.Models, r.Model) || r.Alias != "" && slices.Contains(a.Models, r.Alias)
}

// arrival is the arm's number for a key: exponentially distributed over keys, with
// the weight as its rate.
func (a *arm) arrival(key string) float64 {
	var hash xxhash.Digest
	hash.ResetWithSeed(a.seed)
	_, _ = hash.WriteString(key)
	// The upper 53 bits, in the middle of their interval: above 0 and below 1.
	uniform := (float64(hash.Sum64()>>11) + 0.5) / (1 << 53)
	return -math.Log(uniform) / float64(a.Weight)
}
