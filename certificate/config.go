package certificate

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// Config sets how a port speaks TLS. Files are read again at each handshake, so
// that a new certificate needs no restart.
type Config struct {
	// Enabled makes the port speak TLS. Without cert_file it makes a certificate
	// that nobody has signed, which gateways take because they do not verify it.
	Enabled bool `yaml:"enabled"`
	// CertFile is a PEM file of the certificate, with those that lead to its
	// authority behind it.
	CertFile string `yaml:"cert_file"`
	// KeyFile is a PEM file of the certificate's private key.
	KeyFile string `yaml:"key_file"`
	// ClientCAFile is a PEM file of the authorities that must have signed the
	// certificate which a client then has to show (mTLS). Empty: none has to.
	ClientCAFile string `yaml:"client_ca_file"`
}

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	if !c.Enabled {
		if c != (Config{}) {
			return fmt.Errorf("%s.enabled: is false, but files are named; write true, or leave %s out", path, path)
		}
		return nil
	}
	var faults []error
	if (c.CertFile == "") != (c.KeyFile == "") {
		faults = append(faults, fmt.Errorf("%s: cert_file and key_file belong together; write both, or none for a certificate that is made at the start", path))
	} else if _, err := c.read(); err != nil {
		faults = append(faults, fmt.Errorf("%s: %w", path, err))
	}
	return errors.Join(faults...)
}

// Files are what the configuration names, for whoever makes paths absolute.
func (c *Config) Files() []*string { return []*string{&c.CertFile, &c.KeyFile, &c.ClientCAFile} }

// material is what the files hold.
type material struct {
	// certificate is nil where no file is named.
	certificate *tls.Certificate
	// clients is nil where nobody has to show a certificate.
	clients *x509.CertPool
}

// read reads the files that are named.
func (c Config) read() (material, error) {
	var m material
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return material{}, fmt.Errorf("cert_file %s, key_file %s: %w", c.CertFile, c.KeyFile, err)
		}
		m.certificate = &pair
	}
	if c.ClientCAFile != "" {
		pem, err := os.ReadFile(c.ClientCAFile)
		if err != nil {
			return material{}, fmt.Errorf("client_ca_file: %w", err)
		}
		m.clients = x509.NewCertPool()
		if !m.clients.AppendCertsFromPEM(pem) {
			return material{}, fmt.Errorf("client_ca_file: %s holds no PEM certificate", c.ClientCAFile)
		}
	}
	return m, nil
}
