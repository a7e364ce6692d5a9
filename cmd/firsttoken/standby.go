package main

import (
	"errors"
	"fmt"
	"net"

	"github.com/firsttoken/firsttoken/envoy"
)

// reachServices fills in where Envoy reaches the service and its standbys: as
// the flag says, else as the configuration does.
func reachServices(cfg config, flag []string, proxy *envoy.Config) {
	services := flag
	if len(services) == 0 {
		services = cfg.Server.Services
	}
	if len(services) == 0 {
		services = []string{dialable(cfg.Server.Listen)}
	}
	proxy.Service, proxy.Standby = services[0], services[1:]
}

// agreesWithXDS is an error where Envoy would not have the clusters that the
// service tells it to log to, one for each service.
func agreesWithXDS(cfg config, proxy envoy.Config) error {
	told := max(1, len(cfg.Server.Services))
	if n := 1 + len(proxy.Standby); n != told {
		return fmt.Errorf("--service: names %d services, but the service tells Envoys of %d; write all of them under server.services in its configuration", n, told)
	}
	return nil
}

// managementAddresses are where Envoy asks for its configuration: as the flag
// says, else, with standbys, at the hosts of all services.
func managementAddresses(cfg config, flag []string, proxy envoy.Config) ([]string, error) {
	if len(flag) > 0 {
		return flag, nil
	}
	if len(proxy.Standby) == 0 {
		return []string{dialable(cfg.XDS.Listen)}, nil
	}
	_, port, err := net.SplitHostPort(cfg.XDS.Listen)
	if err != nil {
		return nil, errors.New("--xds-address: say where the xDS servers of the service and its standbys are; xds.listen is no port that they could share")
	}
	var addresses []string
	for _, service := range append([]string{proxy.Service}, proxy.Standby...) {
		host, _, err := net.SplitHostPort(service)
		if err != nil {
			return nil, fmt.Errorf("--xds-address: say where the xDS servers of the service and its standbys are; %s names no host", service)
		}
		addresses = append(addresses, net.JoinHostPort(host, port))
	}
	return addresses, nil
}
