package canary

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/firsttoken/firsttoken/scoring"
)

// PolicyEnvoy is the policy of an arm whose requests Envoy's own balancer
// places: the service tells no choice.
const PolicyEnvoy = "envoy"

// Config sets the arms. It may be changed while the service runs.
type Config struct {
	// Arms share the requests that ask for tokens, each routed by its own policy.
	// None: all are routed alike.
	Arms []Arm `yaml:"arms"`
	// Sticky gives all requests of one session (server.session_key) the same arm. A
	// share that is raised keeps those it had. Requests without a session are drawn
	// one by one; if false, all are.
	Sticky bool `yaml:"sticky"`
	// UserHeader names a request header whose value stands in for the session.
	UserHeader string `yaml:"user_header"`
}

// Arm is one part of the requests.
type Arm struct {
	// Name labels the arm in metrics, decisions and the response header
	// x-firsttoken-arm: letters, digits, and - _ . between them. The names decide,
	// with the session, who is in which arm: a new name draws anew.
	Name string `yaml:"name"`
	// Weight is the arm's part of the sum of all weights, such as 20 beside another
	// arm's 80. 0: only by its header.
	Weight int `yaml:"weight"`
	// Policy routes the arm's requests: an id as in scoring.policy, or envoy, where
	// the service makes no choice and Envoy's own balancer picks. Empty: as without
	// arms.
	Policy string `yaml:"policy"`
	// Header puts requests with this header into the arm, whatever the weights:
	// "x-canary: on", or "x-canary" for any value. Of several such arms the first
	// one takes it. Clients can choose by it.
	Header string `yaml:"header"`
	// Models limits the arm to requests for these models, by their own name or by an
	// alias; empty: all.
	Models []string `yaml:"models"`
}

// DefaultConfig is what holds where the operator says nothing.
func DefaultConfig() Config { return Config{Sticky: true} }

// maxArms bounds the values of a metric's label.
const maxArms = 16

// maxWeight allows shares of a thousandth of a per cent.
const maxWeight = 100_000

// armName keeps names fit for labels, headers and URLs.
var armName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)

// headerName is a token as RFC 9110 has it.
var headerName = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")

// Validate joins all faults, each beginning with its path below path.
func (c Config) Validate(path string) error {
	var faults []error
	fault := func(key, format string, args ...any) {
		faults = append(faults, fmt.Errorf("%s.%s: %s", path, key, fmt.Sprintf(format, args...)))
	}
	if len(c.Arms) > maxArms {
		fault("arms", "has %d arms; write at most %d", len(c.Arms), maxArms)
	}
	if c.UserHeader != "" && !headerName.MatchString(c.UserHeader) {
		fault("user_header", "%q is no header's name; write one such as x-user", c.UserHeader)
	}
	if c.UserHeader != "" && !c.Sticky {
		fault("user_header", "is %q, but %s.sticky is false, so no user stays in an arm; write sticky: true, or leave user_header out", c.UserHeader, path)
	}
	owners := map[string]int{}
	for i, arm := range c.Arms {
		key := fmt.Sprintf("arms[%d].", i)
		if !armName.MatchString(arm.Name) {
			fault(key+"name", "%q is no name for an arm; write up to 63 letters, digits, and - _ . between them", arm.Name)
		} else if first, ok := owners[arm.Name]; ok {
			fault(key+"name", "%q is that of %s.arms[%d] too; write another", arm.Name, path, first)
		}
		owners[arm.Name] = i
		if arm.Weight < 0 || arm.Weight > maxWeight {
			fault(key+"weight", "is %d; write 0 to %d", arm.Weight, maxWeight)
		}
		if arm.Weight == 0 && arm.Header == "" {
			fault(key+"weight", "is 0 and the arm has no header, so that no request can come; write a weight, or a header such as \"x-canary: on\"")
		}
		if known := scoring.PolicyIDs(); arm.Policy != "" && arm.Policy != PolicyEnvoy && !slices.Contains(known, arm.Policy) {
			fault(key+"policy", "unknown policy %q; write one of %s, %s", arm.Policy, PolicyEnvoy, strings.Join(known, ", "))
		}
		if name, value := splitHeader(arm.Header); arm.Header != "" && (!headerName.MatchString(name) || strings.ContainsAny(value, "\r\n\x00")) {
			fault(key+"header", "%q is no header; write \"name: value\", or \"name\" for any value", arm.Header)
		}
		for j, model := range arm.Models {
			if model == "" {
				fault(fmt.Sprintf("%smodels[%d]", key, j), "is empty; write a model's name")
			}
		}
	}
	return errors.Join(faults...)
}

// splitHeader is the name, in lower case, and the value of "name: value"; without
// a colon any value counts, and the value is empty.
func splitHeader(text string) (name, value string) {
	name, value, _ = strings.Cut(text, ":")
	return strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)
}
