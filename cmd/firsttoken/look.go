package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firsttoken/firsttoken/lmcache"
	"github.com/firsttoken/firsttoken/scoring"
)

// adminView are the flags of commands that look at a running service.
type adminView struct {
	address string
	json    bool
}

func (v *adminView) register(flags *pflag.FlagSet) {
	v.registerAddress(flags)
	flags.BoolVar(&v.json, "json", false, "print the service's own answer")
}

func (v *adminView) registerAddress(flags *pflag.FlagSet) {
	flags.StringVar(&v.address, "admin", defaultConfig().Admin.Listen, "`address` of the service's admin port (admin.listen)")
}

// adminTimeout bounds one question to the admin port.
const adminTimeout = 10 * time.Second

func (v *adminView) get(ctx context.Context, path string) ([]byte, error) {
	return v.do(ctx, http.MethodGet, path, nil, nil)
}

func (v *adminView) post(ctx context.Context, path string, query map[string]string, body []byte) ([]byte, error) {
	return v.do(ctx, http.MethodPost, path, query, body)
}

// do asks the admin port. Where it answers with an error status, the answer comes
// together with an error.
func (v *adminView) do(ctx context.Context, method, path string, query map[string]string, body []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	values := make(url.Values)
	for key, value := range query {
		values.Set(key, value)
	}
	at := url.URL{Scheme: "http", Host: v.address, Path: path, RawQuery: values.Encode()}
	request, err := http.NewRequestWithContext(ctx, method, at.String(), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("--admin %s: %w", v.address, err)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("no service answers at its admin port; give its admin.listen as --admin: %w", errors.Unwrap(err))
	}
	defer func() { _ = answer.Body.Close() }()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		return nil, fmt.Errorf("--admin %s: %w", v.address, err)
	}
	if answer.StatusCode != http.StatusOK {
		return text, fmt.Errorf("%s%s answers %s", v.address, path, answer.Status)
	}
	return text, nil
}

// readBody reads a file; - is in.
func readBody(file string, in io.Reader) ([]byte, error) {
	if file == "-" {
		return io.ReadAll(in)
	}
	return os.ReadFile(file) //nolint:gosec // the user names it
}

// newStatusCommand makes "firsttoken status".
func newStatusCommand() *cobra.Command {
	var view adminView
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how a running service sees its engines, and what is wrong",
		Long: "Status asks the admin port of a running service for what it knows of the engines and\n" +
			"their caches, and prints it with every fault that it has found and the way to mend it.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := view.get(cmd.Context(), "/status")
			if err != nil {
				return err
			}
			if view.json {
				_, err := cmd.OutOrStdout().Write(text)
				return err
			}
			var s status
			if err := json.Unmarshal(text, &s); err != nil {
				return fmt.Errorf("the answer of %s is no status: %w", view.address, err)
			}
			return printStatus(cmd.OutOrStdout(), &s, time.Now())
		},
	}
	view.register(cmd.Flags())
	return cmd
}

// printStatus writes a status for people.
func printStatus(w io.Writer, s *status, now time.Time) error {
	fmt.Fprintf(w, "firsttoken %s, up for %s, policy %s; bookings %d, held %d\n", s.Version, now.Sub(s.Started).Round(time.Second), s.Policy, s.OpenBookings, s.Held)
	if !s.Choosing.Choosing {
		fmt.Fprintf(w, "CHOOSING IS OFF since %s by %s: every request is left to Envoy (firsttoken choosing on)\n",
			s.Choosing.Since.Format(time.DateTime), strings.Join(s.Choosing.OffBy, ", "))
	}
	for _, arm := range s.Arms {
		fmt.Fprintf(w, "arm %s: policy %s, weight %d\n", arm.Name, arm.Policy, arm.Weight)
	}
	fmt.Fprintln(w)
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "endpoint\tready\tmodels\tqueued\tbefore first token\tafter\tKV memory\tcache known from")
	for i := range s.Fleet {
		e := &s.Fleet[i]
		fmt.Fprintf(table, "%s\t%s\t%s\t%.3f s\t%d\t%d\t%s\t%s\n", e.Name, readiness(e), cmp.Or(strings.Join(e.Models, ","), "?"), e.QueuedSeconds, e.Waiting, e.Decoding, memoryShare(e), knownFrom(e))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, line := range troubles(s) {
		fmt.Fprintf(w, "\n%s\n", line)
	}
	return nil
}

func readiness(e *endpointStatus) string {
	switch {
	case e.Draining:
		return "drains"
	case e.Suspended:
		return "suspended"
	case e.Ready && e.Role != "" && e.Role != scoring.RoleBoth:
		return "yes, " + string(e.Role)
	case e.Ready:
		return "yes"
	}
	return "no"
}

func memoryShare(e *endpointStatus) string {
	if e.KVCapacity == 0 {
		return "?"
	}
	return fmt.Sprintf("%.0f %%", 100*float64(e.KVTokens)/float64(e.KVCapacity))
}

// knownFrom are the sources that count for the endpoint.
func knownFrom(e *endpointStatus) string {
	var used []string
	for _, source := range e.Sources {
		if source.Used {
			used = append(used, source.Source)
		}
	}
	return cmp.Or(strings.Join(used, ","), "-")
}

// troubles are all faults that the service has found, each with what to do.
func troubles(s *status) []string {
	var found []string
	add := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	if c := s.Config; c != nil && c.Fault != "" {
		add("configuration: %s", c.Fault)
	}
	if c := s.Config; c != nil && len(c.NeedsRestart) > 0 {
		add("configuration: changed, but read at the start only: %s", strings.Join(c.NeedsRestart, ", "))
	}
	for _, m := range s.Models {
		if m.State != "" {
			add("model %s: %s", m.Name, m.State)
		}
	}
	for i := range s.Fleet {
		e := &s.Fleet[i]
		if e.Fault != "" {
			add("%s is not ready: %s", e.Name, e.Fault)
		}
		if e.Suspended {
			add("%s gave no first token in time; it is tried again at %s", e.Name, e.Trial.Format(time.TimeOnly))
		}
		if l := s.LMCache; l != nil && e.Instance != "" && !slices.ContainsFunc(l.Workers, func(w lmcache.WorkerStatus) bool { return w.Instance == e.Instance }) {
			add("%s: LMCache instance %s has not registered\n  is the engine up, and was it started after the service?", e.Name, e.Instance)
		}
		for _, source := range e.Sources {
			if source.Fault != "" {
				add("%s, source %s: %s\n  %s", e.Name, source.Source, source.Fault, source.Fix)
			}
		}
		for _, finding := range e.Findings {
			add("%s: %s\n  %s", e.Name, finding.Fault, finding.Fix)
		}
	}
	if l := s.LMCache; l != nil {
		for _, u := range l.Unmapped {
			add("LMCache, %s: %s", cmp.Or(u.Endpoint, u.Instance), u.Reason)
		}
	}
	return found
}
