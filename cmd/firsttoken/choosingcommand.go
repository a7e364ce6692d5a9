package main

import (
	"encoding/json"
	"errors"
	"strconv"

	"github.com/spf13/cobra"
)

// newChoosingCommand makes "firsttoken choosing": the switch of a running service.
func newChoosingCommand() *cobra.Command {
	var view adminView
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
			var text []byte
			var err error
			if len(args) == 0 {
				text, err = view.get(cmd.Context(), "/choosing")
			} else {
				text, err = view.post(cmd.Context(), "/choosing", map[string]string{"on": strconv.FormatBool(args[0] == "on")}, nil)
			}
			var fault struct{ Error string }
			if err != nil && json.Unmarshal(text, &fault) == nil && fault.Error != "" {
				return errors.New(fault.Error)
			}
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(text)
			return err
		},
	}
	view.registerAddress(cmd.Flags())
	return cmd
}
