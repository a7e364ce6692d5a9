package decisions

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/firsttoken/firsttoken/simulator/report"
)

// What is counted.
const (
	countReason  = "reason"
	countTokens  = "tokens from"
	countOutcome = "outcome"
	countRescue  = "rescue"
)

// Group is the figures of the requests of one model, policy and arm.
type Group struct {
	Model, Policy, Arm string
	// Shadow: the policy only said what it would have chosen.
	Shadow   bool
	Requests int
	// Tokens are those of all prompts, Compared those of prompts of which it is
	// known what the choice and the endpoint that served had cached, or on its way by
	// requests under way: ChoiceHits and ServedHits are the shares of them.
	Tokens, Compared       float64
	ChoiceHits, ServedHits float64
	// Placed is of how many requests with a prompt it is known who served them, Agreed
	// of how many that was the choice.
	Placed, Agreed int
	// Times to first token in seconds, of Measured streamed answers.
	Measured      int
	P50, P95, P99 float64
	// Estimated is how many of them had an estimate for the endpoint that they were
	// measured at. The error is the difference as a share of the measured time;
	// Bias is the sum of estimates over that of measured times, less one.
	Estimated                   int
	ErrorMedian, ErrorP90, Bias float64
	// Gain is the mean, over requests with a prompt, of how much sooner the first token
	// was estimated to come at the choice than where it was served, in seconds.
	Gain float64
}

// Endpoint is what one endpoint served.
type Endpoint struct {
	Name string
	// Served counts requests, Share is their share of all whose endpoint is known.
	Served int
	Share  float64
	// Tokens are the prompts', Computed those that were not cached, as far as that
	// is known.
	Tokens, Computed float64
	// Chosen is how many requests it was the choice for.
	Chosen int
}

// Figures are what a page shows.
type Figures struct {
	From, To time.Time
	// Unsized is how many requests had no prompt.
	Unsized   int
	Groups    []Group
	Endpoints []Endpoint
	// MostOverMean is the largest of the endpoints' served requests, and of their
	// tokens, over the mean.
	RequestsOverMean, TokensOverMean float64
	// Counts are how often each reason and the like was met, the most frequent
	// first.
	Counts []Count
}

// Count is how often something was met.
type Count struct {
	Of, Value string
	Requests  int
}

// Figures are those of all that was read.
func (r *Records) Figures() Figures {
	var f Figures
	f.Groups = make([]Group, len(r.groups.values))
	ttft, errs := make([][]float64, len(f.Groups)), make([][]float64, len(f.Groups))
	estimates, measured, gains := make([]float64, len(f.Groups)), make([]float64, len(f.Groups)), make([]int, len(f.Groups))
	for i, g := range r.groups.values {
		f.Groups[i] = Group{Model: g.model, Policy: g.policy, Arm: g.arm, Shadow: g.shadow}
	}
	f.Endpoints = make([]Endpoint, len(r.places.values))
	for i, name := range r.places.values {
		f.Endpoints[i].Name = name
	}
	placed := 0
	for i := range r.rows {
		w := &r.rows[i]
		if f.From.IsZero() || w.at.Before(f.From) {
			f.From = w.at
		}
		if w.at.After(f.To) {
			f.To = w.at
		}
		g := &f.Groups[w.group]
		g.Requests++
		g.Tokens += float64(w.prompt)
		f.Endpoints[w.choice].Chosen++
		if w.unsized {
			f.Unsized++
		}
		if w.served >= 0 {
			placed++
			e := &f.Endpoints[w.served]
			e.Served++
			e.Tokens += float64(w.prompt)
			if w.compared {
				e.Computed += float64(w.prompt - w.servedCached)
			} else {
				e.Computed += float64(w.prompt)
			}
			if !w.unsized {
				g.Placed++
				if w.served == w.choice {
					g.Agreed++
				}
			}
		}
		if w.compared {
			g.Compared += float64(w.prompt)
			g.ChoiceHits += float64(w.choiceCached)
			g.ServedHits += float64(w.servedCached)
		}
		if w.ttft >= 0 {
			ttft[w.group] = append(ttft[w.group], w.ttft)
		}
		if w.estimate >= 0 && w.served >= 0 && !w.unsized {
			g.Gain += w.estimate - w.choiceEstimate
			gains[w.group]++
		}
		if w.ttft > 0 && w.estimate >= 0 {
			errs[w.group] = append(errs[w.group], abs(w.estimate-w.ttft)/w.ttft)
			estimates[w.group] += w.estimate
			measured[w.group] += w.ttft
		}
	}
	for i := range f.Groups {
		g := &f.Groups[i]
		g.ChoiceHits, g.ServedHits = finite(g.ChoiceHits/g.Compared), finite(g.ServedHits/g.Compared)
		slices.Sort(ttft[i])
		slices.Sort(errs[i])
		g.Measured, g.Estimated = len(ttft[i]), len(errs[i])
		g.P50, g.P95, g.P99 = report.Quantile(ttft[i], .5), report.Quantile(ttft[i], .95), report.Quantile(ttft[i], .99)
		g.ErrorMedian, g.ErrorP90 = report.Quantile(errs[i], .5), report.Quantile(errs[i], .9)
		if g.Estimated > 0 {
			g.Bias = finite(estimates[i]/measured[i] - 1)
		}
		g.Gain = finite(g.Gain / float64(gains[i]))
	}
	slices.SortFunc(f.Groups, func(a, b Group) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.Model, b.Model), cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Arm, b.Arm), compareBool(a.Shadow, b.Shadow))
	})
	f.balance(placed)
	for _, of := range []string{countReason, countTokens, countOutcome, countRescue} {
		values := slices.SortedFunc(maps.Keys(r.counts[of]), func(a, b string) int {
			return cmp.Or(cmp.Compare(r.counts[of][b], r.counts[of][a]), cmp.Compare(a, b))
		})
		for _, v := range values {
			f.Counts = append(f.Counts, Count{of, v, r.counts[of][v]})
		}
	}
	return f
}

// balance completes and sorts the endpoints.
func (f *Figures) balance(placed int) {
	most, mostTokens, tokens := 0, 0.0, 0.0
	for i := range f.Endpoints {
		e := &f.Endpoints[i]
		e.Share = finite(float64(e.Served) / float64(placed))
		most, mostTokens, tokens = max(most, e.Served), max(mostTokens, e.Tokens), tokens+e.Tokens
	}
	n := float64(len(f.Endpoints))
	f.RequestsOverMean, f.TokensOverMean = finite(float64(most)*n/float64(placed)), finite(mostTokens*n/tokens)
	slices.SortFunc(f.Endpoints, func(a, b Endpoint) int { return cmp.Compare(a.Name, b.Name) })
}

func abs(x float64) float64 { return max(x, -x) }

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}
