package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"berth.dev/berth/node/containerdconfig"
	"berth.dev/berth/node/doctor"
)

func newDoctor() *cobra.Command {
	var (
		f      containerdFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check this node and say what to change",
		Long: `doctor checks whether this node's kernel, file systems, containerd and berthd fit together, and whether the images that
containerd has can start. It asks the containerd and the berthd that run; if berthd does not, it reads its databases.

Each check ends in OK, in WARN (something works less well, or could not be looked at) or in FAIL (something that is
wanted does not work), with what to change below. doctor changes nothing, and exits with 1 if a check fails.`,
		Example: "  berth doctor\n  berth doctor --json | jq '.[] | select(.status != \"OK\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			results := doctor.Run(cmd.Context(), f.node())
			var err error
			if asJSON {
				err = writeJSON(cmd.OutOrStdout(), results)
			} else {
				err = printResults(cmd.OutOrStdout(), results)
			}
			if err != nil {
				return err
			}
			if doctor.Worst(results) == doctor.Fail {
				return errors.New("something does not work on this node: see FAIL above")
			}
			return nil
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&f.config, "containerd-config", containerdconfig.DefaultPath, "containerd's configuration `file`")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printResults(w io.Writer, results []doctor.Result) error {
	for _, r := range results {
		if _, err := fmt.Fprintf(w, "%-4s  %s: %s\n", r.Status, r.Name, r.Detail); err != nil {
			return err
		}
		if r.Advice != "" {
			if _, err := fmt.Fprintf(w, "      -> %s\n", strings.ReplaceAll(r.Advice, "\n", "\n         ")); err != nil {
				return err
			}
		}
	}
	return nil
}
