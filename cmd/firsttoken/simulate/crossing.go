package simulate

import (
	"fmt"
	"math"
)

// bracket are two speeds between which the mean time to first token passes a
// limit.
type bracket struct {
	// within is the greatest speed found to hold the limit, above the least found
	// to break it. within is 0 where no speed holds it, above +Inf where none
	// breaks it.
	within, above float64
}

// The speeds that are tried: beyond them a trace is no longer that trace.
const (
	leastSpeed = 1.0 / 1024
	mostSpeed  = 1024.0
)

// crossing finds by bisection the speed at which a mean passes limit, to a
// share of precision. The mean is taken to grow with speed, which near
// saturation holds only roughly: another crossing may lie nearby.
func crossing(limit, precision float64, mean func(speed float64) (float64, error)) (bracket, error) {
	b := bracket{0, math.Inf(1)}
	for speed := 1.0; speed > leastSpeed/1.1 && speed < mostSpeed*1.1; {
		m, err := mean(speed)
		if err != nil {
			return b, fmt.Errorf("at speed %.4g: %w", speed, err)
		}
		if m <= limit {
			b.within = speed
		} else {
			b.above = speed
		}
		switch {
		case b.within == 0:
			speed /= math.Sqrt2
		case math.IsInf(b.above, 1):
			speed *= math.Sqrt2 // not far beyond: a run takes the longer the more is waiting
		case b.above/b.within <= 1+precision:
			return b, nil
		default:
			speed = math.Sqrt(b.within * b.above)
		}
	}
	return b, nil
}
