package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
)

// listenOn opens a TCP port. The address is host:port, or fd:N for a port that
// the parent process has opened and left in file descriptor N: it then knows the
// port before this process runs.
func listenOn(ctx context.Context, address string) (net.Listener, error) {
	number, ok := strings.CutPrefix(address, "fd:")
	if !ok {
		return new(net.ListenConfig).Listen(ctx, "tcp", address)
	}
	fd, err := strconv.ParseUint(number, 10, 31)
	if err != nil {
		return nil, fmt.Errorf("%q names no file descriptor; write fd:3", address)
	}
	f := os.NewFile(uintptr(fd), address)
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("%s is no open port: %w", address, err)
	}
	return l, nil
}
