package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"berth.dev/berth/internal/version"
	"berth.dev/berth/layerdisk"
)

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version, and the version of the layer disk format",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "berth %s, layer disk format %d.%d, %s %s/%s\n",
				version.String(), layerdisk.MajorVersion, layerdisk.MinorVersion, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
