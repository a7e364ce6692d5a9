package certificate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Source gives each handshake the certificate that holds then. It is safe for
// concurrent use.
type Source struct {
	cfg  Config           // set once
	log  *slog.Logger     // set once
	made *tls.Certificate // set once; nil where files are named

	mu sync.Mutex // guards the following fields
	// good is what was read last without a fault.
	good  material
	fault string
}

// New makes a Source for a valid cfg that is enabled. Its metrics, labelled with
// the port's name, are registered with reg.
func New(cfg Config, port string, log *slog.Logger, reg prometheus.Registerer) (*Source, error) {
	s := &Source{cfg: cfg, log: log}
	var err error
	if s.good, err = cfg.read(); err != nil {
		return nil, err
	}
	if cfg.CertFile == "" {
		if s.made, err = selfSigned(time.Now()); err != nil {
			return nil, err
		}
	}
	labels := prometheus.Labels{"port": port}
	reg.MustRegister(
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "firsttoken_tls_certificate_expiry_timestamp_seconds", ConstLabels: labels,
			Help: "When the certificate of a port ends, as it was last read.",
		}, func() float64 { return float64(s.Status().NotAfter.Unix()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "firsttoken_tls_files_good", ConstLabels: labels,
			Help: "1 where the TLS files of a port were good when they were last read, 0 where the former ones still hold.",
		}, func() float64 {
			if s.Status().Fault == "" {
				return 1
			}
			return 0
		}),
	)
	return s, nil
}

// Listen makes l speak TLS. gRPC needs nothing else: HTTP/2 is agreed upon in
// the handshake.
func (s *Source) Listen(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return s.current(), nil
		},
	})
}

// current is how a handshake that begins now is answered.
func (s *Source) current() *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	// Files are read each time: Envoy keeps its connections, so handshakes are
	// few, and what a mounted secret does to times and names is of no account.
	if now, err := s.cfg.read(); err == nil {
		s.good, s.fault = now, ""
	} else if s.fault != err.Error() {
		// A certificate that is replaced before its key does not fit for a
		// moment.
		s.fault = err.Error()
		s.log.Warn("cannot read the changed TLS files; the former ones still hold", "error", err)
	}
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"h2"}, Certificates: []tls.Certificate{*s.leafLocked()}}
	if s.good.clients != nil {
		cfg.ClientAuth, cfg.ClientCAs = tls.RequireAndVerifyClientCert, s.good.clients
	}
	return cfg
}

// leafLocked is the certificate that holds. Caller must hold mu.
func (s *Source) leafLocked() *tls.Certificate {
	if s.made != nil {
		return s.made
	}
	return s.good.certificate
}

// Status is what is shown of a port's TLS.
type Status struct {
	Subject  string    `json:"subject"`
	NotAfter time.Time `json:"not_after"`
	// SelfSigned: no file is named, the certificate was made at the start.
	SelfSigned bool `json:"self_signed"`
	// ClientsVerified: clients have to show a certificate.
	ClientsVerified bool `json:"clients_verified"`
	// Fault is why the files are not what holds; empty where they are.
	Fault string `json:"fault,omitempty"`
}

// Status tells what was last read.
func (s *Source) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	leaf := s.leafLocked().Leaf
	return Status{
		Subject: leaf.Subject.String(), NotAfter: leaf.NotAfter, SelfSigned: s.made != nil,
		ClientsVerified: s.good.clients != nil, Fault: s.fault,
	}
}

// selfSigned makes a certificate for this machine. It is not kept: a restart
// makes another, which those who do not verify do not mind.
func selfSigned(now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "firsttoken"},
		// Clocks of other machines may be behind.
		NotBefore:   now.Add(-24 * time.Hour),
		NotAfter:    now.AddDate(10, 0, 0),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	if name, err := os.Hostname(); err == nil {
		template.DNSNames = append(template.DNSNames, name)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}
