package extproc

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/firsttoken/firsttoken/certificate"
)

// Config sets how the service talks with Envoy.
type Config struct {
	// Listen is where Envoy reaches ext_proc, access log and health services:
	// host:port, or unix:/path for a sidecar.
	Listen string `yaml:"listen"`
	// Services are the addresses, host:port or unix:/path, at which Envoys reach the
	// service and its standbys, in order of priority, the same in the configuration
	// of each: all choices are made by the first that is healthy. Empty: this one
	// alone, at its own address.
	Services []string `yaml:"services"`
	// TLS makes that port speak TLS, as gateways expect of a picker.
	TLS certificate.Config `yaml:"tls"`
	// DecisionDeadline bounds the time from the last byte of a request's body
	// to the choice. When it runs out the request is routed by what is known.
	// It must stay below message_timeout of Envoy's filter, at which Envoy goes on
	// without a choice; "firsttoken envoy bootstrap" sets that half a second above.
	DecisionDeadline time.Duration `yaml:"decision_deadline"`
	// MaxMessageTimeout is the most that Envoy's filter may be asked to wait for
	// one answer: its max_message_timeout, which "firsttoken envoy bootstrap" sets
	// to this where scoring.hold.enabled is true. Requests whose bodies Envoy
	// buffers are held by its leave alone; scoring.hold.max must be below it.
	MaxMessageTimeout time.Duration `yaml:"max_message_timeout"`
	// BodyLimit is the largest request body in bytes; a longer one of a
	// completion is answered 413. Envoy's per_connection_buffer_limit_bytes
	// must be above it.
	BodyLimit int `yaml:"body_limit_bytes"`
	// Fallbacks is how many next best endpoints follow the choice in the
	// destination header, for Envoy to retry on: 0 to 2. Set it to 0 for
	// gateways that read one address only, such as agentgateway.
	Fallbacks int `yaml:"fallbacks"`
	// SessionKey names the request header that says to which session or user a
	// request belongs, such as x-user-id; where the header is missing, the member of
	// that name of the JSON body does. The first 256 bytes count. Empty: requests
	// have no sessions.
	SessionKey string `yaml:"session_key"`
	// DestinationHeader tells the choice in the request header
	// x-gateway-destination-endpoint.
	DestinationHeader bool `yaml:"destination_header"`
	// DestinationMetadata tells the choice in dynamic metadata,
	// envoy.lb:x-gateway-destination-endpoint.
	DestinationMetadata bool `yaml:"destination_metadata"`
	// ClusterHeader tells the choice's cluster in the request header
	// x-firsttoken-cluster, for cluster_header routes.
	ClusterHeader bool `yaml:"cluster_header"`
	// Answers are the paths that the service answers to a GET in place of an engine,
	// where Envoy's filter sends request headers: /v1/models with the models of all
	// engines and the aliases, /health (503 while no engine takes requests),
	// /engines, and /version, which is then that of this service, no engine's. Where
	// VLLM_API_KEY is set, models and engines are told to clients with that key.
	Answers []string `yaml:"answers"`
	// Pins lets a client ask for one engine by ?id= in the path's query: its name,
	// address or LMCache instance. The request goes there or is refused.
	Pins bool `yaml:"pins"`
	// DrainDelay is how long the service goes on serving after it began to
	// report NOT_SERVING, so that every Envoy's health check sees it. Three
	// intervals of that check are enough.
	DrainDelay time.Duration `yaml:"drain_delay"`
	// DrainTimeout bounds the wait for open streams when the service stops.
	DrainTimeout time.Duration `yaml:"drain_timeout"`
	// OffFile is a file whose presence, whatever is in it, leaves every request to
	// Envoy until it is removed; it is looked for four times a second, and at the
	// start. Empty: none.
	OffFile string `yaml:"off_file"`
	// Shadow sets what is done with requests that Envoy only shows us.
	Shadow ShadowConfig `yaml:"shadow"`
	// DecisionLogs is the largest number of decisions logged a second; 0 logs
	// none. Prompt text is never logged.
	DecisionLogs int `yaml:"decision_logs_per_second"`
	// Rescue sends a request on to the next best endpoint where the engine gives
	// no first token in time.
	Rescue RescueConfig `yaml:"rescue"`
}

// DefaultConfig is what holds where the operator says nothing.
func DefaultConfig() Config {
	return Config{
		Listen:              "127.0.0.1:9002",
		DecisionDeadline:    500 * time.Millisecond,
		MaxMessageTimeout:   time.Minute,
		BodyLimit:           32 << 20,
		Fallbacks:           maxFallbacks,
		DestinationHeader:   true,
		DestinationMetadata: true,
		ClusterHeader:       true,
		Answers:             []string{PathModels, PathEngines, PathHealth},
		Pins:                true,
		DrainDelay:          time.Second,
		DrainTimeout:        30 * time.Second,
		Shadow:              DefaultShadowConfig(),
		DecisionLogs:        10,
		Rescue:              defaultRescue(),
	}
}

// maxFallbacks: Envoy tries twice more in our config, and each address costs
// every request some bytes of header.
const maxFallbacks = 2

// envoyMaxMessageTimeout is the largest that Envoy takes.
const envoyMaxMessageTimeout = time.Hour

// maxBodyLimit keeps body limit plus framing inside gRPC's message length.
const maxBodyLimit = 1 << 30

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s.%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	if socket, ok := strings.CutPrefix(c.Listen, unixScheme); ok {
		if socket == "" {
			fault("listen", "%q names no file; write unix:/run/firsttoken/extproc.sock", c.Listen)
		}
	} else if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		fault("listen", "%q is no address (%v); write host:port, or unix:/path", c.Listen, err)
	}
	for i, address := range c.Services {
		if strings.HasPrefix(address, unixScheme) {
			continue
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			fault(fmt.Sprintf("services[%d]", i), "%q is no address (%v); write host:port, or unix:/path", address, err)
		}
	}
	if err := c.TLS.Validate(path + ".tls"); err != nil {
		faults = append(faults, err)
	} else if c.TLS.Enabled && strings.HasPrefix(c.Listen, unixScheme) {
		fault("tls.enabled", "is true, but listen is a unix socket, which nobody else can read; write false")
	}
	if c.DecisionDeadline <= 0 {
		fault("decision_deadline", "is %s; write a duration above zero, such as 500ms", c.DecisionDeadline)
	}
	if c.MaxMessageTimeout <= 0 || c.MaxMessageTimeout > envoyMaxMessageTimeout {
		fault("max_message_timeout", "is %s; write a duration above zero and at most 1h, such as 1m", c.MaxMessageTimeout)
	}
	if c.BodyLimit < 1 || c.BodyLimit > maxBodyLimit {
		fault("body_limit_bytes", "is %d; write 1 to %d", c.BodyLimit, maxBodyLimit)
	}
	if c.Fallbacks < 0 || c.Fallbacks > maxFallbacks {
		fault("fallbacks", "is %d; write 0 to %d", c.Fallbacks, maxFallbacks)
	}
	if err := validateSessionKey(c.SessionKey); err != nil {
		fault("session_key", "%v", err)
	}
	if !c.DestinationHeader && !c.DestinationMetadata && !c.ClusterHeader {
		fault("destination_header", "no way to tell Envoy the choice is on; set destination_header, destination_metadata or cluster_header to true")
	}
	if err := c.Rescue.Validate(path+".rescue", c.Fallbacks); err != nil {
		faults = append(faults, err)
	}
	if c.Rescue.Enabled && !c.DestinationHeader && !c.DestinationMetadata {
		fault("rescue.enabled", "is true, but Envoy is told no list of endpoints to go down; set destination_header or destination_metadata to true, or write false")
	}
	faults = append(faults, validateAnswers(path, c.Answers)...)
	if c.DrainDelay < 0 {
		fault("drain_delay", "is %s; write 0s or more", c.DrainDelay)
	}
	if c.DrainTimeout <= 0 {
		fault("drain_timeout", "is %s; write a duration above zero, such as 30s", c.DrainTimeout)
	}
	if err := c.Shadow.Validate(path + ".shadow"); err != nil {
		faults = append(faults, err)
	}
	if c.DecisionLogs < 0 {
		fault("decision_logs_per_second", "is %d; write 0 or more", c.DecisionLogs)
	}
	return errors.Join(faults...)
}
