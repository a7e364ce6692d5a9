package scoring

import "time"

// equivalents is what prefills come to in tokens that attend to nothing: each of
// so many tokens costs its linear layers, and their area the attention to all
// before them, of which attentionTokens cost as much as the linear layers.
func equivalents(area Work, tokens Tokens, attentionTokens float64) float64 {
	return float64(tokens) + float64(area)/attentionTokens
}

const (
	// minWorkSeconds keeps requests that are wholly cached from being free.
	minWorkSeconds = 1e-4
	// minSteps is what a prefill takes of a step, however short it is.
	minSteps = 0.05
	// minBudget is what decoding requests leave of a step at least, in tokens.
	minBudget = 64
)

// steps is how many of the engine's steps a prefill of so many tokens fills
// when each has batchTokens tokens, one of which goes to each of decoding
// requests.
func steps(uncached Tokens, batchTokens, decoding int) float64 {
	return float64(uncached) / float64(max(minBudget, batchTokens-decoding))
}

// seconds is how long a prefill takes by itself: the linear and attention work
// at s seconds a token equivalent, and o seconds for each step.
func seconds(s, o, equivalents, steps float64) float64 {
	return max(minWorkSeconds, s*equivalents+o*max(steps, minSteps))
}

// exact is a time that can be booked and released in any order and leaves
// nothing: whole nanoseconds.
func exact(seconds float64) time.Duration {
	return time.Duration(min(seconds, maxSeconds) * float64(time.Second))
}

// maxSeconds is far above any prefill and below what a Duration holds, also as
// a sum of a million.
const maxSeconds = 1000
