package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/firsttoken/firsttoken/prompt/native"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"firsttoken": main})
}

// The scripts run the program as users do. Besides testscript's own commands
// they have
//
//	serve [flag…]      starts firsttoken serve and waits until it is bound
//	admin path [text]  gets a path of the admin port; the body must have text
//	log text           waits until the service has logged text, in any order
//	signal TERM        signals the service
//	ends N             waits for its end with status N, or by a signal: ends TERM
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/scripts",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		// [native] holds where the tokenizer library is built in.
		Condition: func(name string) (bool, error) {
			if name != "native" {
				return false, fmt.Errorf("unknown condition %q", name)
			}
			_, err := native.LoadTokenizer("nowhere", native.Options{})
			return !errors.Is(err, native.ErrNotBuilt), nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve":  scriptServe,
			"admin":  scriptAdmin,
			"log":    scriptLog,
			"signal": scriptSignal,
			"ends":   scriptEnds,
		},
	})
}

// served is the service that a script has started.
type served struct {
	cmd   *exec.Cmd
	bound bound
	// log gives the lines of standard error until the service ends; seen has
	// those that were read.
	log  *bufio.Scanner
	seen []string
}

// services has the service of each script; scripts run side by side.
var services sync.Map // *testscript.TestScript to *served

func ofScript(ts *testscript.TestScript) *served {
	s, ok := services.Load(ts)
	if !ok {
		ts.Fatalf("the script has not started the service")
	}
	return s.(*served)
}

func scriptServe(ts *testscript.TestScript, _ bool, args []string) {
	// A service that does not end is killed, so that the script fails in time.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	ts.Defer(cancel)
	cmd := exec.CommandContext(ctx, "firsttoken", append([]string{"serve", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--lmcache=false"}, args...)...)
	cmd.Dir = ts.Getenv("WORK")
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	s := &served{cmd: cmd, log: bufio.NewScanner(stderr)}
	ts.Defer(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	ts.Check(json.NewDecoder(stdout).Decode(&s.bound))
	ts.Setenv("ADMIN", s.bound.Admin)
	services.Store(ts, s)
	ts.Defer(func() { services.Delete(ts) })
}

func scriptAdmin(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: admin path [text]")
	}
	resp, err := http.Get("http://" + ofScript(ts).bound.Admin + args[0])
	ts.Check(err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	ts.Check(err)
	if (resp.StatusCode != http.StatusOK) != neg {
		ts.Fatalf("%s: status %d\n%s", args[0], resp.StatusCode, body)
	}
	if len(args) == 2 && !strings.Contains(string(body), args[1]) {
		ts.Fatalf("%s has no %q:\n%s", args[0], args[1], body)
	}
}

func scriptLog(ts *testscript.TestScript, _ bool, args []string) {
	s := ofScript(ts)
	has := func(line string) bool { return strings.Contains(line, args[0]) }
	if slices.ContainsFunc(s.seen, has) {
		return
	}
	for s.log.Scan() {
		s.seen = append(s.seen, s.log.Text())
		if has(s.log.Text()) {
			return
		}
	}
	ts.Fatalf("the service ended without logging %q", args[0])
}

func scriptSignal(ts *testscript.TestScript, _ bool, args []string) {
	signals := map[string]syscall.Signal{"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2}
	ts.Check(ofScript(ts).cmd.Process.Signal(signals[args[0]]))
}

func scriptEnds(ts *testscript.TestScript, _ bool, args []string) {
	s := ofScript(ts)
	for s.log.Scan() { // Wait closes the pipe, so it is read first.
	}
	err := s.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	state := s.cmd.ProcessState
	got := strconv.Itoa(state.ExitCode())
	if by := state.Sys().(syscall.WaitStatus); by.Signaled() {
		got = map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGINT: "INT"}[by.Signal()]
	}
	if got != args[0] {
		ts.Fatalf("ended with %s, want %s", got, args[0])
	}
}
