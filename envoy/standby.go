package envoy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	alsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	prioritiesv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/priority/previous_priorities/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// A service and its standbys are one cluster, each of them a priority: all
// choices are made by the first that is healthy, so that one ledger knows all
// bookings. What is asked of one that dies is asked again of the next.

// healthServices: the names that a service's health is asked for by. Ready is
// what it is while it should be asked for choices; alive what it is for as long
// as it answers at all, while it drains too.
const (
	healthReady = "envoy.service.ext_proc.v3.ExternalProcessor"
	healthAlive = "liveness"
)

// services are the service and its standbys, in order of priority.
func (c Config) services() []string { return append([]string{c.Service}, c.Standby...) }

// validateStandby joins all faults of the standbys' addresses.
func (c Config) validateStandby() error {
	return errors.Join(validatePriorities("standby", c.services()), validateMixed("service", c.services()))
}

// validatePriorities joins all faults of addresses but the first.
func validatePriorities(what string, addresses []string) error {
	var faults []error
	seen := map[string]bool{addresses[0]: true}
	for _, address := range addresses[1:] {
		if !strings.HasPrefix(address, unixScheme) {
			if _, _, err := splitAddress(address); err != nil {
				faults = append(faults, fmt.Errorf("%s: %w", what, err))
			}
		}
		if seen[address] {
			faults = append(faults, fmt.Errorf("%s: %s is named twice; write each address once", what, address))
		}
		seen[address] = true
	}
	return errors.Join(faults...)
}

// validateMixed: Envoy resolves all addresses of a cluster, or none.
func validateMixed(what string, addresses []string) error {
	sockets, names := "", ""
	for _, address := range addresses {
		host, _, _ := splitAddress(address)
		switch _, err := netip.ParseAddr(host); {
		case strings.HasPrefix(address, unixScheme):
			sockets = address
		case err != nil:
			names = address
		}
	}
	if sockets != "" && names != "" {
		return fmt.Errorf("%s: %s is a file and %s a name; Envoy takes both only where the name is written as an ip", what, sockets, names)
	}
	return nil
}

// priorities are members of a cluster of which each is used while all before it
// are not healthy.
func priorities(cluster string, members ...*endpointv3.LbEndpoint) *endpointv3.ClusterLoadAssignment {
	a := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	for i, m := range members {
		a.Endpoints = append(a.Endpoints, &endpointv3.LocalityLbEndpoints{
			LbEndpoints: []*endpointv3.LbEndpoint{m}, Priority: uint32(i),
		})
	}
	return a
}

// serviceMembers fills in addresses of the service's own port, or another of its
// ports, in order of priority, and how TLS is spoken to each.
func serviceMembers(cluster *clusterv3.Cluster, tls *PortTLS, addresses []string) {
	cluster.ClusterDiscoveryType = discoveryType(addresses...)
	if len(addresses) == 1 {
		cluster.TransportSocket = tls.socket(addresses[0])
		cluster.LoadAssignment = assignment(cluster.GetName(), lbEndpoint(addresses[0]))
		return
	}
	var members []*endpointv3.LbEndpoint
	for _, address := range addresses {
		member := lbEndpoint(address)
		if socket := tls.socket(address); socket != nil {
			// Each is verified by its own name or address.
			member.Metadata = tlsMark(address)
			cluster.TransportSocketMatches = append(cluster.TransportSocketMatches, &clusterv3.Cluster_TransportSocketMatch{
				Name: address, Match: tlsMatch(address), TransportSocket: socket,
			})
		}
		members = append(members, member)
	}
	cluster.LoadAssignment = priorities(cluster.GetName(), members...)
}

// health asks a service for its health by gRPC.
func health(name string, interval time.Duration) []*corev3.HealthCheck {
	often := durationpb.New(interval)
	return []*corev3.HealthCheck{{
		Timeout: durationpb.New(time.Second), Interval: often, NoTrafficInterval: often,
		UnhealthyThreshold: wrapperspb.UInt32(1), HealthyThreshold: wrapperspb.UInt32(1),
		HealthChecker: &corev3.HealthCheck_GrpcHealthCheck_{GrpcHealthCheck: &corev3.HealthCheck_GrpcHealthCheck{ServiceName: name}},
	}}
}

// pings find a process that hangs, where nothing else would: on connections whose
// streams have no timeout of their own. One that a busy machine stops for a moment
// must not lose what it was asked.
func pings() *corev3.Http2ProtocolOptions {
	return &corev3.Http2ProtocolOptions{
		ConnectionKeepalive: &corev3.KeepaliveSettings{Interval: durationpb.New(time.Second), Timeout: durationpb.New(4 * time.Second)},
	}
}

// firstFailure puts a service aside that has failed once, until its next good
// health check: it is found dead by a request sooner than by a check.
func firstFailure() *clusterv3.OutlierDetection {
	return &clusterv3.OutlierDetection{
		ConsecutiveGatewayFailure:          wrapperspb.UInt32(1),
		EnforcingConsecutiveGatewayFailure: wrapperspb.UInt32(100),
		SplitExternalLocalOriginErrors:     true,
		ConsecutiveLocalOriginFailure:      wrapperspb.UInt32(1),
		MaxEjectionPercent:                 wrapperspb.UInt32(100),
		BaseEjectionTime:                   durationpb.New(time.Second),
		MaxEjectionTime:                    durationpb.New(time.Second),
		Interval:                           durationpb.New(time.Second),
	}
}

// asked is the service as filters ask it: what a dead one was asked is asked of
// the next at once. Without standby there is nobody else to ask.
func (c Config) asked() *corev3.GrpcService {
	s := grpcService(clusterService)
	if len(c.Standby) > 0 {
		s.RetryPolicy = &corev3.RetryPolicy{
			RetryOn:      "connect-failure,refused-stream,reset,unavailable",
			NumRetries:   wrapperspb.UInt32(2),
			RetryBackOff: &corev3.BackoffStrategy{BaseInterval: durationpb.New(time.Millisecond)},
			// Which of them is healthy is not known again that soon.
			RetryPriority: &corev3.RetryPolicy_RetryPriority{
				Name: "envoy.retry_priorities.previous_priorities",
				ConfigType: &corev3.RetryPolicy_RetryPriority_TypedConfig{
					TypedConfig: pack(&prioritiesv3.PreviousPrioritiesConfig{UpdateFrequency: 1}),
				},
			},
		}
	}
	return s
}

// recordClusters are a cluster for each service, for the access log. A stream of
// records stays where it was opened: after a fail-over and back, one that goes to
// whoever is first would tell the standby how the active's requests end.
func (c Config) recordClusters() []*clusterv3.Cluster {
	if len(c.Standby) == 0 {
		return nil
	}
	var clusters []*clusterv3.Cluster
	for i, address := range c.services() {
		cluster := &clusterv3.Cluster{
			Name:            recordCluster(i),
			DnsLookupFamily: clusterv3.Cluster_V4_PREFERRED,
			ConnectTimeout:  durationpb.New(250 * time.Millisecond),
			CircuitBreakers: withoutLimits(),
			CommonLbConfig:  &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: never()},
			// One that drains wants to know how its last requests end.
			HealthChecks:                  health(healthAlive, time.Second),
			TypedExtensionProtocolOptions: http2Options(pings()),
		}
		serviceMembers(cluster, c.ServiceTLS, []string{address})
		clusters = append(clusters, cluster)
	}
	return clusters
}

// recordClusterPrefix begins the names of recordClusters.
const recordClusterPrefix = clusterService + "-log-"

func recordCluster(service int) string { return recordClusterPrefix + strconv.Itoa(service+1) }

// recordBuffer holds what ends while the service takes in what was sent before:
// Envoy drops a record that finds it full. The first message of a stream alone,
// with all that Envoy says of itself, fills what may be under way.
const recordBuffer = 512 << 10

// accessLogs tell every service of every request's end at once. Each knows its
// own decisions by their ids.
func (c Config) accessLogs() []*accesslogv3.AccessLog {
	names := []string{clusterService}
	if len(c.Standby) > 0 {
		names = nil
		for i := range c.services() {
			names = append(names, recordCluster(i))
		}
	}
	var logs []*accesslogv3.AccessLog
	for _, name := range names {
		logs = append(logs, accessLogTo(name))
	}
	return logs
}

// accessLogTo tells the service in a cluster.
func accessLogTo(cluster string) *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{
		Name: "envoy.access_loggers.http_grpc",
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: pack(&alsv3.HttpGrpcAccessLogConfig{CommonConfig: &alsv3.CommonGrpcAccessLogConfig{
			LogName:             "firsttoken",
			GrpcService:         grpcService(cluster),
			TransportApiVersion: corev3.ApiVersion_V3,
			BufferFlushInterval: durationpb.New(10 * time.Millisecond),
			BufferSizeBytes:     wrapperspb.UInt32(recordBuffer),
		}})},
	}
}

// standIn lets the service's standbys be asked where it fails, and finds one that
// hangs although nothing waits for it with a time of its own.
func (c Config) standIn(cluster *clusterv3.Cluster) {
	if len(c.Standby) > 0 {
		cluster.OutlierDetection = firstFailure()
	}
	if len(c.Standby) > 0 || c.BodyMode == BodyFullDuplex {
		cluster.TypedExtensionProtocolOptions = http2Options(pings())
	}
}
