package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// newChoosingCommand makes "firsttoken choosing": the switch of a running service.
func newChoosingCommand() *cobra.Command {
	var address string
	cmd := &cobra.Command{
		Use:   "choosing [on | off]",
		Short: "Show or switch whether a running service chooses, or Envoy",
		Long: "Choosing shows whether the service makes choices. With off it makes none from now on:\n" +
			"every request is left to Envoy's own balancer, at once, and none is lost. With on it\n" +
			"chooses again, unless the file of server.off_file is there. A restart forgets it; the\n" +
			"file holds beyond.",
		Example: "  firsttoken choosing off --admin 127.0.0.1:9090\n" +
			"  curl -X POST 'http://127.0.0.1:9090/choosing?on=false'   # the same",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"on", "off"},
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Second)
			defer cancel()
			method, path := http.MethodGet, "/choosing"
			if len(args) == 1 {
				method, path = http.MethodPost, fmt.Sprintf("/choosing?on=%t", args[0] == "on")
			}
			text, err := askAdmin(ctx, method, address, path)
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	cmd.Flags().StringVar(&address, "admin", defaultConfig().Admin.Listen, "`address` of the service's admin port (admin.listen)")
	return cmd
}

// askAdmin calls the admin port of a running service. An answer that is none of
// success is an error in the words of its "error".
func askAdmin(ctx context.Context, method, address, path string) ([]byte, error) {
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(address, "/")+path, nil)
	if err != nil {
		return nil, fmt.Errorf("--admin: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("--admin %s: %w; is the service running, and is that its admin.listen?", address, err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("--admin %s: %w", address, err)
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		var fault struct{ Error string }
		if json.Unmarshal(text, &fault) == nil && fault.Error != "" {
			return nil, errors.New(fault.Error)
		}
		return nil, fmt.Errorf("--admin %s: %s answers %s", address, path, resp.Status)
	}
	return text, nil
}
