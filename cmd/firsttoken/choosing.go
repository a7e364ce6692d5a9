package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/firsttoken/firsttoken/scoring"
)

// choosing is the switch that leaves every request to Envoy. Two hands are on it:
// a file, whose presence says off, and people, by the admin port or a signal. It is
// off while either says so. What people said does not outlive the process; a file
// does.
type choosing struct {
	// The following are set once. file is empty where none is looked at; apply makes
	// what was decided hold.
	file  string
	apply func(choose bool)
	// caution says what Envoy cannot do in the service's place now.
	caution func() string
	log     *slog.Logger
	// signals brings SIGUSR1 and SIGUSR2.
	signals chan os.Signal

	// mu guards the following fields. It is held while apply is called, so that what
	// holds is what was said last.
	mu sync.Mutex
	// byFile and by say who turned it off; by is empty where no person did.
	byFile bool
	by     string
	since  time.Time
	// fault is why the file could not be looked at, the last time.
	fault string
}

// choosingStatus is who chooses, and who said so.
type choosingStatus struct {
	// Choosing: the service does. Otherwise Envoy does, and OffBy says why.
	Choosing bool     `json:"choosing"`
	OffBy    []string `json:"off_by"`
	// Since is when this last changed, or the service was started.
	Since time.Time `json:"since"`
	// OffFile is the file whose presence turns choosing off; empty: none.
	OffFile string `json:"off_file"`
	// Caution says what Envoy cannot do in the service's place.
	Caution string `json:"caution,omitempty"`
	// Fault is why that file could not be looked at; what was found before holds.
	Fault string `json:"fault,omitempty"`
}

// newChoosing is a switch that is on; look asks for the file. It takes the signals
// until close. endpoints gives those of now; it is asked once the service is made.
func newChoosing(cfg config, endpoints func() []scoring.Endpoint, apply func(bool), log *slog.Logger) *choosing {
	c := &choosing{
		file: cfg.Server.OffFile, apply: apply, log: log, since: time.Now(),
		caution: func() string { return cfg.caution(endpoints()) },
		signals: make(chan os.Signal, 4),
	}
	// One that comes before start waits; untaken it would end the process.
	signal.Notify(c.signals, syscall.SIGUSR1, syscall.SIGUSR2)
	return c
}

// close lets go of the signals.
func (c *choosing) close() { signal.Stop(c.signals) }

// errOffFile: people want choices to be made, but a file says no.
var errOffFile = errors.New("choosing stays off while the file is there")

// set is a person's word, given by the means named.
func (c *choosing) set(choose bool, means string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !choose {
		c.changeLocked(means, func() { c.by = means })
		return nil
	}
	c.changeLocked(means, func() { c.by = "" })
	if c.byFile {
		return fmt.Errorf("%w: remove %s (server.off_file)", errOffFile, c.file)
	}
	return nil
}

// look looks for the file. Where that fails what was found before holds.
func (c *choosing) look() {
	if c.file == "" {
		return
	}
	_, err := os.Lstat(c.file)
	there := err == nil
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		if c.fault != err.Error() {
			c.log.Error("cannot look for the file that turns choosing off; what was found before holds", "key", "server.off_file", "error", err)
		}
		c.fault = err.Error()
		return
	}
	c.fault = ""
	c.changeLocked("file "+c.file, func() { c.byFile = there })
}

// changeLocked lets f, by the means named, change what the hands say, and makes it
// hold. Caller must hold mu.
func (c *choosing) changeLocked(means string, f func()) {
	before := c.viewLocked()
	f()
	now := c.viewLocked()
	if before.Choosing == now.Choosing {
		return
	}
	c.since = time.Now()
	c.apply(now.Choosing)
	if now.Choosing {
		c.log.Warn("choosing again", "by", means)
		return
	}
	c.log.Warn("told to make no choices: every request is left to Envoy", "by", means, "caution", c.caution())
}

// view is who chooses.
func (c *choosing) view() choosingStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.viewLocked()
	v.Caution = c.caution()
	return v
}

// viewLocked is view without the caution. Caller must hold mu.
func (c *choosing) viewLocked() choosingStatus {
	v := choosingStatus{OffBy: []string{}, Since: c.since, OffFile: c.file, Fault: c.fault}
	if c.by != "" {
		v.OffBy = append(v.OffBy, c.by)
	}
	if c.byFile {
		v.OffBy = append(v.OffBy, "file "+c.file)
	}
	v.Choosing = len(v.OffBy) == 0
	return v
}

// caution says what Envoy cannot do in the service's place, where these are the
// endpoints; those whose models are not known yet say nothing.
func (c config) caution(endpoints []scoring.Endpoint) string {
	var list []string
	if len(c.Aliases) > 0 {
		list = append(list, "requests for an alias keep it, which no engine knows (aliases)")
	}
	known, served := 0, map[string]int{}
	for i := range endpoints {
		if len(endpoints[i].Models) > 0 {
			known++
		}
		for _, model := range endpoints[i].Models {
			served[model]++
		}
	}
	for _, n := range served {
		if n < known {
			list = append(list, "Envoy does not tell models apart and sends requests to engines that do not serve theirs (endpoints[].models)")
			break
		}
	}
	if c.Server.Pins {
		list = append(list, "requests for one engine by ?id= go to any (server.pins)")
	}
	list = append(list, "a gateway's subset hints are not followed")
	return strings.Join(list, "; ")
}

// fileInterval is how soon the file counts. A look costs some microseconds.
const fileInterval = 250 * time.Millisecond

// start follows the file and the signals until ctx ends: SIGUSR1 turns off, SIGUSR2
// on. They are two, because whoever sends one may not know what holds: sent twice it
// says the same.
func (c *choosing) start(ctx context.Context, group *errgroup.Group) {
	group.Go(func() error {
		ticker := time.NewTicker(fileInterval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-ticker.C:
				c.look()
			case got := <-c.signals:
				means := map[os.Signal]string{syscall.SIGUSR1: "signal SIGUSR1", syscall.SIGUSR2: "signal SIGUSR2"}[got]
				if err := c.set(got == syscall.SIGUSR2, means); err != nil {
					c.log.Warn("asked by signal to choose again", "error", err)
				}
			}
		}
	})
}

// ServeHTTP answers GET and POST of /choosing with who chooses; POST with
// ?on=false or ?on=true changes it first. 409 says that a file stands against it.
func (c *choosing) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	answer := struct {
		choosingStatus
		Error string `json:"error,omitempty"`
	}{}
	code := http.StatusOK
	if r.Method == http.MethodPost {
		on, err := strconv.ParseBool(r.URL.Query().Get("on"))
		if err != nil {
			code, answer.Error = http.StatusBadRequest, "write POST /choosing?on=false to leave every request to Envoy, ?on=true to choose again"
		} else if err := c.set(on, "admin port"); err != nil {
			code, answer.Error = http.StatusConflict, err.Error()
		}
	}
	answer.choosingStatus = c.view()
	w.WriteHeader(code)
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(answer); err != nil {
		c.log.Debug("cannot write who chooses", "error", err)
	}
}
