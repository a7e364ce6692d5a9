package main

import (
	"context"
	"log/slog"
	"syscall"
	"testing"

	"golang.org/x/sync/errgroup"
)

// A signal that comes while the service is still being made counts once it runs;
// it does not end the process.
func TestSignalBeforeStart(t *testing.T) {
	turned := make(chan bool, 1)
	c := newChoosing(config{}, func(choose bool) { turned <- choose }, slog.New(slog.DiscardHandler))
	t.Cleanup(c.close)
	if err := syscall.Kill(syscall.Getpid(), syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var group errgroup.Group
	c.start(ctx, &group)
	if <-turned {
		t.Error("SIGUSR1 turned choosing on")
	}
	stop()
	if err := group.Wait(); err != nil {
		t.Error(err)
	}
}
