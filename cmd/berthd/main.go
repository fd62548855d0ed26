// Command berthd serves a node's container images from layer disks: it is a containerd proxy snapshotter.
package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"berth.dev/berth/internal/config"
	"berth.dev/berth/internal/program"
	"berth.dev/berth/internal/version"
)

func main() { os.Exit(program.Main(newCommand())) }

// newCommand parses flags; they override the file.
func newCommand() *cobra.Command {
	var o options
	cmd := &cobra.Command{
		Use:   "berthd",
		Short: "Serve container images from layer disks, as a proxy snapshotter of containerd",
		Long: `berthd serves a node's container images from layer disks: it is a proxy snapshotter of containerd.

It runs until SIGTERM; running containers go on without it. SIGHUP reads the configuration again: the log level and
format, and disks that were added to it, take effect at once, everything else at the next start.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := func() (config.Config, error) { return o.load(cmd) }
			c, err := load()
			if err != nil {
				return err
			}
			if err := setLogging(c.Log); err != nil {
				return err
			}
			return run(cmd.Context(), c, load)
		},
	}
	o.register(cmd)
	cmd.AddCommand(newConfigCommand(&o))
	program.AddVersion(cmd, fmt.Sprintf("%s, %s %s/%s", version.String(), runtime.Version(), runtime.GOOS, runtime.GOARCH))
	program.AddManual(cmd)
	return cmd
}

func newConfigCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Print or check the configuration"}
	cmd.AddCommand(&cobra.Command{
		Use:   "default",
		Short: "Print a configuration file with every key, its default and its meaning, all in comments",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(config.CommentedTOML())
			return err
		},
	}, &cobra.Command{
		Use:   "check",
		Short: "Check the configuration file and the flags, and say what is wrong",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(cmd)
			if err != nil {
				return err
			}
			return printf(cmd.OutOrStdout(), "%s is fine: root %s, socket %s, %d disks\n", o.file, c.Root, c.Socket, len(c.Disks))
		},
	})
	return cmd
}
