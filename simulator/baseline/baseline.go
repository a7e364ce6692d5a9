// Package baseline holds policies that others have published or proposed, for
// the simulator to compare with. The service does not offer them.
package baseline

// The policy ids, as flags and reports call them.
const (
	Uncached   = "uncached"
	LMetric    = "lmetric"
	LLMDAffine = "llmd-affinity"
	Dynamo     = "dynamo"
	Oracle     = "oracle"
)

// IDs lists them.
func IDs() []string { return []string{Uncached, LMetric, LLMDAffine, Dynamo, Oracle} }
