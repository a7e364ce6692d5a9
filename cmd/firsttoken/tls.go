package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"github.com/firsttoken/firsttoken/certificate"
	"github.com/firsttoken/firsttoken/envoy"
)

// secure makes a port speak TLS, if its configuration wants that. The source is
// nil where it does not.
func (s *service) secure(l net.Listener, cfg certificate.Config, port string, registry prometheus.Registerer) (net.Listener, *certificate.Source, error) {
	if !cfg.Enabled {
		return l, nil, nil
	}
	source, err := certificate.New(cfg, port, s.log, registry)
	if err != nil {
		return l, nil, fmt.Errorf("%s.tls: %w", port, err)
	}
	return source.Listen(l), source, nil
}

// tlsStatus is nil where a port speaks no TLS.
func tlsStatus(source *certificate.Source) *certificate.Status {
	if source == nil {
		return nil
	}
	view := source.Status()
	return &view
}

// portTLSFlags say how Envoy speaks TLS with ports of the service.
type portTLSFlags struct{ ca, cert, key string }

func (f *portTLSFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.ca, "service-ca", "", "PEM `file` of the authorities that Envoy verifies the service's certificate with (server.tls, xds.tls); empty: any is taken")
	flags.StringVar(&f.cert, "service-cert", "", "PEM `file` of the certificate that Envoy shows to the service (mTLS)")
	flags.StringVar(&f.key, "service-key", "", "PEM `file` of that certificate's key")
}

// forPort is how Envoy speaks with a port of this configuration; nil where it
// speaks no TLS.
func (f portTLSFlags) forPort(cfg certificate.Config, port string) (*envoy.PortTLS, error) {
	switch {
	case !cfg.Enabled:
		return nil, nil //nolint:nilnil // no TLS, and no fault
	case (f.cert == "") != (f.key == ""):
		return nil, errors.New("--service-cert and --service-key belong together; give both")
	case cfg.ClientCAFile != "" && f.cert == "":
		return nil, fmt.Errorf("%s.tls.client_ca_file asks clients for a certificate; give Envoy's as --service-cert and --service-key", port)
	}
	t := &envoy.PortTLS{CAFile: f.ca, CertFile: f.cert, KeyFile: f.key}
	for _, file := range []*string{&t.CAFile, &t.CertFile, &t.KeyFile} {
		if *file == "" {
			continue
		}
		absolute, err := filepath.Abs(*file) // Envoy may be started in another folder.
		if err != nil {
			return nil, err
		}
		*file = absolute
	}
	return t, nil
}

// forService fills in how Envoy speaks with the service. The error names flags
// that nothing needs.
func (f portTLSFlags) forService(cfg config, proxy *envoy.Config) (err error) {
	if f != (portTLSFlags{}) && !cfg.Server.TLS.Enabled && !cfg.XDS.TLS.Enabled {
		return errors.New("--service-ca, --service-cert, --service-key: the service speaks no TLS; set server.tls.enabled or xds.tls.enabled in its configuration")
	}
	proxy.ServiceTLS, err = f.forPort(cfg.Server.TLS, "server")
	return err
}
