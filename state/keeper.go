package state

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/scoring"
)

// Keeper reads the file at the start and writes it from then on. Nothing about
// it ever fails the service: what goes wrong is logged and counted.
type Keeper struct {
	folder   string        // set once
	interval time.Duration // set once
	log      *slog.Logger  // set once
	restored prometheus.Gauge
	writes   *prometheus.CounterVec

	// The following belong to Run.
	written *scoring.Fits // what is in the file; nil: unknown
	failing bool          // the last write failed, and the log told of it
}

// New makes a Keeper; nil where cfg names no folder, so that nothing is kept.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) *Keeper {
	if cfg.Folder() == "" {
		return nil
	}
	k := &Keeper{
		folder: cfg.Folder(), interval: cfg.Interval, log: log,
		restored: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "firsttoken_state_restored_models", Help: "Models whose engines' learnt speed was read from the state directory at the start.",
		}),
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "firsttoken_state_writes_total", Help: "Writes to the state directory, by result: ok, error.",
		}, []string{"result"}),
	}
	for _, result := range []string{"ok", "error"} {
		k.writes.WithLabelValues(result)
	}
	reg.MustRegister(k.restored, k.writes)
	return k
}

// File is where the fits are kept.
func (k *Keeper) File() string { return file(k.folder) }

// Load hands to restore what the service before this one knew; nothing where
// there is no file, or none that can be used, which is put aside for people to
// look at. The error of restore says which entries were passed over.
func (k *Keeper) Load(restore func(scoring.Fits) error) {
	k.sweep()
	text, err := read(k.File())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var fits scoring.Fits
	if err == nil {
		fits, err = decode(text)
	}
	if err != nil {
		k.refuse(err)
		return
	}
	if err := restore(fits); err != nil {
		k.log.Warn("some of the learnt engine speeds cannot be true and are learnt anew", "file", k.File(), "error", err)
	}
	k.restored.Set(float64(len(fits.Models)))
	k.log.Info("read what was learnt of the engines' speed", "file", k.File(), "models", len(fits.Models), "kinds", len(fits.Kinds))
}

// refuse puts a file aside that cannot be used, in place of one put aside
// before, so that it can neither be lost nor pile up.
func (k *Keeper) refuse(why error) {
	aside := k.File() + ".refused"
	if err := os.Rename(k.File(), aside); err != nil {
		k.log.Warn("cannot use the file of learnt engine speeds, nor put it aside; speeds are learnt anew. Delete it, or name another folder in state.directory",
			"file", k.File(), "error", why, "rename_error", err)
		return
	}
	k.log.Warn("cannot use the file of learnt engine speeds; it was put aside and speeds are learnt anew. Delete it if nobody misses it",
		"file", k.File(), "put_aside", aside, "error", why)
}

// read is the content of a file that is no longer than we write them.
func read(name string) ([]byte, error) {
	f, err := os.Open(name) //nolint:gosec // The operator names the folder.
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("it has more than %d bytes", maxFile)
	}
	return text, err
}

// leftover is the age from which a file that a write would have renamed belongs
// to a process that died in between.
const leftover = time.Minute

// sweep removes what writes left behind that were killed.
func (k *Keeper) sweep() {
	entries, _ := os.ReadDir(k.folder) // What is wrong with the folder, the first write tells.
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.Mode().IsRegular() && strings.HasPrefix(e.Name(), "."+filepath.Base(k.File())) && time.Since(info.ModTime()) > leftover {
			_ = os.Remove(filepath.Join(k.folder, e.Name()))
		}
	}
}

// Run writes what fits returns, now, at every interval at which it changed, and
// when ctx ends. Call it once, after Load.
func (k *Keeper) Run(ctx context.Context, fits func() scoring.Fits) error {
	ticker := time.NewTicker(k.interval)
	defer ticker.Stop()
	for {
		k.write(fits())
		select {
		case <-ctx.Done():
			k.write(fits())
			return nil
		case <-ticker.C:
		}
	}
}

// write brings the file up to date.
func (k *Keeper) write(fits scoring.Fits) {
	fits = kept(fits)
	if k.written != nil && !k.failing && slices.Equal(fits.Models, k.written.Models) && slices.Equal(fits.Kinds, k.written.Kinds) {
		return
	}
	if err := k.replace(fits); err != nil {
		k.writes.WithLabelValues("error").Inc()
		if !k.failing {
			k.log.Warn("cannot write what was learnt of the engines' speed; the next start learns anew. Make the folder writable, or name another one in state.directory",
				"file", k.File(), "error", err)
		}
		k.failing = true
		return
	}
	k.writes.WithLabelValues("ok").Inc()
	if k.failing {
		k.log.Info("what was learnt of the engines' speed can be written again", "file", k.File())
	}
	k.failing = false
	k.written = &fits
}

// replace writes the file anew: whoever reads it, or finds it after a crash,
// sees the old one or the new one.
func (k *Keeper) replace(fits scoring.Fits) error {
	text, err := encode(fits, time.Now())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(k.folder, 0o750); err != nil {
		return err
	}
	return renameio.WriteFile(k.File(), text, 0o640, renameio.WithTempDir(k.folder))
}
