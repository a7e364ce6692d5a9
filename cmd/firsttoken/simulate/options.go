package simulate

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/firsttoken/firsttoken/scoring"
	"github.com/firsttoken/firsttoken/simulator"
	"github.com/firsttoken/firsttoken/simulator/replay"
	"github.com/firsttoken/firsttoken/simulator/report"
	"github.com/firsttoken/firsttoken/simulator/trace"
)

// Options are what the command line says; its help says what each is for.
type Options struct {
	// Traces are files of one trace; - is standard input. Workload names one that
	// is made up, in their place.
	Traces   []string
	Workload string

	// How traces are read: see trace.Options. Numbers below 0 were not given.
	Format      string
	Block       Tokens
	AnswerSize  Tokens
	AnswerToken Seconds // for one token of an answer, when decisions were recorded

	// What of a trace is replayed, in its own time. Spread is auto, off or a time.
	Spread         string
	From, To, Warm Seconds
	WarmGiven      bool // else Warm may be less

	Policies  []string
	Reference string // the policy whose row comes first
	Seed      uint64
	Seeds     int

	// The fleet. Endpoints has the form fleetForm; numbers below 0 were not given.
	Endpoints   string
	Profile     string
	KVTokens    Tokens
	HostTokens  Tokens
	HostSeconds float64
	Fail        []string

	// The speed to replay at: Speed, or Load times that of saturation. Sat is
	// empty where that is not asked for, FindSaturation, or a number.
	Speed     float64
	Sat       string
	Load      float64
	LoadGiven bool
	// FindCapacity looks for the rate at which the mean passes SLO, in place of a
	// comparison at one speed.
	FindCapacity bool
	SLO          Seconds

	// What the router knows, and how: see replay.Setup.
	CacheSource   string
	Sessions      bool
	KVDelay       Seconds
	HostLoadKnown bool
	Shared        bool
	FetchSeconds  float64
	Replicas      int
	Ledger        bool
	TokenBias     float64
	TokenSigma    float64
	Scoring       scoring.Config
	BatchGiven    bool // else Scoring.BatchTokens is that of the engines

	// Output is how figures are written to Out; Plot is a file, empty for none.
	Output, Plot string
	Stdin        io.Reader
	Out, Notes   io.Writer
	ProgressOn   io.Writer // nil: nobody watches
}

// The ways to write figures.
const (
	outputTable = "table"
	outputJSON  = "json"
	outputCSV   = "csv"
)

// holding is the policy ttft with late dispatch, which is no policy of its own.
const holding = scoring.PolicyTTFT + "-hold"

// FindSaturation is --sat without a value.
const FindSaturation = "find"

// seedPolicy is what ratios to the seed are to.
const seedPolicy = scoring.PolicyTrapezoid

// Policies are the ids that --policy takes.
func Policies() []string {
	ids := replay.Policies()
	at := slices.Index(ids, scoring.PolicyTTFT) + 1
	return slices.Insert(slices.Clone(ids), at, holding)
}

// DefaultOptions is what holds where the command line says nothing.
func DefaultOptions() Options {
	return Options{
		Format: string(trace.Auto), Block: -1, AnswerSize: -1, Spread: "auto", Warm: Seconds(300 * time.Second),
		Policies: []string{scoring.PolicyTTFT, holding}, Reference: seedPolicy,
		Endpoints: "8", Profile: "h100-8b-cpu", KVTokens: -1, HostTokens: -1, HostSeconds: -1,
		Speed: 1, Load: 1,
		CacheSource: "events", KVDelay: Seconds(replay.DefaultEventDelay), FetchSeconds: 6.5e-6,
		Replicas: 1, TokenBias: 1, Scoring: scoring.DefaultConfig(), Seed: 1, Seeds: 1,
		SLO: Seconds(time.Second), Output: outputTable,
	}
}

// validate joins what can be seen to be wrong before anything is read.
func (o *Options) validate() error {
	var faults []error
	add := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	names, _ := Workloads()
	w, found := workloadByName(o.Workload)
	switch {
	case len(o.Traces) == 0 && o.Workload == "":
		add("name a trace, or a --workload: %s", strings.Join(names, ", "))
	case len(o.Traces) > 0 && o.Workload != "":
		add("a trace and --workload %s: only one of them can be replayed", o.Workload)
	case o.Workload != "" && !found:
		add("unknown workload %q; write one of %s", o.Workload, strings.Join(names, ", "))
	case found && !w.paced && (o.Sat != "" || o.LoadGiven || o.FindCapacity || o.Speed != 1):
		add("--workload %s has clients that wait for their answers, which set its pace: --speed, --sat, --load and --find-capacity are not for it", o.Workload)
	}
	known := Policies()
	for _, id := range append(o.expanded(), o.Reference) {
		if !slices.Contains(known, id) {
			add("unknown policy %q; write one of %s", id, strings.Join(known, ", "))
		}
	}
	if !o.Sessions && slices.Contains(append(o.expanded(), o.Reference), scoring.PolicySession) {
		add("policy %s: requests tell no session; add --sessions", scoring.PolicySession)
	}
	if !slices.Contains([]string{outputTable, outputJSON, outputCSV}, o.Output) {
		add("--output %q is unknown; write table, json or csv", o.Output)
	}
	if o.Plot != "" {
		if _, err := report.PlotFormat(o.Plot); err != nil {
			add("--plot: %w", err)
		}
	}
	if !(o.Speed > 0) || !(o.Load > 0) {
		add("speed %g and load %g: both must be above 0", o.Speed, o.Load)
	}
	if o.LoadGiven && o.Sat == "" {
		add("--load is a share of the speed of saturation: add --sat to have that found, or --sat=SPEED")
	}
	if o.Sat != "" && o.Speed != 1 {
		add("--speed and --sat both set the speed: give one of them")
	}
	if o.Sat != "" && o.FindCapacity {
		add("--sat and --find-capacity: each looks for a speed of its own, give one of them")
	}
	if o.Seeds < 1 {
		add("--seeds %d: must be at least 1", o.Seeds)
	}
	if o.To != 0 && o.To <= o.From {
		add("--to %s is not after --from %s", o.To.String(), o.From.String())
	}
	if o.FindCapacity && o.SLO <= 0 {
		add("--slo-ttft %s: must be above 0", o.SLO.String())
	}
	if err := o.Scoring.Validate("scoring"); err != nil {
		faults = append(faults, err)
	}
	if _, ok := cacheSources[o.CacheSource]; !ok {
		add("--cache-source %q is unknown; write events or routed", o.CacheSource)
	}
	return errors.Join(faults...)
}

// cacheSources are where the router knows from what engines hold.
var cacheSources = map[string]replay.Truth{"events": replay.Events, "routed": replay.Routed}

// Names for several policies at once.
const (
	allPolicies = "all"      // but those with a term left out, and session where there are none
	ablation    = "ablation" // ttft, and ttft with each of its terms left out
)

// expanded are the ids of --policy.
func (o *Options) expanded() []string {
	var ids []string
	for _, id := range o.Policies {
		switch id {
		case allPolicies, ablation:
			for _, known := range Policies() {
				if known == scoring.PolicySession && !o.Sessions {
					continue
				}
				lacking := strings.HasPrefix(known, scoring.PolicyTTFT+"-without-")
				if lacking == (id == ablation) || id == ablation && known == scoring.PolicyTTFT {
					ids = append(ids, known)
				}
			}
		default:
			ids = append(ids, id)
		}
	}
	return ids
}

// policies are the ids to run, the reference first, each once.
func (o *Options) policies() []string {
	var once []string
	for _, id := range append([]string{o.Reference}, o.expanded()...) {
		if !slices.Contains(once, id) {
			once = append(once, id)
		}
	}
	return once
}

// sizes are what flags change of every profile.
func (o *Options) sizes(p simulator.Profile) simulator.Profile {
	if o.KVTokens >= 0 {
		p.KVTokens = int(o.KVTokens)
	}
	if o.HostTokens >= 0 {
		p.HostTokens = int(o.HostTokens)
	}
	if o.HostSeconds >= 0 {
		p.HostLoad = o.HostSeconds
	}
	return p
}

// setup is what all runs have in common. block is the size of the workload's
// blocks.
func (o *Options) setup(block int) (replay.Setup, error) {
	profile, err := simulator.ProfileByName(o.Profile)
	if err != nil {
		return replay.Setup{}, err
	}
	endpoints, err := fleet(o.Endpoints, profile, o.sizes)
	if err != nil {
		return replay.Setup{}, err
	}
	gone, err := failures(o.Fail)
	if err != nil {
		return replay.Setup{}, err
	}
	s := replay.Setup{
		Endpoints: endpoints, Scoring: o.Scoring, BlockTokens: block,
		Sessions: o.Sessions,
		Truth:    cacheSources[o.CacheSource], EventDelay: time.Duration(o.KVDelay),
		Shared: o.Shared, FetchPerToken: o.FetchSeconds,
		Replicas: o.Replicas, Ledger: o.Ledger,
		TokenBias: o.TokenBias, TokenSigma: o.TokenSigma,
		Failures: gone, Warm: time.Duration(o.Warm),
	}
	if o.HostLoadKnown {
		s.HostSeconds = endpoints[0].Profile.HostLoad
	}
	if !o.BatchGiven {
		// As an operator would write it into scoring.batch_tokens.
		s.Scoring.BatchTokens = scoring.Tokens(endpoints[0].Profile.BatchTokens)
	}
	return s, nil
}
