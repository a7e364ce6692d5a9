package extproc

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	datav3 "github.com/envoyproxy/go-control-plane/envoy/data/accesslog/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/firsttoken/firsttoken/canary"
	"github.com/firsttoken/firsttoken/envoy"
	"github.com/firsttoken/firsttoken/prompt"
	"github.com/firsttoken/firsttoken/scoring"
)

// byHeader has an arm for each policy that is named, by the header x-arm.
func byHeader(policies ...string) canary.Config {
	c := canary.DefaultConfig()
	for _, id := range policies {
		c.Arms = append(c.Arms, canary.Arm{Name: "arm-" + id, Policy: id, Header: "X-Arm: " + id})
	}
	return c
}

// ask sends a completion with the header, and gives the answer to its body.
func (f *fixture) ask(t *testing.T, arm, body string) (*client, *extprocv3.ProcessingResponse) {
	t.Helper()
	c := f.open(t, buffered, streamed)
	c.one(t, reqHeaders(false, ":method", "POST", ":path", "/v1/completions", "x-arm", arm, "X-Arm", "second"))
	return c, c.one(t, reqBody(body, true))
}

// A request's arm names its policy, and is in the decision and in its metadata.
func TestArmNamesThePolicy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		f.SetArms(byHeader(scoring.PolicyTTFT, scoring.PolicyLeastLoad, ""))
		for _, c := range []struct{ header, arm, policy string }{
			{scoring.PolicyTTFT, "arm-ttft", scoring.PolicyTTFT},
			{scoring.PolicyLeastLoad, "arm-leastload", scoring.PolicyLeastLoad},
			{"unknown", "arm-", scoring.PolicyRoundRobin}, // "X-Arm: " takes any value
		} {
			_, m := f.ask(t, c.header, "{}")
			d := f.decided[len(f.decided)-1]
			if d.Arm != c.arm || d.Policy != c.policy {
				t.Errorf("%s: arm %q, policy %s; want %q, %s", c.header, d.Arm, d.Policy, c.arm, c.policy)
			}
			if got := metadata(m, envoy.Metadata, envoy.KeyArm); got != c.arm {
				t.Errorf("%s: arm %q in the metadata", c.header, got)
			}
			if !strings.HasPrefix(header(m, envoy.HeaderEndpoint), d.Endpoint().Address) {
				t.Errorf("%s: the choice is not told", c.header)
			}
		}
	})
}

// A request without an arm has none anywhere; so has one that asks for no tokens.
func TestNoArm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		f.SetArms(byHeader(canary.PolicyEnvoy))
		_, m := f.ask(t, "other", "{}")
		if got := m.GetDynamicMetadata().GetFields()[envoy.Metadata].GetStructValue().GetFields(); got[envoy.KeyArm] != nil {
			t.Errorf("metadata %v", got)
		}
		c := f.open(t, buffered, streamed)
		m = c.one(t, reqHeaders(true, ":method", "GET", ":path", "/v1/models", "x-arm", canary.PolicyEnvoy))
		if header(m, envoy.HeaderEndpoint) == "" {
			t.Errorf("no choice for a request that asks for no tokens: %v", m)
		}
		for _, d := range f.decided {
			if d.Arm != "" {
				t.Errorf("arm %q", d.Arm)
			}
		}
	})
}

// armOf is one arm's metrics: assigned, prompt tokens, first tokens, and ends by
// outcome.
func (f *fixture) armOf(t *testing.T, arm string) (assigned, tokens, firsts float64, ends map[scoring.Outcome]float64) {
	t.Helper()
	s := f.metrics.arms.of(arm)
	if s == nil {
		t.Fatalf("no metrics of arm %q", arm)
	}
	ends = map[scoring.Outcome]float64{}
	for outcome, c := range s.ends {
		if n := testutil.ToFloat64(c); n > 0 {
			ends[outcome] = n
		}
	}
	return testutil.ToFloat64(s.requests), testutil.ToFloat64(s.tokens), histogramCount(t, s.ttft), ends
}

func histogramCount(t *testing.T, o prometheus.Observer) float64 {
	t.Helper()
	metric, ok := o.(prometheus.Metric)
	if !ok {
		t.Fatal("no metric")
	}
	var m dto.Metric
	if err := metric.Write(&m); err != nil {
		t.Fatal(err)
	}
	return float64(m.GetHistogram().GetSampleCount())
}

// logged is an access-log record with the metadata of an answer.
func logged(m *extprocv3.ProcessingResponse, code uint32) *datav3.HTTPAccessLogEntry {
	return &datav3.HTTPAccessLogEntry{
		CommonProperties: &datav3.AccessLogCommon{Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{
			envoy.Metadata: m.GetDynamicMetadata().GetFields()[envoy.Metadata].GetStructValue(),
		}}},
		Response: &datav3.HTTPResponseProperties{ResponseCode: wrapperspb.UInt32(code)},
	}
}

// labelledBy is the metadata of a request of an arm that a service left to Envoy.
func labelledBy(instance string) *corev3.Metadata {
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{envoy.Metadata: {Fields: map[string]*structpb.Value{
		envoy.KeyArm: structpb.NewStringValue("a"), envoy.KeyBy: structpb.NewStringValue(instance),
	}}}}
}

// In an arm in which Envoy picks no choice is told and nothing booked, but its
// requests, first tokens and ends are counted as those of the other arms are.
func TestArmOfEnvoy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, other := newFixture(t, pool(2)), newFixture(t, pool(2))
		arms := byHeader(canary.PolicyEnvoy, scoring.PolicyTTFT)
		f.SetArms(arms)
		other.SetArms(arms)
		for _, step := range []struct {
			arm, body, chunk string
			code             int
		}{
			{canary.PolicyEnvoy, "{}", "data: x\n\n", 200},
			{canary.PolicyEnvoy, "{plain}", "{}", 200},             // not streamed: no first token
			{canary.PolicyEnvoy, "{}", `{"error":"x"}`, 500},       // an error is no first token
			{canary.PolicyEnvoy, "{}", "data: {\"error\"}", 503},   // nor is a streamed one
			{scoring.PolicyTTFT, "{}", "data: x\n\n", 200},         // booked
			{scoring.PolicyTTFT, "{}", `{"error":"x"}`, 400},       // booked, and refused by the engine
			{scoring.PolicyTTFT, "{model:x }", "", 0},              // refused by us
			{canary.PolicyEnvoy, "{model:x }", "data: x\n\n", 200}, // Envoy's affair
		} {
			c, m := f.ask(t, step.arm, step.body)
			if m.GetImmediateResponse() != nil {
				if step.code != 0 {
					t.Fatalf("%+v: refused", step)
				}
				continue
			}
			told := header(m, envoy.HeaderEndpoint) != "" || m.GetDynamicMetadata().GetFields()[envoy.MetadataBalancer] != nil
			if told != (step.arm == scoring.PolicyTTFT) {
				t.Errorf("%+v: a choice is told: %v", step, told)
			}
			if got := metadata(m, envoy.Metadata, envoy.KeyArm); got != "arm-"+step.arm {
				t.Errorf("%+v: arm %q in the metadata", step, got)
			}
			c.say(t, with(respBody(step.chunk, false), step.code, "10.0.0.1:8000"))
			entry := logged(m, uint32(step.code))
			other.record(entry) // the record of another service's request counts for nothing there
			f.record(entry)
		}
		assigned, tokens, firsts, ends := f.armOf(t, "arm-envoy")
		if assigned != 5 || tokens != 0 || firsts != 2 || ends[scoring.OutcomeComplete] != 3 || ends[scoring.OutcomeError] != 2 || len(ends) != 2 {
			t.Errorf("Envoy's arm: %v requests, %v tokens, %v first tokens, ends %v", assigned, tokens, firsts, ends)
		}
		assigned, tokens, firsts, ends = f.armOf(t, "arm-ttft")
		if assigned != 3 || tokens != 4 || firsts != 1 || ends[scoring.OutcomeComplete] != 1 || ends[scoring.OutcomeError] != 1 || ends[outcomeRefused] != 1 {
			t.Errorf("our arm: %v requests, %v tokens, %v first tokens, ends %v", assigned, tokens, firsts, ends)
		}
		if got := f.leftTo("arm"); got != 5 {
			t.Errorf("left to Envoy %v times, want 5", got)
		}
		if stats := f.picker.Stats(); stats.Open != 0 {
			t.Errorf("%d bookings are left", stats.Open)
		}
		if _, _, _, ends := other.armOf(t, "arm-envoy"); len(ends) != 0 {
			t.Errorf("another service counts ends %v", ends)
		}
	})
}

// The switch is above the arms: a request that it leaves to Envoy counts for none.
func TestOffAboveArms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		f.SetArms(byHeader(scoring.PolicyTTFT))
		f.SetChoosing(false)
		c := f.open(t, buffered, streamed)
		alone(t, c.one(t, reqHeaders(false, ":method", "POST", ":path", "/v1/completions", "x-arm", scoring.PolicyTTFT)))
		if assigned, _, _, _ := f.armOf(t, "arm-ttft"); assigned != 0 {
			t.Errorf("%v requests", assigned)
		}
	})
}

// Arms that stay go on counting, those that are gone have no series left, and a
// request that began before the change keeps its arm.
func TestArmsChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2))
		f.SetArms(byHeader(scoring.PolicyTTFT, canary.PolicyEnvoy))
		f.ask(t, scoring.PolicyTTFT, "{}")
		c := f.open(t, buffered, streamed)
		c.one(t, reqHeaders(false, ":method", "POST", ":path", "/v1/completions", "x-arm", canary.PolicyEnvoy))
		f.SetArms(byHeader(scoring.PolicyTTFT, scoring.PolicyLeastLoad))
		m := c.one(t, reqBody("{}", true))
		if got := metadata(m, envoy.Metadata, envoy.KeyArm); got != "arm-envoy" {
			t.Errorf("arm %q, want that of the time it came", got)
		}
		if assigned, _, _, _ := f.armOf(t, "arm-ttft"); assigned != 1 {
			t.Errorf("%v requests, want the one from before", assigned)
		}
		if got := testutil.CollectAndCount(f.metrics.arms.requests); got != 2 {
			t.Errorf("%d arms have series, want 2", got)
		}
		if got := testutil.CollectAndCount(f.metrics.arms.ends); got != 8 {
			t.Errorf("%d series of ends, want 4 for each of 2 arms", got)
		}
	})
}

// What is restricted to some endpoints goes there, in whatever arm it would be.
func TestRestrictedHasNoArm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(3))
		f.SetArms(byHeader(canary.PolicyEnvoy))
		for _, c := range []struct {
			name, path string
			subset     *corev3.Metadata
		}{
			{"pin", "/v1/completions?id=10.0.0.3:8000", nil},
			{"subset hint", "/v1/completions", &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{envoy.MetadataSubset: {
				Fields: map[string]*structpb.Value{envoy.KeySubset: structpb.NewStringValue("10.0.0.3:8000")},
			}}}},
		} {
			s := f.open(t, buffered, streamed)
			m := reqHeaders(false, ":method", "POST", ":path", c.path, "x-arm", canary.PolicyEnvoy)
			m.MetadataContext = c.subset
			s.one(t, m)
			answer := s.one(t, reqBody("{}", true))
			if got := header(answer, envoy.HeaderEndpoint); !strings.HasPrefix(got, "10.0.0.3:8000") {
				t.Errorf("%s: the answer names %q", c.name, got)
			}
		}
		if assigned, _, _, _ := f.armOf(t, "arm-envoy"); assigned != 0 {
			t.Errorf("%v requests of the arm", assigned)
		}
	})
}

// An arm for an alias takes what asked for it.
func TestArmOfAnAlias(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, pool(2), func(_ *Config, d *Deps) {
			d.Encoder = encoderFunc(func(ctx context.Context, r prompt.Request) (*scoring.Prompt, error) {
				p, err := encode(ctx, r)
				if err == nil && p.Model == "nick" {
					at := strings.Index(string(r.Body), "nick")
					p.Model, p.Alias, p.AliasAt = "m", "nick", [2]int{at, at + len("nick")}
				}
				return p, err
			})
		})
		arms := canary.DefaultConfig()
		arms.Arms = []canary.Arm{{Name: "a", Weight: 1, Models: []string{"nick"}}}
		f.SetArms(arms)
		f.ask(t, "", "{model:nick }")
		f.ask(t, "", "{model:m }")
		if len(f.decided) != 2 || f.decided[0].Arm != "a" || f.decided[1].Arm != "" {
			t.Errorf("decided %+v", f.decided)
		}
	})
}

// A request that the switch takes back while it is held, or whose client leaves,
// counts for no arm: it has no end there.
func TestTakenBackFromAnArm(t *testing.T) {
	for _, by := range []string{"switch", "client"} {
		t.Run(by, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFixture(t, pool(1), holding)
				fill(t, f, 1)
				f.SetArms(byHeader(scoring.PolicyTTFT))
				c := f.open(t, buffered, streamed)
				c.one(t, reqHeaders(false, ":method", "POST", ":path", "/v1/completions", "x-arm", scoring.PolicyTTFT))
				c.say(t, reqBody("{}", true))
				heldNow(t, f, 1)
				if by == "switch" {
					f.SetChoosing(false)
				} else {
					c.hangUp()
				}
				synctest.Wait()
				if assigned, _, _, ends := f.armOf(t, "arm-ttft"); assigned != 0 || len(ends) != 0 {
					t.Errorf("%v requests, ends %v", assigned, ends)
				}
			})
		})
	}
}

// What could not be answered has ended, whoever was to pick.
func TestUnsentAnswerEndsInItsArm(t *testing.T) {
	for _, policy := range []string{scoring.PolicyTTFT, canary.PolicyEnvoy} {
		synctest.Test(t, func(t *testing.T) {
			f := newFixture(t, pool(1))
			f.SetArms(byHeader(policy))
			c := f.open(t, buffered, streamed)
			c.one(t, reqHeaders(false, ":method", "POST", ":path", "/v1/completions", "x-arm", policy))
			c.mu.Lock()
			c.broken = errBroken
			c.mu.Unlock()
			c.say(t, reqBody("{}", true))
			if assigned, _, _, ends := f.armOf(t, "arm-"+policy); assigned != 1 || ends[scoring.OutcomeCancelled] != 1 {
				t.Errorf("%s: %v requests, ends %v", policy, assigned, ends)
			}
		})
	}
}

// What explain says of arms is what would be.
func TestExplainOfTheRestrictedHasNoArm(t *testing.T) {
	f := newFixture(t, pool(3), func(cfg *Config, _ *Deps) { cfg.SessionKey = "x-session" })
	arms := canary.DefaultConfig()
	arms.Arms = []canary.Arm{{Name: "a", Weight: 1}}
	f.SetArms(arms)
	for path, want := range map[string]string{"/v1/completions": "a", "/v1/completions?id=10.0.0.3:8000": ""} {
		d, notes, err := f.Explain(t.Context(), prompt.Request{Method: "POST", Path: path, ContentType: "application/json", Body: []byte("{}")}, "s")
		if err != nil {
			t.Fatal(err)
		}
		if d.Arm != want {
			t.Errorf("%s: arm %q, want %q; %q", path, d.Arm, want, notes)
		}
	}
}
