package lmcache

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// ControllerConfig says where LMCache workers reach us and when one counts as
// gone.
type ControllerConfig struct {
	// Pull is where workers report what they cache, as IP:port, or *:port for
	// all interfaces. The engines' controller_pull_url (controller_url up to
	// LMCache 0.3.6) names it. The port must stay the same over restarts:
	// workers ask for it only once.
	Pull string `yaml:"pull"`
	// Reply is where workers register and ask, as IP:port or *:port. The
	// engines' controller_reply_url names it.
	Reply string `yaml:"reply"`
	// Heartbeat is where workers of LMCache 0.3.12 and later send heartbeats, as
	// IP:port or *:port. They learn it when they register, and send heartbeats
	// if lmcache_worker_heartbeat_time is set on the engines. Without heartbeats
	// nothing tells an engine to repeat what it holds after a restart of this
	// service. Empty: none.
	Heartbeat string `yaml:"heartbeat"`
	// AdvertiseHeartbeat is the host, or host:port, that workers are told to
	// send heartbeats to. Empty: the address of heartbeat, or, where that is
	// all interfaces, the address of ours from which the worker is reached.
	AdvertiseHeartbeat string `yaml:"advertise_heartbeat"`
	// WorkerTimeout is how long a worker that has sent heartbeats may be silent
	// before what it holds is forgotten. A worker whose heartbeats are rarer
	// has three of its own periods. Workers without heartbeats are never
	// forgotten for their silence.
	WorkerTimeout time.Duration `yaml:"worker_timeout"`
	// CheckInterval is how often that is looked at.
	CheckInterval time.Duration `yaml:"check_interval"`
	// SilentAfter is after how long a worker that registered and has neither
	// reported nor sent a heartbeat since is named in a warning.
	SilentAfter time.Duration `yaml:"silent_after"`
	// ReceiveQueue is the most messages queued from one worker before its own
	// queue has to hold them (ZeroMQ's RCVHWM).
	ReceiveQueue int `yaml:"receive_queue"`
}

// DefaultControllerConfig is what holds where the operator says nothing; the
// ports are those of LMCache's own controller.
func DefaultControllerConfig() ControllerConfig {
	return ControllerConfig{
		Pull: "*:8300", Reply: "*:8400", Heartbeat: "*:8500",
		WorkerTimeout: 30 * time.Second, CheckInterval: 5 * time.Second, SilentAfter: 2 * time.Minute,
		ReceiveQueue: 10_000,
	}
}

// Validate joins all faults, each beginning with its path below path.
func (c ControllerConfig) Validate(path string) error {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf(path+"."+key+": "+format, args...))
	}
	listen := func(key, address string) {
		if _, _, err := listenAddress(address); err != nil {
			fault(key, "%w; write IP:port such as 10.0.0.5:8300, or *:8300 for all interfaces", err)
		}
	}
	listen("pull", c.Pull)
	listen("reply", c.Reply)
	if c.Heartbeat != "" {
		listen("heartbeat", c.Heartbeat)
	} else if c.AdvertiseHeartbeat != "" {
		fault("advertise_heartbeat", "is %q, but heartbeat is empty; set heartbeat too or leave both empty", c.AdvertiseHeartbeat)
	}
	if c.Pull == c.Reply || c.Pull == c.Heartbeat || c.Reply == c.Heartbeat {
		if _, port, err := net.SplitHostPort(c.Pull); err == nil && port != "0" {
			fault("pull", "two of pull %s, reply %s and heartbeat %s are the same; give each its own port", c.Pull, c.Reply, c.Heartbeat)
		}
	}
	for _, d := range []struct {
		key   string
		value time.Duration
		like  string
	}{
		{"worker_timeout", c.WorkerTimeout, "30s"}, {"check_interval", c.CheckInterval, "5s"}, {"silent_after", c.SilentAfter, "2m"},
	} {
		if d.value <= 0 {
			fault(d.key, "is %s; write a duration above zero, such as %s", d.value, d.like)
		}
	}
	if c.ReceiveQueue < 1 {
		fault("receive_queue", "is %d; write a number above zero, such as 10000", c.ReceiveQueue)
	}
	return errors.Join(faults...)
}

// listenAddress splits IP:port or *:port; the host is empty for all interfaces.
func listenAddress(address string) (host, port string, err error) {
	host, port, err = net.SplitHostPort(address)
	if err != nil {
		return "", "", fmt.Errorf("%q is no address: %w", address, err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", "", fmt.Errorf("%q has the port %q, which is no number from 0 to 65535", address, port)
	}
	if host == "*" || host == "" {
		return "", port, nil
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "", "", fmt.Errorf("%q has the host %q, which is no IP address", address, host)
	}
	if ip.IsUnspecified() {
		return "", port, nil
	}
	return host, port, nil
}

// endpoint is the ZeroMQ spelling of a listen address.
func endpoint(address string) (string, error) {
	host, port, err := listenAddress(address)
	if err != nil {
		return "", err
	}
	if host == "" {
		return "tcp://*:" + port, nil
	}
	return "tcp://" + net.JoinHostPort(host, port), nil
}

// advertise is the address that the worker at ip is told to send heartbeats
// to, given the one that the socket is bound to. Empty where none can be found.
func (c ControllerConfig) advertise(bound, ip string) string {
	host, port, err := net.SplitHostPort(bound)
	if err != nil {
		return ""
	}
	if c.AdvertiseHeartbeat != "" {
		if _, _, err := net.SplitHostPort(c.AdvertiseHeartbeat); err == nil {
			return c.AdvertiseHeartbeat
		}
		return net.JoinHostPort(c.AdvertiseHeartbeat, port)
	}
	if addr, err := netip.ParseAddr(host); err == nil && !addr.IsUnspecified() {
		return bound
	}
	// A worker may say anything: a host name would be looked up, while all others
	// wait.
	if _, err := netip.ParseAddr(ip); err != nil {
		return ""
	}
	// Connecting a UDP socket sends nothing; it only asks the kernel which of
	// our addresses the way to the worker begins at.
	conn, err := net.Dial("udp", net.JoinHostPort(ip, "9")) //nolint:noctx // no packet, no wait: the ip is numeric
	if err != nil {
		return ""
	}
	defer conn.Close()
	from, _, err := net.SplitHostPort(conn.LocalAddr().String())
	if err != nil {
		return ""
	}
	return net.JoinHostPort(from, port)
}
