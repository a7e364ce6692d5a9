package state

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
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
func many(n uint64) []Fit {
	var fits []Fit
	for i := range uint64(maxFits) {
		fits = append(fits, Fit{Pool: fmt.Sprintf("model-%03d", i), SecondsPerToken: 1e-4, SecondsPerStep: 0.01, Tokens: 5000, Steps: 4, Groups: n})
	}
	return fits
}

// keeper makes a Keeper and what it logs.
func keeper(t *testing.T, folder string) (*Keeper, *bytes.Buffer) {
	t.Helper()
	var log bytes.Buffer
	return New(Config{Directory: folder, Interval: time.Minute}, slog.New(slog.NewTextHandler(&log, nil)), prometheus.NewRegistry()), &log
}

var learnt = []Fit{
	{Pool: "qwen", SecondsPerToken: 1.2e-4, SecondsPerStep: 0.011, Tokens: 250_000, Steps: 50, Groups: 311},
	{Pool: "qwen", Kind: "small", SecondsPerToken: 3.1e-4, SecondsPerStep: 0.02, Tokens: 100_000, Steps: 40, Groups: 120},
	{Pool: "llama \"8b\"\n", SecondsPerToken: 9e-5, SecondsPerStep: 0.009, Tokens: 9, Steps: 1, Groups: 3},
}

func TestWhatIsWrittenIsReadAgain(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "made", "at first use")
	k, _ := keeper(t, folder)
	if got := k.Load(); got != nil {
		t.Fatalf("read %v where nothing is", got)
	}
	k.write(append([]Fit{{Pool: "untaught", SecondsPerToken: 1e-4, SecondsPerStep: 0.01}}, learnt...))
	again, log := keeper(t, folder)
	if diff := cmp.Diff(learnt, again.Load()); diff != "" {
		t.Errorf("(-written +read)\n%s", diff)
	}
	if got := testutil.ToFloat64(again.restored); got != float64(len(learnt)) || !strings.Contains(log.String(), "restored") {
		t.Errorf("metric %v, log %s", got, log)
	}
}

// It is written at the start, so that a folder that cannot be written is known
// then, at each interval where something changed, and at the end.
func TestWhenItIsWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, _ := keeper(t, t.TempDir())
		var fits atomic.Pointer[[]Fit]
		learn := func(f []Fit) { fits.Store(&f) }
		learn(learnt[:1])
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- k.Run(ctx, func() []Fit { return *fits.Load() }) }()
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
		learn(learnt)
		time.Sleep(time.Minute)
		writes(2)
		learn(learnt[:2])
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		writes(3)
		again, _ := keeper(t, k.folder)
		if diff := cmp.Diff(learnt[:2], again.Load()); diff != "" {
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
		"no number":         replaced(`0.011`, `"fast"`),
		"beyond all floats": replaced(`0.011`, `1e999`),
		"too long":          append(good, bytes.Repeat([]byte(" "), maxFile)...),
		"too many":          []byte(`{"firsttoken":"fits","version":1,"fits":[` + strings.TrimSuffix(strings.Repeat(`{},`, maxFits+1), ",") + `]}`),
	}
	for name, text := range tests {
		t.Run(name, func(t *testing.T) {
			folder := t.TempDir()
			k, log := keeper(t, folder)
			if err := os.WriteFile(k.File(), text, 0o600); err != nil {
				t.Fatal(err)
			}
			if got := k.Load(); got != nil {
				t.Errorf("read %v", got)
			}
			if !strings.Contains(log.String(), k.File()) || !strings.Contains(log.String(), "level=WARN") {
				t.Errorf("the log does not warn of the file: %s", log)
			}
			if aside, err := os.ReadFile(k.File() + ".refused"); err != nil || !bytes.Equal(aside, text) {
				t.Errorf("what was there is not put aside as it was: %v", err)
			}
			k.write(learnt)
			if again, _ := keeper(t, folder); len(again.Load()) != len(learnt) {
				t.Error("the next write did not take its place")
			}
		})
	}
	t.Run("a folder", func(t *testing.T) {
		k, log := keeper(t, t.TempDir())
		if err := os.MkdirAll(filepath.Join(k.File(), "in it"), 0o750); err != nil {
			t.Fatal(err)
		}
		if got := k.Load(); got != nil || !strings.Contains(log.String(), "level=WARN") {
			t.Errorf("read %v, log %s", got, log)
		}
	})
}

// A fit that no engine can have taught costs that pool what was learnt, no other.
func TestFitsThatCannotBeTrue(t *testing.T) {
	tests := map[string]string{
		"a negative time":  `"seconds_per_token": -1e-4`,
		"no time":          `"seconds_per_token": 0`,
		"too slow":         `"seconds_per_token": 20`,
		"steps of hours":   `"seconds_per_step": 10000`,
		"negative weight":  `"tokens": -1`,
		"immense weight":   `"steps": 1e300`,
		"a name too long":  `"pool": "` + strings.Repeat("x", maxName+1) + `"`,
		"the same pool":    `"pool": "good"`,
		"nothing but this": `"steps": 1e13, "tokens": 1e13`,
	}
	for name, fields := range tests {
		t.Run(name, func(t *testing.T) {
			bad := `{"pool": "bad", "seconds_per_token": 1e-4, "seconds_per_step": 0.01, ` + fields + `}`
			text := `{"firsttoken": "fits", "version": 1, "fits": [{"pool": "good", "seconds_per_token": 1e-4, "seconds_per_step": 0.01, "tokens": 1, "steps": 1, "groups": 7},` + bad + `]}`
			k, log := keeper(t, t.TempDir())
			if err := os.WriteFile(k.File(), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if got := k.Load(); len(got) != 1 || got[0].Groups != 7 {
				t.Errorf("read %v", got)
			}
			if !strings.Contains(log.String(), "learnt anew") {
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
	if got := k.Load(); got != nil {
		t.Errorf("read %v", got)
	}
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
		got := k.Load()
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
	k.Load()
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
	k.Load()
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

// More pools than are kept: those taught most are.
func TestSizeIsBounded(t *testing.T) {
	fits := many(1)
	long := strings.Repeat("\x01", maxName)
	for i := range fits {
		fits[i].Pool, fits[i].Kind = fmt.Sprintf("%03d", i)+long[3:], long
	}
	fits = append(fits, Fit{Pool: "well taught", SecondsPerToken: 1e-4, SecondsPerStep: 0.01, Groups: 9})
	text, err := encode(fits, time.Unix(1, 0))
	if err != nil || len(text) > maxFile {
		t.Fatalf("%d bytes, %v", len(text), err)
	}
	got, odd, err := decode(text)
	if err != nil || len(odd) > 0 || len(got) != maxFits || got[0].Pool != "well taught" {
		t.Errorf("%d fits, %v, %v", len(got), odd, err)
	}
}

// Whatever a file holds, what is taken from it is what would be written of it.
func FuzzDecode(f *testing.F) {
	good, err := encode(learnt, time.Unix(1, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"firsttoken":"fits","version":1,"fits":[{"pool":"p","seconds_per_token":1e-5,"seconds_per_step":1,"groups":1}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		fits, _, err := decode(text)
		if err != nil {
			return
		}
		for i := range fits {
			if fault := fits[i].valid(); fault != nil {
				t.Fatalf("%+v: %v", fits[i], fault)
			}
			fits[i].Groups = max(1, fits[i].Groups)
		}
		written, err := encode(fits, time.Unix(1, 0))
		if err != nil {
			t.Fatal(err)
		}
		again, odd, err := decode(written)
		if err != nil || len(odd) > 0 || len(again) != len(fits) {
			t.Fatalf("%v, %v, %d of %d", err, odd, len(again), len(fits))
		}
	})
}
