package stack

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
)

// The test binary plays the child, as STACK_CHILD says.
func TestMain(m *testing.M) {
	switch os.Getenv("STACK_CHILD") {
	case "":
		os.Exit(m.Run())
	case "announce":
		fmt.Println("a line that is no JSON")
		fmt.Println(`{"address":"127.0.0.1:1"}`)
		select {}
	case "fail":
		fmt.Fprintln(os.Stderr, "no such tokenizer")
		os.Exit(3)
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		fmt.Println(`{}`)
		select {}
	case "parent": // starts a child and waits to be killed
		os.Setenv("STACK_CHILD", "announce")
		c, err := startChild("grandchild", nil, os.Args[0])
		if err != nil {
			panic(err)
		}
		fmt.Println(c.cmd.Process.Pid)
		select {}
	}
}

func startTest(t *testing.T, role string) *child {
	t.Helper()
	t.Setenv("STACK_CHILD", role)
	c, err := startChild(role, nil, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	return c
}

func TestChildAnnouncesItself(t *testing.T) {
	c := startTest(t, "announce")
	var got struct{ Address string }
	if err := c.announcement(t.Context(), &got); err != nil || got.Address != "127.0.0.1:1" {
		t.Errorf("announcement = %+v, %v", got, err)
	}
}

func TestChildThatFailsSaysWhy(t *testing.T) {
	c := startTest(t, "fail")
	err := c.announcement(t.Context(), new(struct{}))
	if err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no such tokenizer") {
		t.Errorf("error %v, want the status and the last line of standard error", err)
	}
}

func TestChildrenReportADeath(t *testing.T) {
	t.Setenv("STACK_CHILD", "fail")
	cs := newChildren()
	if _, err := cs.start("engine 1", nil, os.Args[0]); err != nil {
		t.Fatal(err)
	}
	if err := <-cs.died; !strings.Contains(err.Error(), "engine 1 ended (exit status 3)") {
		t.Errorf("died: %v", err)
	}
	cs.stop()
}

func TestStopIsNoDeath(t *testing.T) {
	t.Setenv("STACK_CHILD", "announce")
	cs := newChildren()
	c, err := cs.start("engine 1", nil, os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	cs.stop()
	<-c.exited
	select {
	case err := <-cs.died:
		t.Errorf("reported %v for a child that was told to end", err)
	default:
	}
}

func TestAnnouncementEndsWithItsContext(t *testing.T) {
	c := startTest(t, "stubborn")
	if err := c.announcement(t.Context(), new(struct{})); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.announcement(ctx, new(struct{})); err == nil {
		t.Error("no error though nothing was announced again")
	}
	_ = c.cmd.Process.Kill() // spare the test the grace
}
