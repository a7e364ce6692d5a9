package scoring

import "time"

// rate counts what was sent to an endpoint in the last rateWindow, in buckets,
// so that it needs the same memory at any rate.
type rate struct {
	buckets [rateBuckets]uint32
	newest  int64 // the bucket of the last call, counted from the clock's zero
	total   uint32
}

// rateWindow is over how long requests per second are taken, the default of
// production-stack's router.
const (
	rateBuckets = 60
	rateBucket  = time.Second
	rateWindow  = rateBuckets * rateBucket
)

// turn forgets what is older than the window.
func (w *rate) turn(now time.Time) {
	at := now.UnixNano() / int64(rateBucket)
	if at-w.newest >= rateBuckets {
		*w = rate{newest: at}
	}
	for ; w.newest < at; w.newest++ {
		b := &w.buckets[uint64(w.newest+1)%rateBuckets] //nolint:gosec // any number will do, as long as it is the same next time
		w.total -= *b
		*b = 0
	}
}

func (w *rate) add(now time.Time) {
	w.turn(now)
	w.buckets[uint64(w.newest)%rateBuckets]++ //nolint:gosec // as above
	w.total++
}

// perSecond is the requests per second of the window.
func (w *rate) perSecond(now time.Time) float64 {
	w.turn(now)
	return float64(w.total) / rateWindow.Seconds()
}
