package envoy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
)

// Engines that speak https are reached by name and by address, if their
// certificate is made out to it.
func TestHTTPS(t *testing.T) {
	const name, ip = "localhost", "127.0.0.1"
	for _, c := range []struct {
		host, certified string
		skipVerify      bool
		status          int
	}{
		{host: name, certified: name, status: http.StatusOK},
		{host: ip, certified: ip, status: http.StatusOK},
		{host: name, certified: "other.example", status: http.StatusServiceUnavailable},
		{host: ip, certified: "127.0.0.2", status: http.StatusServiceUnavailable},
		{host: ip, certified: name, status: http.StatusServiceUnavailable},
		{host: name, certified: "other.example", skipVerify: true, status: http.StatusOK},
		{host: ip, certified: "other.example", skipVerify: true, status: http.StatusOK},
	} {
		what := c.host + " certified as " + c.certified
		if c.skipVerify {
			what += ", not verified"
		}
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			certificate, file := certify(t, c.certified)
			e := startEngine(t, func(e *engine) { e.certificate = certificate })
			s := startService(t, scoring.PolicyTrapezoid, e)
			cfg := config(s, e)
			_, port, err := net.SplitHostPort(e.address)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Endpoints[0].Address, cfg.Endpoints[0].TLS = net.JoinHostPort(c.host, port), true
			cfg.CAFile, cfg.SkipVerify = file, c.skipVerify
			p := startEnvoy(t, cfg)
			resp := post(t, p, completion("hello"))
			body, err := io.ReadAll(resp.body)
			if err != nil || resp.code != c.status || (c.status == http.StatusOK && string(body) != answer()) {
				t.Errorf("answer: %v %s %q, want %d", err, resp.status, body, c.status)
			}
		})
	}
}

// certify makes a certificate for one name or address, and a file with it as
// the authority to trust.
func certify(t *testing.T, host string) (certificate *tls.Certificate, file string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{host}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(t.TempDir(), "authority.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}
