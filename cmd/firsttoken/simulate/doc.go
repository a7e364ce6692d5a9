// Package simulate is the command that replays a trace, or a workload whose
// clients wait for answers, over simulated engines, once for each policy, and
// says what each would have cost and carried.
package simulate
