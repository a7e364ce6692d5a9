package envoy_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/envoy"
)

// Envoy takes standbys, body modes and rescue in whatever company, with services
// that are addresses, names or a socket beside an address.
func TestEnvoyValidatesVariants(t *testing.T) {
	for _, services := range [][]string{
		{"127.0.0.1:9002", "127.0.0.2:9002"},
		{"a.example.com:9002", "b.example.com:9002", "127.0.0.2:9002"},
		{"unix:/run/firsttoken/extproc.sock", "127.0.0.2:9002"},
	} {
		for _, mode := range []envoy.BodyMode{envoy.BodyBuffered, envoy.BodyFullDuplex} {
			for _, rescue := range []*envoy.Rescue{nil, {Longest: time.Minute}} {
				t.Run(fmt.Sprint(services, mode, rescue != nil), func(t *testing.T) {
					c := config(&service{address: services[0]}, startEngine(t))
					c.Standby, c.BodyMode, c.Rescue = services[1:], mode, rescue
					c.Listen, c.Admin, c.ServiceTLS = "127.0.0.1:0", "127.0.0.1:0", &envoy.PortTLS{}
					bootstrap, err := envoy.Bootstrap(c)
					if err != nil {
						t.Fatal(err)
					}
					file := filepath.Join(t.TempDir(), "envoy.yaml")
					if err := os.WriteFile(file, bootstrap, 0o600); err != nil {
						t.Fatal(err)
					}
					if out, err := exec.Command(envoyBinary(t), "--mode", "validate", "--config-path", file, "--use-dynamic-base-id").CombinedOutput(); err != nil {
						t.Errorf("%v: %s\n%s", err, out, bootstrap)
					}
				})
			}
		}
	}
}
