package xds_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/test/bufconn"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/envoy/xds"
)

// complaints counts the lines of a log that hold a text, and calls enough at the
// third.
type complaints struct {
	text   string
	number int
	enough func()
}

func (c *complaints) Write(line []byte) (int, error) {
	if strings.Contains(string(line), c.text) {
		if c.number++; c.number == 3 {
			c.enough()
		}
	}
	return len(line), nil
}

// A list that is empty while an engine is leaving is named once.
func TestEmptyListWhileAnEngineLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		log := &complaints{text: "no endpoint", enough: cancel}
		resources := envoy.Config{Listen: "127.0.0.1:8080", Route: envoy.RouteClusterHeader, BodyLimit: 1 << 20, DecisionDeadline: time.Second}
		server, err := xds.New(resources, time.Second, slog.New(slog.NewTextHandler(log, nil)), xds.NewMetrics(prometheus.NewRegistry()))
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- server.Run(ctx, bufconn.Listen(1)) }()
		a, b := member("10.0.0.1:8000", "a"), member("10.0.0.2:8000", "b")
		for _, members := range [][]envoy.Member{{a, b}, {a}, {}} {
			server.SetMembers(members)
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if log.number != 1 {
			t.Errorf("the empty list was named %d times", log.number)
		}
	})
}
