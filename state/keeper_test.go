package state

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/scoring"
)

// writerFolder, in the environment, makes this binary write there without end.
const writerFolder = "FIRSTTOKEN_TEST_STATE_FOLDER"

func TestMain(m *testing.M) {
	if folder := os.Getenv(writerFolder); folder != "" {
		k := New(Config{Directory: folder, Interval: time.Minute}, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		fmt.Println("writing")
		for n := uint64(1); ; n++ {
			k.write(many(n))
		}
	}
	os.Exit(m.Run())
}

// many fits, the more groups the later.
func many(n uint64) scoring.Fits {
	var fits scoring.Fits
	for i := range maxFits {
		fits.Models = append(fits.Models, scoring.ModelFit{Model: fmt.Sprintf("model-%03d", i), Fit: scoring.Fit{TokenSeconds: 0.5, Tokens: 5000, Groups: n}})
	}
	return fits
}

// load is what a Keeper reads.
func load(k *Keeper) (got scoring.Fits) {
	k.Load(func(f scoring.Fits) error {
		got = f
		return nil
	})
	return got
}

// keeper makes a Keeper and what it logs.
func keeper(t *testing.T, folder string) (*Keeper, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	return New(Config{Directory: folder, Interval: time.Minute}, slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry()), &log
}

var learnt = scoring.Fits{
	Models: []scoring.ModelFit{
		{Model: "llama \"8b\"\n", Fit: scoring.Fit{TokenSeconds: 0.1, Tokens: 1000, Groups: 3}},
		{Model: "qwen", Fit: scoring.Fit{TokenSeconds: 25.1, Tokens: 250_000, StepSeconds: 0.5, Steps: 50, Groups: 311}},
	},
	Kinds: []scoring.KindFit{
		{Model: "qwen", Kind: "small", Fit: scoring.Fit{TokenSeconds: 31, Tokens: 100_000, Groups: 120}, HeldSeconds: 7.5, OutputTokens: 250},
	},
}

// fewer is a part of what was learnt.
var fewer = scoring.Fits{Models: learnt.Models[:1]}

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "made", "at first use")
	k, _ := keeper(t, folder)
	k.Load(func(f scoring.Fits) error {
		t.Errorf("read %v where nothing is", f)
		return nil
	})
	taught := learnt
	taught.Models = append([]scoring.ModelFit{{Model: "untaught"}}, taught.Models...)
	k.write(taught)
	again, log := keeper(t, folder)
	if diff := cmp.Diff(learnt, load(again)); diff != "" {
		t.Errorf("(-written +read)\n%s", diff)
	}
	if got := testutil.ToFloat64(again.restored); got != 2 || !strings.Contains(log.String(), "read what was learnt") {
		t.Errorf("metric %v, log %s", got, log)
	}
}

// It is written at the start, so that a folder that cannot be written is known
// then, at each interval where something changed, and at the end.
func TestWhenItIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := keeper(t, t.TempDir())
		var fits atomic.Pointer[scoring.Fits]
		fits.Store(&fewer)
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx, func() scoring.Fits { return *fits.Load() }) }()
		writes := func(want float64) {
			t.Helper()
			synctest.Wait()
			if got := testutil.ToFloat64(k.writes.WithLabelValues("ok")); got != want {
				t.Errorf("%v writes, want %v", got, want)
			}
		}
		writes(1)
		time.Sleep(5 * time.Minute)
		writes(1)
		fits.Store(&learnt)
		time.Sleep(time.Minute)
		writes(2)
		fits.Store(&fewer)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		writes(3)
		again, _ := keeper(t, k.folder)
		if diff := cmp.Diff(fewer, load(again), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("(-last +read)\n%s", diff)
		}
	})
}

// A file that cannot be used never stops the start: it is put aside, named, and
// the next write takes its place.
func TestUnusableFiles(t *testing.T) {
	good, err := encode(learnt, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	replaced := func(from, to string) []byte { return bytes.Replace(good, []byte(from), []byte(to), 1) }
	tests := map[string][]byte{
		"empty":             {},
		"torn":              good[:len(good)/2],
		"not ours":          []byte(`{"fits": []}`),
		"another's list":    []byte(`[1, 2]`),
		"newer":             replaced(`"version": 1`, `"version": 2`),
		"no number":         replaced(`25.1`, `"fast"`),
		"beyond all floats": replaced(`25.1`, `1e999`),
		"too long":          append(good, bytes.Repeat([]byte(" "), maxFile)...),
		"too many":          []byte(`{"firsttoken":"fits","version":1,"fits":{"models":[` + strings.TrimSuffix(strings.Repeat(`{},`, maxFits+1), ",") + `]}}`),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			k, log := keeper(t, folder)
			if err := os.WriteFile(k.File(), text, 0o600); err != nil {
				t.Fatal(err)
			}
			k.Load(func(f scoring.Fits) error {
				t.Errorf("read %v", f)
				return nil
			})
			if !strings.Contains(log.String(), k.File()) || !strings.Contains(log.String(), "level=WARN") {
				t.Errorf("the log does not warn of the file: %s", log)
			}
			if aside, err := os.ReadFile(k.File() + ".refused"); err != nil || !bytes.Equal(aside, text) {
				t.Errorf("what was there is not put aside as it was: %v", err)
			}
			k.write(learnt)
			if again, _ := keeper(t, folder); len(load(again).Models) != len(learnt.Models) {
				t.Error("the next write did not take its place")
			}
		})
	}
	t.Run("a folder", func(t *testing.T) {
		k, log := keeper(t, t.TempDir())
		if err := os.MkdirAll(filepath.Join(k.File(), "in it"), 0o750); err != nil {
			t.Fatal(err)
		}
		if got := load(k); got.Models != nil || !strings.Contains(log.String(), "level=WARN") {
			t.Errorf("read %v, log %s", got, log)
		}
	})
}

// A fit that no engine can have taught costs that model what was learnt, no
// other.
func TestFitsThatCannotBeTrue(t *testing.T) {
	tests := map[string]string{
		"a negative time": `"token_seconds": -1, "tokens": 10000`,
		"too slow":        `"token_seconds": 20000, "tokens": 10000`,
		"too fast":        `"tokens": 1e20`,
		"no steps":        `"steps": 1e20`,
		"steps of hours":  `"step_seconds": 1e6, "steps": 10`,
		"negative weight": `"tokens": -1`,
		"immense weight":  `"steps": 1e300`,
	}
	for name, fields := range tests {
		t.Run(name, func(t *testing.T) {
			text := `{"firsttoken": "fits", "version": 1, "fits": {"models": [` +
				`{"model": "good", "token_seconds": 1, "tokens": 10000, "groups": 7}, {"model": "bad", "groups": 9, ` + fields + `}]}}`
			k, log := keeper(t, t.TempDir())
			if err := os.WriteFile(k.File(), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			picker, err := scoring.NewPicker(scoring.DefaultConfig(), time.Now, rand.New(rand.NewPCG(1, 2)))
			if err != nil {
				t.Fatal(err)
			}
			k.Load(picker.Restore)
			got := picker.Fits()
			if len(got.Models) != 1 || got.Models[0].Model != "good" || got.Models[0].Groups != 7 {
				t.Errorf("restored %+v", got)
			}
			if !strings.Contains(log.String(), "level=WARN") || !strings.Contains(log.String(), "bad") || !strings.Contains(log.String(), k.File()) {
				t.Errorf("the log does not tell: %s", log)
			}
		})
	}
}

// A folder that cannot be written is one line of log and a metric; once it can
// be, all is well without a restart.
func TestFolderThatCannotBeWritten(t *testing.T) {
	// A file where the folder should be stops root too.
	parent := filepath.Join(t.TempDir(), "parent")
	if err := os.WriteFile(parent, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	k, log := keeper(t, filepath.Join(parent, "state"))
	load(k)
	log.Reset()
	k.write(learnt)
	k.write(learnt)
	if got := testutil.ToFloat64(k.writes.WithLabelValues("error")); got != 2 {
		t.Errorf("%v failed writes counted, want 2", got)
	}
	if n := strings.Count(log.String(), "cannot write"); n != 1 || !strings.Contains(log.String(), k.File()) || !strings.Contains(log.String(), "state.directory") {
		t.Errorf("the log has %d lines of it: %s", n, log)
	}
	if err := os.Remove(parent); err != nil {
		t.Fatal(err)
	}
	k.write(learnt)
	if got := testutil.ToFloat64(k.writes.WithLabelValues("ok")); got != 1 || !strings.Contains(log.String(), "can be written again") {
		t.Errorf("%v good writes; log %s", got, log)
	}
}

// Killed at any moment, a writer leaves a whole file, and no heap of what it
// would have renamed.
func TestKilledWhileWriting(t *testing.T) {
	folder := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var last uint64
	for range 10 {
		writer := exec.CommandContext(t.Context(), self)
		writer.Env = append(os.Environ(), writerFolder+"="+folder)
		out, err := writer.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := writer.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		k, log := keeper(t, folder)
		// Kill it in the middle of what it does, once it has written.
		for {
			if info, err := os.Stat(k.File()); err == nil && info.Size() > 0 {
				break
			}
		}
		if err := writer.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = writer.Wait()
		got := load(k).Models
		if len(got) != maxFits {
			t.Fatalf("%d fits after a kill: %s", len(got), log)
		}
		for _, f := range got {
			if f.Groups != got[0].Groups {
				t.Fatalf("the file is of two writes: %d and %d", f.Groups, got[0].Groups)
			}
		}
		last = max(last, got[0].Groups)
	}
	// As if an hour later:
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	for _, e := range entries {
		if err := os.Chtimes(filepath.Join(folder, e.Name()), old, old); err != nil {
			t.Fatal(err)
		}
	}
	k, _ := keeper(t, folder)
	load(k)
	if entries, err = os.ReadDir(folder); err != nil || len(entries) != 1 {
		t.Errorf("the folder has %v, want the one file; %v", entries, err)
	}
	t.Logf("the writers came to %d writes", last)
}

// A fresh temporary file may be another replica's, which is about to rename it.
func TestFreshFilesOfAnotherAreLeftAlone(t *testing.T) {
	k, _ := keeper(t, t.TempDir())
	other := filepath.Join(k.folder, ".fits.json123")
	if err := os.WriteFile(other, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	load(k)
	if _, err := os.Stat(other); err != nil {
		t.Error(err)
	}
}

func TestFolder(t *testing.T) {
	t.Setenv("STATE_DIRECTORY", "/var/lib/firsttoken:/var/lib/more")
	if got := (Config{}).Folder(); got != "/var/lib/firsttoken" {
		t.Errorf("with systemd's: %q", got)
	}
	if got := (Config{Directory: "/x"}).Folder(); got != "/x" {
		t.Errorf("configured: %q", got)
	}
	t.Setenv("STATE_DIRECTORY", "")
	if New(Config{}, slog.New(slog.DiscardHandler), prometheus.NewRegistry()) != nil {
		t.Error("a Keeper without a folder")
	}
	if err := (Config{Interval: time.Millisecond}).Validate("state"); err == nil || !strings.HasPrefix(err.Error(), "state.interval: ") {
		t.Error(err)
	}
	if err := DefaultConfig().Validate("state"); err != nil {
		t.Error(err)
	}
}

// Names are as long as engines tell them, but not in the file.
func TestSizeIsBounded(t *testing.T) {
	fits := many(1)
	long := strings.Repeat("\x01", maxName)
	for i := range fits.Models {
		fits.Models[i].Model = fmt.Sprintf("%03d", i) + long[3:]
		fits.Kinds = append(fits.Kinds, scoring.KindFit{Model: fits.Models[i].Model, Kind: long, Fit: fits.Models[i].Fit})
	}
	fits.Models = append(fits.Models, fits.Models[0])
	fits.Models[1].Model += "x"
	fits.Kinds[1].Kind += "x"
	fits = kept(fits)
	text, err := encode(fits, time.Unix(1, 0))
	if err != nil || len(text) > maxFile {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	got, err := decode(text)
	if err != nil || len(got.Models) != maxFits || len(got.Kinds) != maxFits-1 {
		t.Errorf("%d models, %d kinds, %v", len(got.Models), len(got.Kinds), err)
	}
}

// Whatever a file holds, what is taken from it makes a Picker whose fits can be
// written and read again.
func FuzzDecode(f *testing.F) {
	good, err := encode(learnt, time.Unix(1, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"firsttoken":"fits","version":1,"fits":{"kinds":[{"model":"p","kind":"k","held_seconds":1e-5,"output_tokens":1,"groups":1}]}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		fits, err := decode(text)
		if err != nil {
			return
		}
		picker, err := scoring.NewPicker(scoring.DefaultConfig(), time.Now, rand.New(rand.NewPCG(1, 2)))
		if err != nil {
			t.Fatal(err)
		}
		_ = picker.Restore(fits)
		fits = kept(picker.Fits())
		written, err := encode(fits, time.Unix(1, 0))
		if err != nil {
			t.Fatal(err)
		}
		again, err := decode(written)
		if err != nil {
			t.Fatal(err)
		}
		if err := picker.Restore(again); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(fits, again, cmpopts.EquateEmpty()); diff != "" {
			t.Fatalf("(-written +read)\n%s", diff)
		}
		for model, p := range picker.Stats().Pools {
			if s, o := p.SecondsPerToken, p.SecondsPerStep; !(s > 1e-11 && s <= 1 && o > 1e-8 && o <= 100) {
				t.Fatalf("%q: %g s a token, %g s a step", model, s, o)
			}
		}
	})
}
