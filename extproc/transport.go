package extproc

import (
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
)

// The windows of HTTP/2: how much Envoy may send before we have read it. With
// the 64 KiB that gRPC begins with a prompt of that length waits for leave in
// the middle; longer messages are given leave as they are read. Few Envoys are
// connected, each by one connection for a worker thread.
const (
	streamWindow     = 1 << 20
	connectionWindow = 16 << 20
)

// readBuffer is what one read of a connection takes: with gRPC's 32 KiB a long
// prompt is many reads. It is kept for each connection.
const readBuffer = 128 << 10

// transport is how gRPC reads and writes; measured by make bench-envoy.
func transport(cfg Config) []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(cfg.BodyLimit + messageOverhead),
		// A buffered body with another model's name is sent back whole.
		grpc.MaxSendMsgSize(cfg.BodyLimit + messageOverhead),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.ReadBufferSize(readBuffer),
		experimental.BufferPool(buffers),
		// A stream in a new goroutine grows its stack anew each time. More
		// streams than workers get one.
		grpc.NumStreamWorkers(idleGoroutines),
		// Envoys ping once a second to find a service that hangs, and are not sent
		// away for it.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 500 * time.Millisecond, PermitWithoutStream: true}),
	}
}

// buffers are what messages are put together in. gRPC's own pool has nothing
// between 32 KiB and 1 MiB, and clears a buffer to its end before it is used
// again: for a prompt of 80 KB that is more work than reading it.
var buffers = func() mem.BufferPool {
	pool, err := mem.NewBinaryTieredBufferPool(8, 12, 14, 15, 16, 17, 18, 19, 20, 21, 22)
	if err != nil {
		panic(fmt.Sprintf("ext_proc buffers: %v", err)) // only for sizes beyond the machine's
	}
	return pool
}()
