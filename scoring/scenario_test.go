package scoring

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the scenarios with what happens now; read the diff")

// TestScenarios runs testdata/*.txt: commands, a line of dashes, and what they
// print. Ids count from 1, the clock starts at 0 and moves by `at`.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := runScenario(t, string(text))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(text), got); diff != "" && !*update {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
		})
	}
}

type scenario struct {
	t         *testing.T
	picker    *Picker
	cached    map[string]Match // nil: no source knows anything
	sent      map[string]Match // what prefixaware remembers besides requests under way
	endpoints []Endpoint
	nextID    EndpointID
	now       time.Time
	requests  int
	booked    map[string]*Reservation
	held      map[string]*Held
	policy    string
	kind      string
	adapters  []string
	own       uint32 // the last token id of route's own
	models    []string
	out       strings.Builder
}

// told is a cache source that is told what to say, by name.
type told struct{ of *map[string]Match }

func (s told) Match(p *Prompt, endpoints []Endpoint) [][]Match {
	rows := make([][]Match, len(endpoints))
	for i, e := range endpoints {
		if m, ok := (*s.of)[e.Name]; ok {
			for range p.Sequences {
				rows[i] = append(rows[i], m)
			}
		}
	}
	return rows
}

func runScenario(t *testing.T, text string) string {
	t.Helper()
	s := &scenario{t: t, booked: make(map[string]*Reservation), held: make(map[string]*Held), now: time.Unix(0, 0)}
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n\n") {
		commands, _, _ := strings.Cut(block, "\n----")
		s.out.Reset()
		for line := range strings.SplitSeq(commands, "\n") {
			if fields := strings.Fields(line); len(fields) > 0 && !strings.HasPrefix(line, "#") {
				s.run(fields[0], fields[1:])
			}
		}
		if out.Len() > 0 {
			out.WriteString("\n")
		}
		out.WriteString(commands + "\n")
		if s.out.Len() > 0 {
			out.WriteString("----\n" + s.out.String())
		}
	}
	return out.String()
}

func (s *scenario) run(verb string, args []string) {
	switch verb {
	case "policy":
		cfg := DefaultConfig()
		cfg.Policy, cfg.Models = args[0], make(map[string]ModelConfig)
		s.policy = args[0]
		for _, arg := range args[1:] {
			key, value, _ := strings.Cut(arg, "=")
			if model, ok := strings.CutPrefix(key, "model:"); ok {
				cfg.Models[model] = ModelConfig{Policy: value}
				continue
			}
			switch key {
			case "kvaware_threshold":
				cfg.KVAwareThreshold = Tokens(s.number(value))
			case "loadaware_beta":
				beta, err := strconv.ParseFloat(value, 64)
				if err != nil {
					s.t.Fatal(err)
				}
				cfg.LoadAwareBeta = beta
			case "prefixaware_min_match":
				cfg.PrefixAwareMinMatch = Tokens(s.number(value))
			case "fit_per_kind":
				cfg.FitPerKind = true
			case "no_kv_room":
				cfg.KVRoom = false
			case "hold":
				cfg.Hold.Enabled = true
			default:
				s.t.Fatalf("policy: unknown argument %q", arg)
			}
		}
		picker, err := NewPicker(cfg, func() time.Time { return s.now }, rand.New(rand.NewPCG(1, 2)), told{&s.cached})
		if err != nil {
			s.t.Fatal(err)
		}
		s.picker = picker
		s.picker.RememberBy(told{&s.sent})
		s.endpoints, s.cached, s.sent = nil, nil, nil
	case "model":
		s.models = append([]string(nil), args...)
	case "adapters":
		s.adapters = append([]string(nil), args...)
	case "kind":
		s.kind = strings.Join(args, " ")
	case "engine":
		s.engine(args[0], args[1:])
	case "add":
		for _, name := range args {
			s.nextID++
			s.endpoints = append(s.endpoints, Endpoint{ID: s.nextID, Name: name, Address: name, Kind: s.kind, Models: s.models, Adapters: s.adapters, Ready: true})
		}
		s.publish()
	case "remove":
		s.each(args[0], func(i int) { s.endpoints = append(s.endpoints[:i:i], s.endpoints[i+1:]...) })
	case "down":
		s.each(args[0], func(i int) { s.endpoints[i].Ready = false })
	case "up":
		s.each(args[0], func(i int) { s.endpoints[i].Ready = true })
	case "cached":
		// name=N or, in tiers, name=N,N@SECONDS,... with the end of each and what
		// a token of it takes to load; remote@ where another engine holds it.
		s.cached = make(map[string]Match)
		for _, arg := range args {
			name, tiers, _ := strings.Cut(arg, "=")
			var m Match
			for tier := range strings.SplitSeq(tiers, ",") {
				end, rate, _ := strings.Cut(tier, "@")
				rate, remote := strings.CutPrefix(rate, "remote@")
				seconds, _ := strconv.ParseFloat(rate, 64) // 0 where there is none
				m.Cached = Tokens(s.number(end))
				m.Spans = append(m.Spans, Span{End: m.Cached, SecondsPerToken: seconds, Remote: remote})
			}
			s.cached[name] = m
		}
	case "sent_before":
		s.sent = make(map[string]Match)
		for _, arg := range args {
			name, n, _ := strings.Cut(arg, "=")
			s.sent[name] = Match{Cached: Tokens(s.number(n))}
		}
	case "route":
		s.route(args)
	case "first":
		ttft, first := s.booked[args[0]].FirstToken()
		fmt.Fprintf(&s.out, "%s  ttft=%s first=%v\n", args[0], ttft, first)
	case "computed":
		s.booked[args[0]].Computed(s.id(args[1]), 0, Tokens(s.number(args[2])))
	case "prefilled":
		fmt.Fprintf(&s.out, "%s  prefilled=%v\n", args[0], s.booked[args[0]].Prefilled(s.id(args[1])))
	case "sent":
		s.booked[args[0]].Sent()
	case "fit":
		fits := s.picker.Fits()
		for _, m := range fits.Models {
			fmt.Fprintf(&s.out, "%q  seconds/token=%.4g seconds/step=%.4g groups=%d\n", m.Model, m.SecondsPerToken(), m.SecondsPerStep(), m.Groups)
		}
	case "kinds":
		for _, k := range s.picker.Fits().Kinds {
			fmt.Fprintf(&s.out, "%q  seconds/token=%.4g seconds/step=%.4g held=%.4gs output=%.4g\n", k.Kind, k.SecondsPerToken(), k.SecondsPerStep(), k.HeldSeconds, k.OutputTokens)
		}
	case "busy":
		for name, pool := range s.picker.Stats().Pools {
			fmt.Fprintf(&s.out, "%q  busy=%.3f\n", name, pool.Busy)
		}
	case "at?":
		for _, e := range s.picker.Stats().Endpoints {
			fmt.Fprintf(&s.out, "%s  waiting=%d decoding=%d held=%d from=%s\n", e.Endpoint.Name, e.Waiting, e.Decoding, e.HeldTokens, e.DecodingFrom)
		}
	case "generated":
		s.booked[args[0]].Generated(Tokens(s.number(args[1])))
	case "served":
		fmt.Fprintf(&s.out, "%s  moved=%v\n", args[0], s.booked[args[0]].Served(args[1]))
	case "end":
		fmt.Fprintf(&s.out, "%s  ended=%v\n", args[0], s.booked[args[0]].End())
	case "at":
		d, err := time.ParseDuration(args[0])
		if err != nil {
			s.t.Fatal(err)
		}
		s.now = time.Unix(0, 0).Add(d)
		for _, r := range s.picker.Expire() {
			fmt.Fprintf(&s.out, "%s  expired\n", r.Decision().ID)
		}
	case "cancel":
		fmt.Fprintf(&s.out, "%s  cancelled=%v\n", args[0], s.held[args[0]].Cancel())
	case "dispatch":
		fmt.Fprintf(&s.out, "%s  dispatched=%v\n", args[0], s.held[args[0]].Dispatch())
	case "next":
		at, ok := s.picker.NextRelease()
		if !ok {
			fmt.Fprintln(&s.out, "nothing goes by time alone")
			break
		}
		fmt.Fprintf(&s.out, "at %s something may go\n", at.Sub(time.Unix(0, 0)))
	case "books":
		s.books()
	default:
		s.t.Fatalf("unknown command %q", verb)
	}
}

func (s *scenario) each(name string, do func(i int)) {
	for i := range s.endpoints {
		if s.endpoints[i].Name == name {
			do(i)
			break
		}
	}
	s.publish()
}

// id is that of the endpoint of that name, 0 where there is none.
func (s *scenario) id(name string) (id EndpointID) {
	for _, e := range s.endpoints {
		if e.Name == name {
			id = e.ID
		}
	}
	return id
}

func (s *scenario) publish() { s.picker.SetEndpoints(append([]Endpoint(nil), s.endpoints...)) }

func (s *scenario) number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// engine takes capacity=N running=N waiting=N usage=F, of now where anything but
// the capacity is told.
func (s *scenario) engine(name string, args []string) {
	var e Engine
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		n, err := strconv.ParseFloat(value, 64)
		if err != nil {
			s.t.Fatal(err)
		}
		if key != "capacity" {
			e.At = s.now
		}
		switch key {
		case "capacity":
			e.CapacityTokens = Tokens(n)
		case "running":
			e.Running = int(n)
		case "waiting":
			e.Waiting = int(n)
		case "usage":
			e.Usage = n
		default:
			s.t.Fatalf("engine: unknown argument %q", arg)
		}
	}
	s.picker.SetEngine(s.id(name), e)
}

// route takes tokens=N[,N...] own=N (tokens of this request alone, behind each of
// the former) model=M alias=A salt=S n=N policy=ID session=S arm=A only=NAME[,NAME...] xTIMES
// plain nocache none estimated (no token ids; after tokens).
func (s *scenario) route(args []string) {
	if i := slices.IndexFunc(args, func(arg string) bool { return strings.HasPrefix(arg, "x") }); i >= 0 {
		for range s.number(args[i][1:]) {
			s.route(slices.Delete(slices.Clone(args), i, i+1))
		}
		return
	}
	prompt := Prompt{Streamed: true, Source: TokensNative}
	copies := 1
	for _, arg := range args {
		key, value, _ := strings.Cut(arg, "=")
		switch key {
		case "tokens":
			for n := range strings.SplitSeq(value, ",") {
				ids := make([]uint32, s.number(n))
				for i := range ids {
					ids[i] = uint32(i)
				}
				prompt.Sequences = append(prompt.Sequences, Sequence{TokenIDs: ids, Length: Tokens(len(ids)), Usable: Tokens(len(ids))})
			}
		case "own":
			for i := range prompt.Sequences {
				q := &prompt.Sequences[i]
				for range s.number(value) {
					s.own++
					q.TokenIDs = append(q.TokenIDs, 1<<31+s.own)
				}
				q.Length = Tokens(len(q.TokenIDs))
				q.Usable = q.Length
			}
		case "salt":
			prompt.Salt = value
		case "model":
			prompt.Model = value
		case "alias":
			prompt.Alias = value
		case "policy":
			prompt.Policy = value
		case "session":
			prompt.Session = value
		case "arm":
			prompt.Arm = value
		case "only":
			prompt.Only = strings.Split(value, ",")
		case "n":
			copies = s.number(value)
		case "estimated":
			prompt.Source = TokensEstimated
			for i := range prompt.Sequences {
				prompt.Sequences[i].TokenIDs, prompt.Sequences[i].Usable = nil, 0
			}
		case "plain":
			prompt.Streamed = false
		case "nocache":
			prompt.NoCache = true
		case "none":
			prompt.Source = TokensNone
		default:
			s.t.Fatalf("route: unknown argument %q", arg)
		}
	}
	for i := range prompt.Sequences {
		prompt.Sequences[i].Copies = copies
	}
	prompt.FillChain()
	s.requests++
	id := strconv.Itoa(s.requests)
	d, h, err := s.picker.Offer(id, &prompt, func(d *Decision, err error) { s.decided(id, d, err) })
	if h != nil {
		s.held[id] = h
		fmt.Fprintf(&s.out, "%-2s held\n", id)
		return
	}
	s.decided(id, d, err)
}

// decided shows the numbers of a decision.
func (s *scenario) decided(id string, d *Decision, err error) {
	if err != nil {
		fmt.Fprintf(&s.out, "%s  %v\n", id, err)
		return
	}
	s.booked[id] = d.Reservation
	lines := make(map[string]string)
	for i, c := range d.Candidates {
		line := fmt.Sprintf("%s  cached=%d work=%.0f queued=%.0f", c.Endpoint.Name, c.Cached, c.Area, c.QueuedArea)
		switch d.Policy {
		case PolicyTTFT:
			line = s.seconds(&c)
		case PolicyKVAware, PolicyQPS, PolicyLeastLoad, PolicySession, PolicyRandom:
			line = fmt.Sprintf("%s  cached=%d in_flight=%d rate=%.3f", c.Endpoint.Name, c.Cached, c.Waiting+c.Decoding, c.Rate)
		case PolicyPrefix:
			line = fmt.Sprintf("%s  routed=%d rate=%.3f", c.Endpoint.Name, c.Routed, c.Rate)
		case PolicyLoadAware:
			line = fmt.Sprintf("%s  cached=%d in_flight=%d rate=%.3f cost=%.4g", c.Endpoint.Name, c.Cached, c.Waiting+c.Decoding, c.Rate, c.Cost)
		}
		if i == 0 {
			line += fmt.Sprintf("  <- %s", d.Reason)
			if d.Policy != s.policy {
				line += " by " + d.Policy
			}
			if d.Arm != "" {
				line += " in " + d.Arm
			}
			if d.Held > 0 {
				line += fmt.Sprintf(", held %s", d.Held)
			}
		}
		lines[c.Endpoint.Name] = line
	}
	label := id
	for _, e := range s.endpoints {
		if line, ok := lines[e.Name]; ok {
			fmt.Fprintf(&s.out, "%-2s %s\n", label, line)
			label = ""
		}
	}
}

// seconds are the numbers that ttft weighs.
func (s *scenario) seconds(c *Candidate) string {
	line := fmt.Sprintf("%s  cached=%d work=%.4f backlog=%.4f", c.Endpoint.Name, c.Cached, c.Work, c.Backlog)
	for _, also := range []struct {
		name  string
		value float64
	}{{"opt", float64(c.Optimistic)}, {"remote", float64(c.Remote)}, {"load", c.Load}, {"kv_wait", c.KVWait}} {
		if also.value != 0 {
			line += fmt.Sprintf(" %s=%.4g", also.name, also.value)
		}
	}
	return line + fmt.Sprintf(" cost=%.4f", c.Cost)
}

func (s *scenario) books() {
	stats := s.picker.Stats()
	for _, e := range stats.Endpoints {
		fmt.Fprintf(&s.out, "%s  queued=%.0f backlog=%s waiting=%d decoding=%d\n", e.Endpoint.Name, e.QueuedArea, e.Backlog, e.Waiting, e.Decoding)
	}
	fmt.Fprintf(&s.out, "open=%d %+v\n", stats.Open, stats.Counts)
}
