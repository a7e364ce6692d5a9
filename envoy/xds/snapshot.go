package xds

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/proto"

	"github.com/firsttoken/firsttoken/envoy"
)

// stage is one thing that Envoys are told: the engines that clusters, endpoints
// and routes are made of.
type stage struct {
	clusters, endpoints, routes []envoy.Member
}

// snapshot is what Envoys are told in a stage. A version is a digest of what it
// stands for: after a restart of this process the same means the same.
func snapshot(cfg envoy.Config, s stage) (*cache.Snapshot, error) {
	out := &cache.Snapshot{}
	for _, kind := range []struct {
		index types.ResponseType
		items []types.Resource
	}{
		{types.Cluster, each(cfg.Clusters(s.clusters), func(c *clusterv3.Cluster) types.Resource { return c })},
		{types.Endpoint, each(cfg.Assignments(s.endpoints), func(a *endpointv3.ClusterLoadAssignment) types.Resource { return a })},
		{types.Listener, each(cfg.Listeners(), func(l *listenerv3.Listener) types.Resource { return l })},
		{types.Route, []types.Resource{cfg.Routes(s.routes)}},
	} {
		version, err := digest(kind.items)
		if err != nil {
			return nil, err
		}
		out.Resources[kind.index] = cache.NewResources(version, kind.items)
	}
	return out, nil
}

func each[T any](list []T, as func(T) types.Resource) []types.Resource {
	out := make([]types.Resource, len(list))
	for i, v := range list {
		out[i] = as(v)
	}
	return out
}

// digest is over the resources whatever their order.
func digest(items []types.Resource) (string, error) {
	texts := make([]string, 0, len(items))
	for _, item := range items {
		if v, ok := item.(interface{ ValidateAll() error }); ok {
			if err := v.ValidateAll(); err != nil {
				return "", fmt.Errorf("xDS resource %s: %w", cache.GetResourceName(item), err)
			}
		}
		text, err := proto.MarshalOptions{Deterministic: true}.Marshal(item)
		if err != nil {
			return "", fmt.Errorf("xDS resource %s: %w", cache.GetResourceName(item), err)
		}
		texts = append(texts, string(text))
	}
	slices.Sort(texts)
	hash := xxhash.New()
	for _, text := range texts {
		_, _ = hash.WriteString(strconv.Itoa(len(text)) + ":" + text)
	}
	return strconv.FormatUint(hash.Sum64(), 16), nil
}

// kinds are the types of resource that we tell of, with names for people.
var kinds = map[string]string{
	resource.ClusterType: "clusters", resource.EndpointType: "endpoints", resource.ListenerType: "listeners", resource.RouteType: "routes",
}

// kindOf is the name for people of a type; another than ours is the client's
// own word, and is not repeated.
func kindOf(typeURL string) string {
	if name, ok := kinds[typeURL]; ok {
		return name
	}
	return "other"
}

// versions are those of all types.
func versions(s cache.ResourceSnapshot) map[string]string {
	out := make(map[string]string, len(kinds))
	for typeURL := range kinds {
		out[typeURL] = s.GetVersion(typeURL)
	}
	return out
}

// shortNode bounds what a client calls itself.
func shortNode(id string) string {
	const enough = 128
	return strings.ToValidUTF8(id[:min(len(id), enough)], "")
}
