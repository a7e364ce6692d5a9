package overhead_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httputil"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// The client writes requests that are made beforehand and reads no more of an
// answer than is needed to know that it is whole. net/http on both ends would
// compute as much as Envoy does, on the same two cores.

// load is what is asked of one proxy.
type load struct {
	name     string // of the case, for people
	bytes    int    // of the body, about
	streamed bool
	clients  int // each has one connection and one request at a time
	// A load ends after requests where that is above zero, else window after
	// warmUp; in warmUp nothing counts.
	requests       int
	warmUp, window time.Duration
}

// outcome is what came of a load.
type outcome struct {
	latencies []time.Duration // of whole answers, sorted
	elapsed   time.Duration
	// decided are the answers that bear a decision's id.
	decided int
	faults  int
	fault   error // the first of them
}

func (o *outcome) rate() float64 { return float64(len(o.latencies)) / o.elapsed.Seconds() }

func (o *outcome) quantile(q float64) time.Duration {
	if len(o.latencies) == 0 {
		return 0
	}
	return o.latencies[int(q*float64(len(o.latencies)-1))]
}

// run puts the load on address. begun and over are called when counting begins
// and ends.
func (l load) run(ctx context.Context, address string, text *text, begun, over func()) outcome {
	var done atomic.Int64
	began := time.Now()
	counting := began.Add(l.warmUp)
	end := counting.Add(l.window)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if l.requests > 0 {
		begun()
	} else {
		defer time.AfterFunc(l.warmUp, begun).Stop()
		// A window that is over is closed at once, so that what its last
		// requests cost is not in it.
		defer time.AfterFunc(l.warmUp+l.window, over).Stop()
	}
	more := func() bool {
		if l.requests > 0 {
			return done.Add(1) <= int64(l.requests)
		}
		return time.Now().Before(end)
	}
	workers := make([]worker, l.clients)
	var all sync.WaitGroup
	for i := range workers {
		w := &workers[i]
		w.address, w.load, w.body = address, l, text.request(l.bytes, l.streamed)
		all.Go(func() {
			defer w.close()
			for more() && ctx.Err() == nil {
				sent := time.Now()
				err := w.exchange(ctx)
				got := time.Now()
				switch {
				case l.requests == 0 && (got.Before(counting) || got.After(end)):
				case err != nil:
					w.faults++
					w.fault = errors.Join(w.fault, err)
					if w.faults > 3 { // something is broken; the run says so
						cancel()
					}
				default:
					w.latencies = append(w.latencies, got.Sub(sent))
					if w.decided {
						w.decisions++
					}
				}
			}
		})
	}
	all.Wait()
	o := outcome{elapsed: l.window}
	if l.requests > 0 {
		o.elapsed = time.Since(began)
		over()
	}
	for i := range workers {
		w := &workers[i]
		o.latencies = append(o.latencies, w.latencies...)
		o.decided, o.faults = o.decided+w.decisions, o.faults+w.faults
		if o.fault == nil {
			o.fault = w.fault
		}
	}
	slices.Sort(o.latencies)
	return o
}

// worker is one client.
type worker struct {
	address string
	load    load
	body    *request
	conn    net.Conn
	in      *bufio.Reader

	decided   bool // the last answer bears a decision's id
	latencies []time.Duration
	decisions int
	faults    int
	fault     error
}

func (w *worker) close() {
	if w.conn != nil {
		_ = w.conn.Close()
		w.conn = nil
	}
}

// exchange sends the next request and reads its answer.
func (w *worker) exchange(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.conn == nil {
		if w.conn, err = new(net.Dialer).DialContext(ctx, "tcp", w.address); err != nil {
			return err
		}
		w.in = bufio.NewReader(w.conn)
	}
	if _, err = w.conn.Write(w.body.next()); err != nil {
		return err
	}
	last, err := w.read()
	if err == nil && last {
		w.close()
	}
	return err
}

// read reads one answer; last: the connection is not used again.
func (w *worker) read() (last bool, err error) {
	status, err := w.in.ReadSlice('\n')
	if err != nil {
		return false, fmt.Errorf("status: %w", err)
	}
	if !bytes.HasPrefix(status, []byte("HTTP/1.1 200 ")) {
		return false, fmt.Errorf("answered %q", bytes.TrimSpace(status))
	}
	length, chunked := -1, false
	w.decided = false
	for {
		line, err := w.in.ReadSlice('\n')
		if err != nil {
			return false, fmt.Errorf("headers: %w", err)
		}
		if line = bytes.TrimSpace(line); len(line) == 0 {
			break
		}
		key, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimSpace(value)
		switch {
		case bytes.EqualFold(key, []byte("content-length")):
			if length, err = strconv.Atoi(string(value)); err != nil {
				return false, err
			}
		case bytes.EqualFold(key, []byte("transfer-encoding")):
			chunked = bytes.EqualFold(value, []byte("chunked"))
		case bytes.EqualFold(key, []byte("connection")):
			last = bytes.EqualFold(value, []byte("close"))
		case bytes.EqualFold(key, []byte("x-firsttoken-id")):
			w.decided = len(value) > 0 && !bytes.Equal(value, []byte("-"))
		}
	}
	got := int64(length)
	switch {
	case chunked:
		got, err = io.Copy(io.Discard, httputil.NewChunkedReader(w.in))
		if err == nil {
			_, err = w.in.ReadSlice('\n') // behind the last chunk
		}
	case length >= 0:
		_, err = w.in.Discard(length)
	default:
		err = errors.New("answer without length")
	}
	if want := int64(answerLength(w.load.streamed)); err == nil && got != want {
		err = fmt.Errorf("an answer of %d bytes, want %d", got, want)
	}
	return last, err
}
