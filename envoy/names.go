package envoy

import "time"

// Headers and metadata through which the service tells Envoy its choice. The
// names of the gateway API are those of the Endpoint Picker protocol.
const (
	// HeaderEndpoint is the request header with the choice: "ip:port", or a
	// comma list in order of preference. An override_host cluster obeys it.
	HeaderEndpoint = "x-gateway-destination-endpoint"
	// HeaderCluster is the request header with the name of the cluster that
	// holds the choice alone, for a cluster_header route.
	HeaderCluster = "x-firsttoken-cluster"

	// HeaderServed, HeaderReason and HeaderID are response headers for people:
	// which endpoint answered, why it was chosen, and the decision's id, by
	// which /decisions of the admin port tells the rest.
	HeaderServed = "x-firsttoken-endpoint"
	HeaderReason = "x-firsttoken-reason"
	HeaderID     = "x-firsttoken-id"
	// HeaderArm is one more: the arm that the request belongs to, where there are
	// any.
	HeaderArm = "x-firsttoken-arm"

	// MetadataBalancer is the namespace that Envoy's load balancers read. One
	// key more than HeaderEndpoint in it makes subset balancers fall back
	// silently, so nothing else is ever put there.
	MetadataBalancer = "envoy.lb"
	// MetadataSubset is the namespace, and KeySubset the key in it, in which a gateway
	// names the endpoints that a request may go to: a list of "ip:port", or one
	// string with commas.
	MetadataSubset = "envoy.lb.subset_hint"
	KeySubset      = HeaderEndpoint + "-subset"
	// Metadata is our own namespace, with the keys below.
	Metadata = "firsttoken"
	// KeyID is the decision's id, KeyEndpoint its first choice and KeyReason
	// why.
	KeyID       = "id"
	KeyEndpoint = "endpoint"
	KeyReason   = "reason"
	// KeyArm is the arm of a request, and KeyBy the service that put it there;
	// where Envoy picks they are all there is.
	KeyArm = "arm"
	KeyBy  = "by"
)

// Attributes of request and response that the service asks Envoy for.
const (
	AttributePath     = "request.path"
	AttributeMethod   = "request.method"
	AttributeID       = "request.id"
	AttributeCode     = "response.code"
	AttributeUpstream = "upstream.address"
)

// ControlHeaders steer routing, so a client may not send them: whoever could
// would choose the engine. They are removed before the service sees the
// request, and by the service again where another Envoy's config does not.
var ControlHeaders = []string{
	HeaderEndpoint,
	HeaderEndpoint + "-subset",
	HeaderEndpoint + "-served",
	HeaderCluster,
	HeaderServed,
	HeaderReason,
	HeaderID,
	HeaderArm,
}

// ControlPrefixes begin every control header, those of later versions too.
var ControlPrefixes = []string{HeaderEndpoint, "x-firsttoken-"}

// HoldMargin is how much longer than it may hold a request the service asks
// Envoy to wait for its answer: time for the choice and for the way back.
const HoldMargin = time.Second
