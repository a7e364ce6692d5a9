package kvevents

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/firsttoken/firsttoken/scoring"
)

// resolve is where rank r of an engine is: feed is rank 0's address as it is
// configured, engine the address (ip:port) that the host * stands for. vLLM
// counts the port up by the rank; a port of 0, any that is free, stays.
func resolve(feed, engine string, r int) (string, error) {
	hostPort, ok := strings.CutPrefix(feed, "tcp://")
	if !ok {
		return "", fmt.Errorf("%q is no tcp://host:port", feed)
	}
	host, text, err := net.SplitHostPort(hostPort)
	if err != nil {
		return "", fmt.Errorf("%q is no tcp://host:port: %w", feed, err)
	}
	port, err := strconv.Atoi(text)
	if err != nil || port < 0 || port > 65535 || (port > 0 && port+r > 65535) {
		return "", fmt.Errorf("%q has no port for rank %d", feed, r)
	}
	if port > 0 {
		port += r
	}
	if host == "*" && engine != "" {
		if host, _, err = net.SplitHostPort(engine); err != nil {
			return "", fmt.Errorf("the engine's address %q: %w", engine, err)
		}
	}
	return "tcp://" + net.JoinHostPort(host, strconv.Itoa(port)), nil
}

// addresses are the live and the replay address of a rank; replay is empty
// where there is none.
func addresses(e scoring.Endpoint, r int) (live, replay string, err error) {
	feed, engine := e.Cache.Events, e.Address
	if feed.Bind {
		engine = "" // * are our own addresses.
	}
	if live, err = resolve(feed.Endpoint, engine, r); err != nil || feed.Replay == "" {
		return live, "", err
	}
	// The engine always binds the replay socket.
	replay, err = resolve(feed.Replay, e.Address, r)
	return live, replay, err
}
