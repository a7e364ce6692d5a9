package trace

import "strconv"

// A block that more requests than these have is no sign of who asks: a system
// prompt that all share, or the beginning of a chat template.
const (
	commonShare = 0.01 // of all requests
	commonLeast = 10   // requests
)

// NameSessions guesses the Session of requests that have none: that of the first
// block of the prompt that few requests have. It returns how many it named; a
// prompt of common blocks only tells nothing.
func NameSessions(requests []Request) (named int) {
	count := make(map[uint64]int)
	for i := range requests {
		for _, block := range requests[i].Blocks {
			count[block]++
		}
	}
	common := max(commonLeast, int(commonShare*float64(len(requests))))
	for i := range requests {
		r := &requests[i]
		if r.Session != "" {
			continue
		}
		for _, block := range r.Blocks {
			if count[block] <= common {
				r.Session = "block " + strconv.FormatUint(block, 16)
				named++
				break
			}
		}
	}
	return named
}
