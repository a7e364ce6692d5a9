package main

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/firsttoken/firsttoken/envoy"
)

// shadowFlags are those of an Envoy that shows the service requests and chooses by
// itself.
type shadowFlags struct {
	balancer, router string
	streams          int
	snippet          bool
}

func (f *shadowFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.balancer, "shadow", "", "show the service requests and never ask it; Envoy chooses by `least_request` or round_robin")
	flags.Lookup("shadow").NoOptDefVal = string(envoy.LeastRequest)
	flags.StringVar(&f.router, "shadow-router", "", "with --shadow: `address` of another router that takes the requests in place of the engines")
	flags.IntVar(&f.streams, "shadow-streams", envoy.DefaultShadowStreams, "with --shadow: requests that Envoy shows at a time, each until its first token")
	flags.BoolVar(&f.snippet, "snippet", false, "with --shadow: print only what an Envoy that runs today needs besides its own config")
}

// config is nil without --shadow.
func (f *shadowFlags) config(flags *pflag.FlagSet) (*envoy.Shadow, error) {
	if flags.Changed("shadow") {
		return &envoy.Shadow{Balancer: envoy.Balancer(f.balancer), Router: f.router, Streams: f.streams}, nil
	}
	for _, name := range []string{"shadow-router", "shadow-streams", "snippet"} {
		if flags.Changed(name) {
			return nil, errors.New("--" + name + ": belongs to --shadow; give that too")
		}
	}
	return nil, nil //nolint:nilnil // it asks the service
}

// withXDS is what the service's configuration says; nil where it is asked. A flag
// could only make Envoy lack what its listener needs, or have it in vain.
func (f *shadowFlags) withXDS(flags *pflag.FlagSet, told string) (*envoy.Shadow, error) {
	switch {
	case flags.Changed("shadow-router"):
		return nil, errors.New("--shadow-router: with --xds the service tells Envoy of the engines; leave one of the two out")
	case flags.Changed("shadow") && told == "":
		return nil, fmt.Errorf("--shadow: with --xds the service tells it, and would be asked; write xds.shadow: %s in its configuration", f.balancer)
	case flags.Changed("shadow") && f.balancer != told:
		return nil, fmt.Errorf("--shadow: is %s, but with --xds the service tells it, and xds.shadow is %s in its configuration; write xds.shadow: %s there, or leave --shadow out",
			f.balancer, told, f.balancer)
	case flags.Changed("shadow-streams") && told == "":
		return nil, errors.New("--shadow-streams: belongs to a shadow; with --xds write xds.shadow in the service's configuration")
	}
	shadow := shadowByXDS(told)
	if shadow != nil {
		shadow.Streams = f.streams
	}
	return shadow, nil
}

// shadowByXDS is the same as the service tells it by xDS; nil where it is asked.
func shadowByXDS(balancer string) *envoy.Shadow {
	if balancer == "" {
		return nil
	}
	return &envoy.Shadow{Balancer: envoy.Balancer(balancer), Streams: envoy.DefaultShadowStreams}
}
