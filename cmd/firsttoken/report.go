package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spf13/cobra"

	"github.com/firsttoken/firsttoken/cmd/firsttoken/decisions"
)

// newReportCommand makes "firsttoken report": a page of what decision records say.
func newReportCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "report {FILE | URL}…",
		Short: "Make a page of figures and plots of decision records",
		Long: `Make a page of figures and plots of decision records: what was chosen or would
have been, what was served, how right the estimates were, how even the load was.

Records are those of decisions.file, of any number of its files, or the admin
port's /decisions (a URL, of which / stands for /decisions); - is standard
input. Lines that are no record are counted and named, the others count.
Without --output the figures are printed as Markdown.`,
		Example: `  firsttoken report /var/lib/firsttoken/decisions*.jsonl --output day.html
  firsttoken report http://127.0.0.1:9090`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var records decisions.Records
			for _, name := range args {
				if err := addRecords(cmd.Context(), &records, name, cmd.InOrStdin()); err != nil {
					return err
				}
			}
			for _, fault := range records.Faults {
				cmd.PrintErrln("left out: " + fault.String())
			}
			if more := records.Bad - len(records.Faults); more > 0 {
				cmd.PrintErrf("left out: %d bad lines more\n", more)
			}
			if records.Read == 0 {
				return fmt.Errorf("%s: %w", strings.Join(args, ", "), decisions.ErrNothing)
			}
			return writeReport(cmd.OutOrStdout(), &records, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "write the page to this `file`: .html with the plots in it, or .md with the plots in an .svg beside it")
	return cmd
}

// fetchTimeout bounds the wait for the admin port's answer.
const fetchTimeout = 30 * time.Second

// addRecords reads a file, standard input, or what an admin port answers.
func addRecords(ctx context.Context, records *decisions.Records, name string, stdin io.Reader) error {
	if name == "-" {
		return records.Add("standard input", stdin)
	}
	u, err := url.Parse(name)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") {
		file, err := os.Open(name) //nolint:gosec // whoever asks for a file reads it as himself
		if err != nil {
			return err
		}
		defer func() { _ = file.Close() }()
		return records.Add(name, file)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/decisions"
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), http.NoBody)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("%w; is that the admin port (admin.listen) of a service that runs?", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: answers %s; name the admin port (admin.listen)", u, resp.Status)
	}
	return records.Add(u.String(), resp.Body)
}

// writeReport writes the page to a file by its ending, or to out.
func writeReport(out io.Writer, records *decisions.Records, file string) error {
	figures := records.Figures()
	write := func(name string, page func(io.Writer) error) error {
		f, err := renameio.NewPendingFile(name, renameio.WithPermissions(0o644)) // whole or not at all
		if err != nil {
			return fmt.Errorf("--output: %w", err)
		}
		defer func() { _ = f.Cleanup() }()
		if err := page(f); err != nil {
			return err
		}
		return f.CloseAtomicallyReplace()
	}
	switch ext := strings.ToLower(filepath.Ext(file)); {
	case file == "":
		return records.Markdown(out, figures, "")
	case ext == ".html":
		return write(file, func(w io.Writer) error { return records.HTML(w, figures) })
	case ext == ".md":
		plots := strings.TrimSuffix(file, filepath.Ext(file)) + ".svg"
		return errors.Join(
			write(plots, func(w io.Writer) error { return records.Plots(w, figures) }),
			write(file, func(w io.Writer) error { return records.Markdown(w, figures, filepath.Base(plots)) }))
	}
	return fmt.Errorf("--output: cannot write a page to %q; name a file that ends with .html or .md", file)
}
