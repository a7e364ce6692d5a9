package bench

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
)

// Progress shows on a terminal how far a run is. A nil one shows nothing. Safe
// for concurrent use.
type Progress struct {
	mu     sync.Mutex // guards the following
	bar    *progressbar.ProgressBar
	what   string
	ttft   time.Duration // sum
	ok     int
	failed int
}

// NewProgress shows a bar for total requests; 0: as many as there will be.
func NewProgress(w io.Writer, what string, total int) *Progress {
	if total == 0 {
		total = -1 // a spinner
	}
	const width, redraw = 24, 100 * time.Millisecond
	return &Progress{what: what, bar: progressbar.NewOptions(total,
		progressbar.OptionSetWriter(w), progressbar.OptionSetWidth(width), progressbar.OptionThrottle(redraw),
		progressbar.OptionShowCount(), progressbar.OptionClearOnFinish(), progressbar.OptionSetDescription(what),
		progressbar.OptionSetRenderBlankState(true),
	)}
}

// Done counts one record.
func (p *Progress) Done(r Record) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.Fault != nil {
		p.failed++
	} else {
		p.ok++
		p.ttft += r.FirstToken
	}
	text := p.what
	if p.ok > 0 {
		text += fmt.Sprintf(", mean TTFT %s", (p.ttft / time.Duration(p.ok)).Round(time.Millisecond))
	}
	if p.failed > 0 {
		text += fmt.Sprintf(", %d failed", p.failed)
	}
	p.bar.Describe(text)
	_ = p.bar.Add(1) // a terminal that cannot be written to is not our affair
}

// End takes the bar away.
func (p *Progress) End() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.bar.Clear()
	_ = p.bar.Close()
}
