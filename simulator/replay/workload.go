package replay

import (
	"time"

	"github.com/firsttoken/firsttoken/simulator/trace"
)

// Workload gives requests in order of time. It may wait for one to end before
// it gives another (a closed loop). A workload is used up by one Run.
type Workload interface {
	// Next is when the next request comes, which stays to be taken; false: none
	// comes before one that is under way ends. It is never before a time that
	// Ended was told or that was taken.
	Next() (at time.Duration, ok bool)
	// Take is the request that Next told of. Its Blocks are of Setup.BlockTokens
	// each; those that begin behind its prompt are of the answer, which is then
	// found by later prompts that go on from it.
	Take() trace.Request
	// Ended tells that the n-th request taken, from 0 on, is over.
	Ended(n int, at time.Duration)
}

// Open is the workload of requests that come when they come, in their order.
func Open(requests []trace.Request) Workload { return &open{requests} }

type open struct{ left []trace.Request }

func (o *open) Next() (time.Duration, bool) {
	if len(o.left) == 0 {
		return 0, false
	}
	return o.left[0].At, true
}

func (o *open) Take() trace.Request {
	r := o.left[0]
	o.left = o.left[1:]
	return r
}

func (o *open) Ended(int, time.Duration) {}
