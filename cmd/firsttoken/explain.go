package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/firsttoken/firsttoken/prompt"
	firsttokenv1 "github.com/firsttoken/firsttoken/proto/firsttoken/v1"
)

// serveExplain answers what would be chosen for the request whose body is posted, as
// a record of /decisions without id, and with notes on where a client's request may
// fare otherwise, where there are any. ?path= is where the request would go, ?session=
// what the header of the session key would say.
func (a *admin) serveExplain(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(a.bodyLimit)))
	if err != nil {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
		return
	}
	path := r.URL.Query().Get("path")
	if path == "" {
		path = defaultExplainPath
	}
	d, notes, err := a.explain(r.Context(), prompt.Request{
		Method: http.MethodPost, Path: path, Body: body,
		ContentType: "application/json", ContentEncoding: r.Header.Get("Content-Encoding"),
	}, r.URL.Query().Get("session"))
	var fault *prompt.RequestError
	switch {
	case errors.As(err, &fault):
		w.WriteHeader(fault.Status)
		_ = json.NewEncoder(w).Encode(fault)
		return
	case err != nil:
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()})
		return
	}
	text, err := asJSON(a.journal.record(d))
	if err == nil && len(notes) > 0 {
		text, err = withNotes(text, notes)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(append(text, '\n'))
}

// withNotes adds notes to a record.
func withNotes(record []byte, notes []string) ([]byte, error) {
	var fields map[string]any
	decoder := json.NewDecoder(bytes.NewReader(record))
	decoder.UseNumber()
	if err := decoder.Decode(&fields); err != nil {
		return nil, err
	}
	fields["notes"] = notes
	return json.Marshal(fields)
}

// defaultExplainPath is where most requests go.
const defaultExplainPath = "/v1/chat/completions"

// newExplainCommand makes "firsttoken explain".
func newExplainCommand() *cobra.Command {
	var view adminView
	var file, path, session string
	cmd := &cobra.Command{
		Use:   "explain --body FILE",
		Short: "Say where a running service would send a request now, and why",
		Long: "Explain sends the body of a request to the admin port of a running service, which says\n" +
			"what it would choose at this moment and what it weighed. Nothing is sent to an engine\n" +
			"and nothing is booked. --body - reads standard input.\n\n" +
			"No headers of a request are known but --session, which also decides its arm where\n" +
			"canary.arms go by sessions. What is left open by that, and choosing being off, is said\n" +
			"in notes.",
		Example: "  firsttoken explain --body request.json\n" +
			"  echo '{\"model\":\"qwen\",\"prompt\":\"Hello\"}' | firsttoken explain --path /v1/completions --body -",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := readBody(file, cmd.InOrStdin())
			if err != nil {
				return fmt.Errorf("--body: %w", err)
			}
			text, err := view.post(cmd.Context(), "/explain", map[string]string{"path": path, "session": session}, body)
			if err != nil || view.json {
				_, _ = cmd.OutOrStdout().Write(text)
				return err
			}
			var d firsttokenv1.Decision
			if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, &d); err != nil {
				return fmt.Errorf("the answer of %s is no decision: %w", view.address, err)
			}
			var more struct {
				Notes []string `json:"notes"`
			}
			if err := json.Unmarshal(text, &more); err != nil {
				return fmt.Errorf("the answer of %s is no decision: %w", view.address, err)
			}
			return printDecision(cmd.OutOrStdout(), &d, more.Notes)
		},
	}
	view.register(cmd.Flags())
	cmd.Flags().StringVar(&file, "body", "", "`file` with the body of the request; - is standard input")
	cmd.Flags().StringVar(&path, "path", defaultExplainPath, "`path` that the request would be sent to")
	cmd.Flags().StringVar(&session, "session", "", "`value` of the header that server.session_key names")
	_ = cmd.MarkFlagRequired("body") // it exists
	return cmd
}

// printDecision writes a decision for people, the choice first and notes on it last.
func printDecision(w io.Writer, d *firsttokenv1.Decision, notes []string) error {
	choice := d.GetCandidates()[0]
	policy := d.GetPolicy()
	if d.GetArm() != "" {
		policy += ", arm " + d.GetArm()
	}
	fmt.Fprintf(w, "%s, because: %s (policy %s)\n", choice.GetEndpoint(), d.GetReason(), policy)
	fmt.Fprintf(w, "%d prompt tokens (%s), first token estimated after %.3f s\n\n", d.GetPromptTokens(), d.GetTokenSource(), choice.GetEstimateSeconds())
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "endpoint\tcached\tsource\tunder way\tto compute\twork s\tbacklog s\tKV wait s\testimate s\tcost\t")
	for _, c := range d.GetCandidates() {
		cached, source := "?", c.GetSource()
		if c.CachedTokens != nil {
			cached = strconv.FormatUint(uint64(c.GetCachedTokens()), 10)
		}
		if source == "" {
			source = "-"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%d\t%d\t%.3f\t%.3f\t%.3f\t%.3f\t%.4g\t\n", c.GetEndpoint(), cached, source, c.GetOptimisticTokens(),
			c.GetUncachedTokens()-min(c.GetUncachedTokens(), c.GetOptimisticTokens()), c.GetWorkSeconds(), c.GetBacklogSeconds(), c.GetKvWaitSeconds(),
			c.GetEstimateSeconds(), c.GetCost())
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, note := range notes {
		fmt.Fprintln(w, "note:", note)
	}
	return nil
}
