package extproc

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/scoring"
)

// The deadline and the endpoints of a request's tries.
func TestRescuePlan(t *testing.T) {
	base := defaultRescue()
	base.Enabled = true
	decision := func(settled, streamed bool, estimates ...time.Duration) *scoring.Decision {
		d := &scoring.Decision{Prompt: &scoring.Prompt{Streamed: streamed}, Pool: scoring.Pool{Settled: settled}}
		for i, e := range estimates {
			d.Candidates = append(d.Candidates, scoring.Candidate{Endpoint: pool(9)[i], Estimate: e})
		}
		return d
	}
	const s = time.Second
	for _, c := range []struct {
		name      string
		change    func(*RescueConfig)
		fallbacks int
		d         *scoring.Decision
		deadline  time.Duration // 0: none
		tries     int
	}{
		{"the floor", nil, 2, decision(true, true, s/10, s/10, s/10), 2 * s, 3},
		{"a multiple of the estimate", nil, 2, decision(true, true, s, s, s), 4 * s, 3},
		{"of the slowest that may be tried", nil, 2, decision(true, true, s/10, 3*s, s, 9*s), 12 * s, 3},
		{"no more tries than endpoints", nil, 2, decision(true, true, s, s), 4 * s, 2},
		{"nor than is allowed", func(c *RescueConfig) { c.Tries = 1 }, 2, decision(true, true, s, s, 9*s), 4 * s, 2},
		{"nor than Envoy is told", nil, 1, decision(true, true, s, s, 9*s), 4 * s, 2},
		{"nowhere else to go", nil, 2, decision(true, true, s), 0, 0},
		{"just the longest", nil, 2, decision(true, true, 15*s, s), 60 * s, 2},
		{"too long to be watched", nil, 2, decision(true, true, 15*s+time.Millisecond, s), 0, 0},
		{"an estimate without end", nil, 2, decision(true, true, 1<<62, s), 0, 0},
		{"nothing was learned", nil, 2, decision(false, true, s, s), 60 * s, 2},
		{"not streamed", nil, 2, decision(true, false, s, s), 0, 0},
		{"not streamed, with a deadline", func(c *RescueConfig) { c.Unstreamed = 90 * s }, 2, decision(true, false, s, s), 90 * s, 2},
		{
			"not read, so its body may still come", func(c *RescueConfig) { c.Unstreamed = 90 * s }, 2,
			&scoring.Decision{Prompt: unsized(), Candidates: decision(true, false, s, s).Candidates}, 0, 0,
		},
		{"off", func(c *RescueConfig) { c.Enabled = false }, 2, decision(true, true, s, s), 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := base
			if c.change != nil {
				c.change(&cfg)
			}
			p, ok := cfg.plan(c.d, c.fallbacks)
			if ok != (c.deadline > 0) || p.deadline != c.deadline || len(p.endpoints) != c.tries {
				t.Errorf("%v: %s at %d endpoints, want %s at %d", ok, p.deadline, len(p.endpoints), c.deadline, c.tries)
			}
			for i, e := range p.endpoints {
				if e.Address != c.d.Candidates[i].Endpoint.Address {
					t.Errorf("try %d at %s", i+1, e.Address)
				}
			}
		})
	}
}

// tried is a request with a deadline that has just left, and what is told of it.
type tried struct {
	*fixture
	asking  *client
	id      string
	missed  []string
	alive   []string
	rescues []Rescue
}

const testDeadline = 2 * time.Second

// try sends a request to n endpoints, the first one first. Call it in a bubble.
func try(t *testing.T, n int) *tried {
	t.Helper()
	r := &tried{}
	r.fixture = newFixture(t, pool(n), func(c *Config, d *Deps) {
		c.Rescue.Enabled, c.Rescue.Max = true, testDeadline
		d.Missed = func(address string, silent bool) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.missed = append(r.missed, fmt.Sprintf("%s %v", address[7:8], silent))
		}
		d.Alive = func(address string) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.alive = append(r.alive, address[7:8])
		}
		d.Rescued = func(_ string, v Rescue) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.rescues = append(r.rescues, v)
		}
	})
	r.holds.Store(true)
	r.asking = r.open(t, buffered, none)
	r.asking.one(t, completion())
	m := r.asking.one(t, reqBody("{ a prompt }", true))
	if got, want := header(m, envoy.HeaderTryTimeout), strconv.FormatInt(testDeadline.Milliseconds(), 10); got != want {
		t.Fatalf("deadline %q, want %s", got, want)
	}
	if got := header(m, envoy.HeaderMaxRetries); got != strconv.Itoa(min(n, 3)-1) {
		t.Fatalf("%s retries at %d endpoints", got, n)
	}
	r.id = metadata(m, envoy.Metadata, envoy.KeyID)
	// Round robin draws the first of equals; the tests call it 1.
	return r
}

// at is the endpoint of try number n.
func (r *tried) at(n int) string { return r.decided[0].Candidates[n-1].Endpoint.Address }

// key is how try names an endpoint.
func (r *tried) key(n int) string { return r.at(n)[7:8] }

// begins is the first message of the stream that shows try n.
func (r *tried) begins(n int, code string) *extprocv3.ProcessingRequest {
	m := respHeaders(code, false)
	m.Attributes = map[string]*structpb.Struct{"hold": {Fields: map[string]*structpb.Value{
		envoy.AttributeAttempt:  structpb.NewNumberValue(float64(n)),
		envoy.AttributeUpstream: structpb.NewStringValue(r.at(n)),
		envoy.AttributePath:     structpb.NewStringValue("/v1/completions"),
	}}}
	m.MetadataContext = &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
		envoy.Metadata: {Fields: map[string]*structpb.Value{envoy.KeyID: structpb.NewStringValue(r.id)}},
	}}
	return m
}

// shown opens the stream of try n and expects its headers to be kept back.
func (r *tried) shown(t *testing.T, n int) *client {
	t.Helper()
	c := r.open(t, none, streamed)
	if got := c.say(t, r.begins(n, "200")); len(got) != 0 {
		t.Fatalf("the headers of try %d were answered: %v", n, got)
	}
	return c
}

// token sends a first chunk and expects headers and body to be let go, and the
// stream to end.
func token(t *testing.T, c *client) {
	t.Helper()
	got := c.say(t, respBody("data: x\n\n", false))
	if len(got) != 2 || got[0].GetResponseHeaders() == nil || got[1].GetResponseBody() == nil {
		t.Fatalf("the first chunk was answered by %v", got)
	}
	if c.isOpen() || c.err != nil {
		t.Errorf("the stream goes on, or ended with %v", c.err)
	}
}

// check compares what was told: the endpoints that missed, by try, and the
// outcome.
func (r *tried) check(t *testing.T, missed []string, outcome RescueOutcome) {
	t.Helper()
	synctest.Wait()
	if !slices.Equal(r.missed, missed) {
		t.Errorf("missed %q, want %q", r.missed, missed)
	}
	last := r.rescues[len(r.rescues)-1]
	if last.Outcome != outcome || len(last.Missed) != len(missed) {
		t.Errorf("rescue %+v, want %q", last, outcome)
	}
	if n := len(r.followed.byID); n != 0 {
		t.Errorf("%d requests are still followed", n)
	}
}

// record is what the access log says of the request.
func (r *tried) log(code uint32, attempts uint32, flags *datav3.ResponseFlags) {
	r.record(&datav3.HTTPAccessLogEntry{
		CommonProperties: &datav3.AccessLogCommon{
			ResponseFlags: flags, UpstreamRequestAttemptCount: attempts,
			Metadata: r.begins(1, "200").GetMetadataContext(),
		},
		Response: &datav3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(code)},
	})
}

// A first token in time is no rescue.
func TestTryInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 3)
		c := r.shown(t, 1)
		time.Sleep(testDeadline - time.Millisecond)
		token(t, c)
		r.check(t, nil, "")
		if len(r.tokens) != 1 {
			t.Errorf("%d first tokens", len(r.tokens))
		}
		time.Sleep(time.Minute)
		r.check(t, nil, "")
	})
}

// Each way in which a deadline is seen to be missed.
func TestTryMissed(t *testing.T) {
	for _, c := range []struct {
		name string
		miss func(t *testing.T, r *tried)
	}{
		{"its stream ends", func(t *testing.T, r *tried) {
			t.Helper()
			c := r.shown(t, 1)
			time.Sleep(testDeadline)
			c.close(errEOF)
		}},
		{"the next stream comes before that end", func(t *testing.T, r *tried) {
			t.Helper()
			r.shown(t, 1)
			time.Sleep(testDeadline)
		}},
		{"nothing was seen of it, and the next one comes", func(_ *testing.T, _ *tried) { time.Sleep(testDeadline) }},
		{"nothing was seen of it, nor of the next one", func(_ *testing.T, _ *tried) { time.Sleep(testDeadline + 2*timerGrace) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := try(t, 3)
				c.miss(t, r)
				second := r.shown(t, 2)
				if at, _ := r.decided[0].Reservation.Endpoint(); at.Address != r.at(2) {
					t.Errorf("booked at %s, want %s", at.Address, r.at(2))
				}
				token(t, second)
				r.check(t, []string{r.key(1) + " true"}, rescueAnswered)
				if len(r.tokens) != 1 {
					t.Errorf("%d first tokens", len(r.tokens))
				}
			})
		})
	}
}

// A reset, and an error that Envoy retries, are no missed deadlines.
func TestTryLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 3)
		first := r.shown(t, 1)
		time.Sleep(testDeadline / 2)
		first.close(errEOF)
		token(t, r.shown(t, 2))
		r.check(t, nil, rescueAnswered)
	})
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 3)
		first := r.open(t, none, streamed)
		if m := first.one(t, r.begins(1, "503")); m.GetResponseHeaders() == nil {
			t.Errorf("503 is answered by %v", m)
		}
		if first.isOpen() {
			t.Error("the stream of an error goes on")
		}
		token(t, r.shown(t, 2))
		r.check(t, nil, "")
	})
}

// Where the client leaves, nobody missed anything, whenever that is told.
func TestTryClientLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 3)
		first := r.shown(t, 1)
		time.Sleep(testDeadline / 2)
		first.close(errEOF)
		r.log(0, 1, &datav3.ResponseFlags{DownstreamConnectionTermination: true})
		r.check(t, nil, "")
	})
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 3)
		first := r.shown(t, 1)
		time.Sleep(testDeadline / 2)
		first.close(errEOF) // and no access log
		time.Sleep(testDeadline)
		r.check(t, nil, "")
	})
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 3)
		time.Sleep(testDeadline)
		second := r.shown(t, 2)
		time.Sleep(testDeadline / 2)
		second.close(errEOF)
		r.log(0, 2, &datav3.ResponseFlags{DownstreamConnectionTermination: true})
		r.check(t, []string{r.key(1) + " true"}, rescueCancelled)
	})
}

// A client leaves before anything was shown of its try. Where bodies are buffered the
// end of the stream that asked says so, with an access log or without.
func TestTryClientLeavesUnseen(t *testing.T) {
	for _, c := range []struct {
		name  string
		after time.Duration
		log   bool
	}{
		{"at once", 0, false},
		{"at once, with an access log", 0, true},
		{"just before the deadline", testDeadline - time.Millisecond, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := try(t, 3)
				time.Sleep(c.after)
				r.asking.close(errEOF)
				if c.log {
					r.log(0, 1, &datav3.ResponseFlags{DownstreamConnectionTermination: true})
				}
				time.Sleep(time.Minute)
				r.check(t, nil, "")
			})
		})
	}
}

// The end of the stream that asked is no client's leaving where the request was
// answered, or given up at the last endpoint.
func TestTryOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 2)
		time.Sleep(testDeadline)
		second := r.shown(t, 2)
		r.asking.close(errEOF) // the news of a short answer's end is first
		token(t, second)
		r.check(t, []string{r.key(1) + " true"}, rescueAnswered)
	})
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 2)
		time.Sleep(2 * testDeadline)
		r.asking.close(errEOF)
		r.log(http.StatusGatewayTimeout, 2, &datav3.ResponseFlags{UpstreamRequestTimeout: true})
		r.check(t, []string{r.key(1) + " true", r.key(2) + " true"}, rescueExhausted)
	})
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 2)
		time.Sleep(testDeadline)
		r.shown(t, 2)
		time.Sleep(testDeadline)
		r.asking.close(errEOF)
		time.Sleep(time.Minute) // no access log
		r.check(t, []string{r.key(1) + " true", r.key(2) + " true"}, rescueExhausted)
	})
}

// All tries are given up: seen by streams, by the access log alone, or by neither.
func TestTriesExhausted(t *testing.T) {
	flags := &datav3.ResponseFlags{UpstreamRequestTimeout: true}
	for _, c := range []struct {
		name string
		tell func(t *testing.T, r *tried)
	}{
		{"streams", func(t *testing.T, r *tried) {
			t.Helper()
			for n := 1; n <= 3; n++ {
				c := r.shown(t, n)
				time.Sleep(testDeadline)
				c.close(errEOF)
			}
		}},
		{"timers", func(_ *testing.T, _ *tried) { time.Sleep(3*testDeadline + time.Second) }},
		{"access log", func(_ *testing.T, r *tried) {
			r.holds.Store(false) // Envoy has shown no try yet
			time.Sleep(3 * testDeadline)
			r.log(http.StatusGatewayTimeout, 3, flags)
		}},
		{"streams, then access log", func(t *testing.T, r *tried) {
			t.Helper()
			c := r.shown(t, 1)
			time.Sleep(testDeadline)
			c.close(errEOF)
			time.Sleep(2 * testDeadline)
			r.log(http.StatusGatewayTimeout, 3, flags)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := try(t, 3)
				c.tell(t, r)
				r.check(t, []string{r.key(1) + " true", r.key(2) + " true", r.key(3) + " true"}, rescueExhausted)
			})
		})
	}
}

// Where Envoy's configuration has no filter that shows tries, no engine is taken
// to hang and no booking moves.
func TestTriesUnshown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 2)
		r.holds.Store(false)
		time.Sleep(time.Minute)
		r.check(t, nil, "")
		if at, _ := r.decided[0].Reservation.Endpoint(); at.Address != r.at(1) {
			t.Errorf("booked at %s, want %s", at.Address, r.at(1))
		}
	})
}

// An engine that gave others first tokens is late, and one that gave none is
// alive again at its next one.
func TestSilentAndLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 2)
		time.Sleep(testDeadline / 2)
		other := r.speak(t, r.at(1))
		time.Sleep(testDeadline / 2)
		token(t, r.shown(t, 2))
		r.check(t, []string{r.key(1) + " false"}, rescueAnswered)
		other.close(errEOF)
	})
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 2)
		time.Sleep(testDeadline)
		token(t, r.shown(t, 2))
		r.check(t, []string{r.key(1) + " true"}, rescueAnswered)
		if len(r.alive) != 0 {
			t.Errorf("%q are alive", r.alive)
		}
		r.speak(t, r.at(1))
		r.speak(t, r.at(1))
		synctest.Wait()
		if !slices.Equal(r.alive, []string{r.key(1)}) {
			t.Errorf("%q are alive, want %s once", r.alive, r.key(1))
		}
	})
}

// A first token that comes while the news of a silent engine is on its way is no
// less heard: the engine is alive after it was missed.
func TestHeardWhileMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 2)
		var told []string
		var other *scoring.Reservation
		missed, alive := r.Server.missed, r.Server.alive
		r.Server.missed = func(address string, silent bool) {
			r.firstToken(other)
			told = append(told, "missed")
			missed(address, silent)
		}
		r.Server.alive = func(address string) {
			told = append(told, "alive")
			alive(address)
		}
		c := r.open(t, buffered, streamed)
		c.one(t, completion())
		c.one(t, reqBody("{ plain and not streamed }", true))
		other = r.decided[1].Reservation
		r.served(other, r.at(1))
		time.Sleep(testDeadline)
		token(t, r.shown(t, 2))
		r.check(t, []string{r.key(1) + " true"}, rescueAnswered)
		if want := []string{"missed", "alive"}; !slices.Equal(told, want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

// A request that is for one endpoint is not tried elsewhere by the route's own
// retries; where it has no choice but is restricted to nothing, those stand.
func TestPinIsNotRetried(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Rescue.Enabled = true
	r := newReplies(cfg)
	for _, c := range []struct {
		name string
		only []string
		n    int
		want string
	}{
		{"pinned", []string{pool(1)[0].Address}, 1, "0"},
		{"the only one there is", nil, 1, ""},
	} {
		d := &scoring.Decision{Prompt: &scoring.Prompt{Only: c.only}}
		for _, e := range pool(c.n) {
			d.Candidates = append(d.Candidates, scoring.Candidate{Endpoint: e})
		}
		m := r.headers(d)
		if got := header(m, envoy.HeaderMaxRetries); got != c.want || removes(m, envoy.HeaderMaxRetries) != (c.want == "") {
			t.Errorf("%s: retries %q, want %q", c.name, got, c.want)
		}
		if !removes(m, envoy.HeaderTryTimeout) {
			t.Errorf("%s: a client's deadline passes", c.name)
		}
	}
}

// speak has the endpoint at address give a first token to another request.
func (r *tried) speak(t *testing.T, address string) *client {
	t.Helper()
	c := r.open(t, buffered, streamed)
	c.one(t, completion())
	c.one(t, reqBody("{ plain and not streamed }", true))
	c.say(t, with(respBody("{}", false), 200, address))
	return c
}

// The last try is not given up while its engine gives others first tokens.
func TestLastTryOfABusyEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 2)
		time.Sleep(testDeadline)
		second := r.shown(t, 2)
		time.Sleep(testDeadline / 2)
		r.speak(t, r.at(2))
		if got := second.answers(); len(got) != 0 {
			t.Errorf("answered %v before it had to", got)
		}
		time.Sleep(testDeadline/2 - time.Millisecond)
		synctest.Wait()
		if got := second.answers(); len(got) != 1 || got[0].GetResponseHeaders() == nil {
			t.Fatalf("answered %v, want its headers", got)
		}
		r.check(t, []string{r.key(1) + " true"}, rescueLifted)
		time.Sleep(10 * testDeadline)
		if got := second.say(t, respBody("data: x\n\n", false)); len(got) != 1 || got[0].GetResponseBody() == nil {
			t.Errorf("its first chunk is answered by %v", got)
		}
		if len(r.tokens) != 1 {
			t.Errorf("%d first tokens", len(r.tokens))
		}
	})
}

// What has no deadline is shown, and not kept back.
func TestTryWithoutDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 1+1)
		plain := r.open(t, buffered, none)
		plain.one(t, completion())
		m := plain.one(t, reqBody("{ plain }", true))
		for _, name := range []string{envoy.HeaderTryTimeout, envoy.HeaderMaxRetries} {
			if header(m, name) != "" || !removes(m, name) {
				t.Errorf("%s of a client passes, or is set to %q", name, header(m, name))
			}
		}
		r.id = metadata(m, envoy.Metadata, envoy.KeyID)
		c := r.open(t, none, streamed)
		if m := c.one(t, r.begins(1, "200")); m.GetResponseHeaders() == nil {
			t.Errorf("headers answered by %v", m)
		}
		c.one(t, respBody("{}", false))
		if c.isOpen() {
			t.Error("the stream goes on after the first chunk")
		}
		r.id = "unknown"
		foreign := r.open(t, none, streamed)
		if m := foreign.one(t, r.begins(1, "200")); m.GetResponseHeaders() == nil || foreign.isOpen() {
			t.Errorf("headers of a request that is none of ours: %v", m)
		}
	})
}

// A stream on /v1/responses begins with events that tell of no token.
func TestTryAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := try(t, 2)
		c := r.open(t, none, streamed)
		m := r.begins(1, "200")
		m.GetAttributes()["hold"].GetFields()[envoy.AttributePath] = structpb.NewStringValue("/v1/responses")
		if got := c.say(t, m); len(got) != 0 {
			t.Fatalf("answered %v", got)
		}
		if got := c.say(t, respBody("event: response.created\ndata: {}\n\n", false)); len(got) != 0 {
			t.Fatalf("an announcement is answered by %v", got)
		}
		got := c.say(t, respBody("event: response.output_text.delta\ndata: {}\n\n", false))
		if len(got) != 3 || got[0].GetResponseHeaders() == nil || got[1].GetResponseBody() == nil || got[2].GetResponseBody() == nil {
			t.Errorf("the first token is answered by %v, want headers and two chunks", got)
		}
		r.check(t, nil, "")
	})
}

// Whatever comes, in whatever order: nothing is followed for longer than all
// deadlines together, an endpoint misses at most one for each try, and there is
// one outcome.
func TestTriesAtRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, uint64(len(t.Name()))))
	for range 300 {
		seed := rng.Uint64()
		t.Run(strconv.FormatUint(seed, 16), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rng := rand.New(rand.NewPCG(seed, 1))
				r := try(t, 2+rng.IntN(2))
				r.holds.Store(rng.IntN(5) > 0)
				tries := r.followed.find(r.id)
				n := len(tries.endpoints)
				var said strings.Builder
				for range rng.IntN(8) {
					time.Sleep(time.Duration(rng.Int64N(int64(testDeadline * 5 / 4))))
					number := 1 + rng.IntN(n)
					event := rng.IntN(6)
					fmt.Fprintf(&said, "%d(%d) ", event, number)
					switch event {
					case 0, 1:
						tries.opened(number, r.at(number))
					case 2:
						tries.closed(number)
					case 3:
						tries.refused(number)
					case 4:
						tries.answered()
					case 5:
						r.log([]uint32{200, 504, 0}[rng.IntN(3)], uint32(number), &datav3.ResponseFlags{UpstreamRequestTimeout: rng.IntN(2) == 0})
					}
				}
				time.Sleep(time.Duration(n+1) * (testDeadline + time.Second))
				synctest.Wait()
				if len(r.followed.byID) != 0 {
					t.Errorf("still followed after %s", &said)
				}
				if len(r.missed) > n {
					t.Errorf("%d missed of %d tries after %s", len(r.missed), n, &said)
				}
				outcomes := 0
				for _, v := range r.rescues {
					if v.Outcome != "" {
						outcomes++
					}
				}
				counted := 0.0
				for _, o := range []RescueOutcome{rescueAnswered, rescueExhausted, rescueLifted, rescueCancelled} {
					counted += testutil.ToFloat64(r.metrics.rescues.WithLabelValues(string(o)))
				}
				if outcomes > 1 || counted != float64(outcomes) {
					t.Errorf("%d outcomes, %v counted after %s", outcomes, counted, &said)
				}
			})
		})
	}
}
