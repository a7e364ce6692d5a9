package envoy_test

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/firsttoken/firsttoken/certificate"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// identity is a certificate that is its own authority, as files.
type identity struct{ cert, key string }

func identify(t *testing.T, host string) identity {
	t.Helper()
	pair, file := certify(t, host)
	id := identity{cert: file, key: filepath.Join(t.TempDir(), "key.pem")}
	id.writeKey(t, pair)
	return id
}

func (id identity) writeKey(t *testing.T, pair *tls.Certificate) {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(pair.PrivateKey.(*ecdsa.PrivateKey)) //nolint:forcetypeassert // made as such
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(id.key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// become takes over the files of another identity: first the certificate, then
// the key, with a moment between in which they do not fit.
func (id identity) become(t *testing.T, other identity) {
	t.Helper()
	for _, file := range []struct{ from, to string }{{other.cert, id.cert}, {other.key, id.key}} {
		text, err := os.ReadFile(file.from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file.to, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// startSecureService is startService that speaks TLS.
func startSecureService(t *testing.T, cfg certificate.Config, engines ...*engine) *service {
	t.Helper()
	source, err := certificate.New(cfg, "server", slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startServiceOn(t, source.Listen(l), scoring.PolicyRoundRobin, engines...)
}

// Envoy speaks TLS with the service, each side verified as configured. Where one
// does not take the other's certificate, requests go on without a choice.
func TestServiceSpeaksTLS(t *testing.T) {
	const ip, name = "127.0.0.1", "localhost"
	right, named, wrong, client := identify(t, ip), identify(t, name), identify(t, "127.0.0.2"), identify(t, "envoy")
	for _, c := range []struct {
		name   string
		cfg    certificate.Config
		host   string
		envoy  envoy.PortTLS
		chosen bool
	}{
		{"self-signed, not verified", certificate.Config{}, ip, envoy.PortTLS{}, true},
		{"verified by address", certificate.Config{CertFile: right.cert, KeyFile: right.key}, ip, envoy.PortTLS{CAFile: right.cert}, true},
		{"verified by name", certificate.Config{CertFile: named.cert, KeyFile: named.key}, name, envoy.PortTLS{CAFile: named.cert}, true},
		{"made out to another", certificate.Config{CertFile: wrong.cert, KeyFile: wrong.key}, ip, envoy.PortTLS{CAFile: wrong.cert}, false},
		{"signed by another", certificate.Config{CertFile: right.cert, KeyFile: right.key}, ip, envoy.PortTLS{CAFile: wrong.cert}, false},
		{"client verified", certificate.Config{ClientCAFile: client.cert}, ip, envoy.PortTLS{CertFile: client.cert, KeyFile: client.key}, true},
		{"client is another", certificate.Config{ClientCAFile: client.cert}, ip, envoy.PortTLS{CertFile: wrong.cert, KeyFile: wrong.key}, false},
		{"client shows nothing", certificate.Config{ClientCAFile: client.cert}, ip, envoy.PortTLS{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e := startEngine(t)
			c.cfg.Enabled = true
			s := startSecureService(t, c.cfg, e)
			cfg := config(s, e)
			_, port, err := net.SplitHostPort(s.address)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Service, cfg.ServiceTLS = net.JoinHostPort(c.host, port), &c.envoy
			p := startEnvoy(t, cfg)
			resp := post(t, p, completion("hello"))
			if body, err := io.ReadAll(resp.body); err != nil || string(body) != answer() {
				t.Fatalf("answer: %v %s %q", err, resp.status, body)
			}
			if reason := resp.header.Get(envoy.HeaderReason); (reason != "" && reason != "-") != c.chosen {
				t.Errorf("reason %q, want a choice: %t", reason, c.chosen)
			}
		})
	}
}

// The service's certificate is replaced under load: no request is lost or goes
// without a choice, and an Envoy that knows only the new one is served.
func TestCertificateIsReplacedUnderLoad(t *testing.T) {
	const ip = "127.0.0.1"
	served, next := identify(t, ip), identify(t, ip)
	first := identity{cert: filepath.Join(t.TempDir(), "first.pem"), key: filepath.Join(t.TempDir(), "first-key.pem")}
	first.become(t, served)
	e := startEngine(t)
	s := startSecureService(t, certificate.Config{Enabled: true, CertFile: served.cert, KeyFile: served.key}, e)
	cfg := config(s, e)
	cfg.ServiceTLS = &envoy.PortTLS{CAFile: first.cert}
	load := startLoad(t, startEnvoy(t, cfg), 4)
	load.reach(t, 100)
	served.become(t, next)
	cfg.ServiceTLS = &envoy.PortTLS{CAFile: next.cert}
	resp := post(t, startEnvoy(t, cfg), completion("hello"))
	if reason := resp.header.Get(envoy.HeaderReason); reason == "" || reason == "-" {
		t.Errorf("no choice for the Envoy that knows the new certificate: %s", resp.status)
	}
	load.reach(t, load.done.Load()+100)
	if failed := load.stop(); len(failed) > 0 {
		t.Errorf("%d of %d requests failed, the first: %s", len(failed), load.done.Load(), failed[0])
	}
	if chosen := load.chosen.Load(); chosen != load.done.Load() {
		t.Errorf("the service chose for %d of %d requests", chosen, load.done.Load())
	}
}
