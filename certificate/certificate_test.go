package certificate_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/firsttoken/firsttoken/certificate"
)

// authority signs certificates.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	file        string
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{file: filepath.Join(t.TempDir(), name+".pem")}
	a.certificate, a.key = sign(t, nil, name)
	write(t, a.file, "CERTIFICATE", a.certificate.Raw)
	return a
}

// issue writes a certificate made out to 127.0.0.1, and its key.
func (a *authority) issue(t *testing.T, name, certFile, keyFile string) {
	t.Helper()
	leaf, key := sign(t, a, name)
	write(t, certFile, "CERTIFICATE", leaf.Raw)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, keyFile, "EC PRIVATE KEY", der)
}

func write(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// sign makes a certificate signed by a, or by itself.
func sign(t *testing.T, a *authority, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: a == nil, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	parent, signer := template, key
	if a != nil {
		parent, signer = a.certificate, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return leaf, key
}

// port listens with cfg and shakes hands with whoever comes.
func port(t *testing.T, cfg certificate.Config) (source *certificate.Source, address string, log *bytes.Buffer, reg *prometheus.Registry) {
	t.Helper()
	if err := cfg.Validate("server.tls"); err != nil {
		t.Fatal(err)
	}
	log, reg = new(bytes.Buffer), prometheus.NewRegistry()
	source, err := certificate.New(cfg, "server", slog.New(slog.NewTextHandler(log, nil)), reg)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := source.Listen(plain)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			// One byte comes back where the handshake went well.
			if _, err := conn.Write([]byte{1}); err == nil {
				_, _ = conn.Read(make([]byte, 1))
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return source, l.Addr().String(), log, reg
}

// shake returns who the server says that it is.
func shake(t *testing.T, address string, cfg *tls.Config) (subject string, err error) {
	t.Helper()
	cfg.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", address, cfg)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return "", err
	}
	state := conn.ConnectionState()
	if state.NegotiatedProtocol != "h2" {
		t.Errorf("agreed upon %q, not upon h2", state.NegotiatedProtocol)
	}
	return state.PeerCertificates[0].Subject.CommonName, nil
}

// Without files the port makes a certificate, as gateways expect.
func TestSelfSigned(t *testing.T) {
	source, address, _, _ := port(t, certificate.Config{Enabled: true})
	if subject, err := shake(t, address, &tls.Config{InsecureSkipVerify: true}); err != nil || subject != "firsttoken" {
		t.Errorf("%q, %v", subject, err)
	}
	if s := source.Status(); !s.SelfSigned || s.ClientsVerified || time.Until(s.NotAfter) < 365*24*time.Hour {
		t.Errorf("%+v", s)
	}
}

// A certificate that changes is what the next handshake is answered with; files
// that do not fit leave the former one.
func TestCertificateIsReadAgain(t *testing.T) {
	a := newAuthority(t, "authority")
	dir := t.TempDir()
	cfg := certificate.Config{Enabled: true, CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	a.issue(t, "first", cfg.CertFile, cfg.KeyFile)
	source, address, log, reg := port(t, cfg)
	trust := &tls.Config{RootCAs: x509.NewCertPool()}
	trust.RootCAs.AddCert(a.certificate)
	expect := func(want string) {
		t.Helper()
		if subject, err := shake(t, address, trust); err != nil || subject != want {
			t.Errorf("got %q, %v; want %q", subject, err, want)
		}
	}
	expect("first")
	a.issue(t, "second", cfg.CertFile, cfg.KeyFile)
	expect("second")

	a.issue(t, "third", cfg.CertFile, filepath.Join(dir, "elsewhere.pem"))
	expect("second")
	expect("second")
	if n := strings.Count(log.String(), "the former ones still hold"); n != 1 || !strings.Contains(source.Status().Fault, cfg.CertFile) {
		t.Errorf("said %d times, want once; status %+v\n%s", n, source.Status(), log)
	}
	const good = "# HELP firsttoken_tls_files_good 1 where the TLS files of a port were good when they were last read, 0 where the former ones still hold.\n" +
		"# TYPE firsttoken_tls_files_good gauge\nfirsttoken_tls_files_good{port=\"server\"} "
	if err := testutil.GatherAndCompare(reg, strings.NewReader(good+"0\n"), "firsttoken_tls_files_good"); err != nil {
		t.Error(err)
	}
	if err := os.Rename(filepath.Join(dir, "elsewhere.pem"), cfg.KeyFile); err != nil {
		t.Fatal(err)
	}
	expect("third")
	if err := testutil.GatherAndCompare(reg, strings.NewReader(good+"1\n"), "firsttoken_tls_files_good"); err != nil {
		t.Error(err)
	}
}

// With client_ca_file a client has to show a certificate of that authority, and
// of another one as soon as the file says so.
func TestClientsAreVerified(t *testing.T) {
	ours, other := newAuthority(t, "ours"), newAuthority(t, "other")
	trusted := filepath.Join(t.TempDir(), "clients.pem")
	trust := func(a *authority) {
		t.Helper()
		text, err := os.ReadFile(a.file)
		if err == nil {
			err = os.WriteFile(trusted, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	trust(ours)
	_, address, _, _ := port(t, certificate.Config{Enabled: true, ClientCAFile: trusted})
	client := func(a *authority) *tls.Config {
		cfg := &tls.Config{InsecureSkipVerify: true}
		if a != nil {
			leaf, key := sign(t, a, "envoy")
			cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{leaf.Raw}, PrivateKey: key}}
		}
		return cfg
	}
	for _, c := range []struct {
		name  string
		a     *authority
		taken bool
	}{{"ours", ours, true}, {"another's", other, false}, {"none", nil, false}} {
		if _, err := shake(t, address, client(c.a)); (err == nil) != c.taken {
			t.Errorf("with %s certificate: %v", c.name, err)
		}
	}
	trust(other)
	if _, err := shake(t, address, client(other)); err != nil {
		t.Errorf("the new authority: %v", err)
	}
	if _, err := shake(t, address, client(ours)); err == nil {
		t.Error("the former authority is still trusted")
	}
}

func TestValidate(t *testing.T) {
	nothing := filepath.Join(t.TempDir(), "nothing.pem")
	if err := os.WriteFile(nothing, []byte("no PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		cfg  certificate.Config
		want string
	}{
		{"off", certificate.Config{}, ""},
		{"self-signed", certificate.Config{Enabled: true}, ""},
		{"files, but off", certificate.Config{CertFile: "a", KeyFile: "b"}, "server.tls.enabled: is false"},
		{"no key", certificate.Config{Enabled: true, CertFile: nothing}, "belong together"},
		{"no such file", certificate.Config{Enabled: true, CertFile: "/none", KeyFile: nothing}, "cert_file /none"},
		{"no certificate in it", certificate.Config{Enabled: true, CertFile: nothing, KeyFile: nothing}, "failed to find any PEM data"},
		{"no authority in it", certificate.Config{Enabled: true, ClientCAFile: nothing}, "client_ca_file: " + nothing + " holds no PEM certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.cfg.Validate("server.tls")
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
