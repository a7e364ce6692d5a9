package envoy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	leastv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/load_balancing_policies/least_request/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Canary lets Envoy itself share requests out: some are put before the service,
// the others never meet it and go to the engine with the fewest requests. What is
// said here holds until somebody says otherwise at Envoy's admin interface.
type Canary struct {
	// Percent of the requests, 0 to 100, is put before the service.
	Percent int
	// Header is "name: value" of requests that are, whatever the share; without a
	// colon any value counts. Empty: none.
	Header string
	// UserHeader names a header by whose value requests are shared out, so that all
	// of a user's are on one side. Those without it are shared out one by one. Empty:
	// all are.
	UserHeader string
}

// The keys of Envoy's runtime that change a canary, by POST
// /runtime_modify?KEY=NUMBER at its admin interface.
const (
	// RuntimeOff is the percentage of requests kept from the service before all
	// else: 100 is the switch.
	RuntimeOff = "canary.off"
	// RuntimeFraction is the percentage put before the service, of those that
	// neither header names; RuntimeHeader that of those with Canary.Header.
	RuntimeFraction = "canary.fraction"
	RuntimeHeader   = "canary.header"
	// RuntimeUsers begins two weights for requests with Canary.UserHeader:
	// canary.users.pool of those put before the service, canary.users.plain of the
	// others. Their sum is to be 100.
	RuntimeUsers = "canary.users"
)

// clusterPlain are all endpoints as Envoy's own balancer sees them.
const clusterPlain = "plain"

// filterChoice is the filter that asks for a choice.
const filterChoice = "envoy.filters.http.ext_proc"

// canaryFaults joins what is wrong with the canary of c.
func (c Config) canaryFaults() error {
	if c.Canary != nil && c.Shadow != nil {
		return errors.New("canary: with a shadow the service makes no choices that could be tried; write one of the two")
	}
	return c.Canary.Validate("canary")
}

// Validate joins all faults, each beginning with its path below path; nil has none.
func (c *Canary) Validate(path string) error {
	if c == nil {
		return nil
	}
	var faults []error
	if c.Percent < 0 || c.Percent > 100 {
		faults = append(faults, fmt.Errorf("%s.percent: is %d; write 0 to 100", path, c.Percent))
	}
	if name, _ := splitHeader(c.Header); c.Header != "" && !isToken(name) {
		faults = append(faults, fmt.Errorf("%s.header: %q is no header; write \"name: value\", or \"name\" for any value", path, c.Header))
	}
	if c.UserHeader != "" && !isToken(c.UserHeader) {
		faults = append(faults, fmt.Errorf("%s.user_header: %q is no header's name; write one such as x-user", path, c.UserHeader))
	}
	name, _ := splitHeader(c.Header)
	faults = append(faults, removed(path+".header", name), removed(path+".user_header", strings.ToLower(c.UserHeader)))
	return errors.Join(faults...)
}

// removed is an error where Envoy takes a header off requests before it looks for
// their route: those that steer the choice and, where the service rescues, those
// that steer the router.
func removed(path, name string) error {
	for _, prefix := range slices.Concat(ControlPrefixes, routerPrefixes) {
		if strings.HasPrefix(name, prefix) {
			return fmt.Errorf("%s: Envoy removes clients' headers that begin with %s before it looks for a route, so %s would match no request; write another, such as x-canary", path, prefix, name)
		}
	}
	return nil
}

// splitHeader is the name and the value of "name: value".
func splitHeader(text string) (name, value string) {
	name, value, _ = strings.Cut(text, ":")
	return strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
}

// isToken reports whether text may name a header.
func isToken(text string) bool {
	return text != "" && !strings.ContainsFunc(text, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`()<>@,;:\"/[]?={}`, r)
	})
}

// lastRoutes are those of requests whose choice has no cluster of its own, or that
// have none yet.
func (c Config) lastRoutes() []*routev3.Route {
	if c.Canary == nil {
		return []*routev3.Route{c.toPool("pool", nil)}
	}
	off := c.toPlain("canary-off")
	off.Match.RuntimeFraction = percentage(RuntimeOff, 0)
	routes := []*routev3.Route{off}
	if c.Canary.Header != "" {
		name, value := splitHeader(c.Canary.Header)
		asked := c.toPool("canary-header", matchHeader(name, value))
		asked.Match.RuntimeFraction = percentage(RuntimeHeader, 100)
		routes = append(routes, asked)
	}
	if c.Canary.UserHeader != "" {
		routes = append(routes, c.byUser(strings.ToLower(c.Canary.UserHeader)))
	}
	share := c.toPool("canary", nil)
	share.Match.RuntimeFraction = percentage(RuntimeFraction, c.Canary.Percent)
	return append(routes, share, c.toPlain("plain"))
}

// toPool is a route on which the service is asked.
func (c Config) toPool(name string, headers []*routev3.HeaderMatcher) *routev3.Route {
	r := c.route(name, headers)
	r.GetRoute().ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: clusterPool}
	return r
}

// toPlain is a route on which it is not.
func (c Config) toPlain(name string) *routev3.Route {
	r := c.withoutRescue().route(name, nil)
	r.GetRoute().ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: clusterPlain}
	r.TypedPerFilterConfig = c.withoutService()
	return r
}

// byUser is a route on which the hash of a user's header decides. Retries belong to
// the route, not to its clusters: with rescue the half that is kept from the service
// has an engine's 502 and 504 tried again too.
func (c Config) byUser(header string) *routev3.Route {
	r := c.route("canary-user", matchHeader(header, ""))
	r.GetRoute().HashPolicy = []*routev3.RouteAction_HashPolicy{{
		PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: header}},
	}}
	share := uint32(c.Canary.Percent) //nolint:gosec // validated to be 0 to 100
	r.GetRoute().ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{
		RuntimeKeyPrefix:     RuntimeUsers,
		RandomValueSpecifier: &routev3.WeightedCluster_UseHashPolicy{UseHashPolicy: wrapperspb.Bool(true)},
		Clusters: []*routev3.WeightedCluster_ClusterWeight{
			{Name: clusterPool, Weight: wrapperspb.UInt32(share)},
			{Name: clusterPlain, Weight: wrapperspb.UInt32(100 - share), TypedPerFilterConfig: c.withoutService()},
		},
	}}
	return r
}

// matchHeader matches requests with a header, of any value where it is empty.
func matchHeader(name, value string) []*routev3.HeaderMatcher {
	m := &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	if value != "" {
		m.HeaderMatchSpecifier = &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Exact{Exact: value},
		}}
	}
	return []*routev3.HeaderMatcher{m}
}

// percentage is a share of requests that the runtime may change. Envoy draws once
// for a request, so that a route found anew after the choice is the same.
func percentage(key string, percent int) *corev3.RuntimeFractionalPercent {
	return &corev3.RuntimeFractionalPercent{
		RuntimeKey: key,
		DefaultValue: &typev3.FractionalPercent{
			Numerator: uint32(percent), Denominator: typev3.FractionalPercent_HUNDRED, //nolint:gosec // validated to be 0 to 100
		},
	}
}

// withoutService keeps a route's requests from every filter that asks the service.
func (c Config) withoutService() map[string]*anypb.Any {
	disabled := pack(&extprocv3.ExtProcPerRoute{Override: &extprocv3.ExtProcPerRoute_Disabled{Disabled: true}})
	filters := map[string]*anypb.Any{filterChoice: disabled}
	if c.BodyMode == BodyFullDuplex {
		filters[watcherName] = disabled
	}
	return filters
}

// withoutRescue is c for clusters and routes that the service has no part in.
func (c Config) withoutRescue() Config {
	c.Rescue = nil
	return c
}

// plain makes a cluster one that Envoy's own balancer chooses in.
func plain(cluster *clusterv3.Cluster) *clusterv3.Cluster {
	cluster.LoadBalancingPolicy = &clusterv3.LoadBalancingPolicy{Policies: []*clusterv3.LoadBalancingPolicy_Policy{
		policy("envoy.load_balancing_policies.least_request", &leastv3.LeastRequest{}),
	}}
	return cluster
}

// layeredRuntime lets the admin interface change what is set for the canary; nil
// where there is none.
func (c Config) layeredRuntime() *bootstrapv3.LayeredRuntime {
	if c.Canary == nil {
		return nil
	}
	return &bootstrapv3.LayeredRuntime{Layers: []*bootstrapv3.RuntimeLayer{{
		Name: "admin", LayerSpecifier: &bootstrapv3.RuntimeLayer_AdminLayer_{AdminLayer: &bootstrapv3.RuntimeLayer_AdminLayer{}},
	}}}
}
