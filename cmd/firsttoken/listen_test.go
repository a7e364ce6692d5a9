package main

import (
	"fmt"
	"net"
	"syscall"
	"testing"
)

func TestListenOnInheritedPort(t *testing.T) {
	opened, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	f, err := opened.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inherited, err := syscall.Dup(int(f.Fd())) // listenOn takes it over and closes it
	if err != nil {
		t.Fatal(err)
	}
	l, err := listenOn(t.Context(), fmt.Sprintf("fd:%d", inherited))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Addr().String() != opened.Addr().String() {
		t.Errorf("listens on %s, want %s", l.Addr(), opened.Addr())
	}
}

func TestListenOnRefusesWhatIsNoPort(t *testing.T) {
	for _, address := range []string{"fd:", "fd:x", "fd:-1", "fd:9999", "nowhere"} {
		if l, err := listenOn(t.Context(), address); err == nil {
			l.Close()
			t.Errorf("%s: no error", address)
		}
	}
}
