// Command berthd serves a node's container images from layer disks: it is a containerd proxy snapshotter.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth.dev/berth/config"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "berthd:", err)
		stop()
		os.Exit(1)
	}
}

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
		Version:       version(),
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
	return cmd
}

func newConfigCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Print or check the configuration"}
	cmd.AddCommand(&cobra.Command{
		Use:   "default",
		Short: "Print a configuration file with every default and what it means",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(config.DefaultTOML())
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

// options are the flags.
type options struct {
	file string
	flag config.Config
}

func (o *options) register(cmd *cobra.Command) {
	d, f := config.Default(), cmd.PersistentFlags()
	f.StringVar(&o.file, "config", config.DefaultPath, "configuration `file`; the default one may be missing")
	f.StringVar(&o.flag.Root, "root", d.Root, "`directory` of all state")
	f.StringVar(&o.flag.Socket, "socket", d.Socket, "unix socket to serve on")
	f.StringVar((*string)(&o.flag.Log.Level), "log-level", string(d.Log.Level), "trace, debug, info, warn or error")
	f.StringVar((*string)(&o.flag.Log.Format), "log-format", string(d.Log.Format), "text or json")
	f.StringVar(&o.flag.Metrics.Address, "metrics-address", d.Metrics.Address, "`host:port` to serve /metrics on, empty for none")
}

// load reads the file, lets the flags that were given override it, and validates the outcome.
func (o *options) load(cmd *cobra.Command) (config.Config, error) {
	c, err := config.Load(o.file)
	if errdefs.IsNotFound(err) && !cmd.Flags().Changed("config") {
		c, err = config.Default(), nil
	}
	if err != nil {
		return config.Config{}, err
	}
	for name, set := range map[string]func(){
		"root":            func() { c.Root = o.flag.Root },
		"socket":          func() { c.Socket = o.flag.Socket },
		"log-level":       func() { c.Log.Level = o.flag.Log.Level },
		"log-format":      func() { c.Log.Format = o.flag.Log.Format },
		"metrics-address": func() { c.Metrics.Address = o.flag.Metrics.Address },
	} {
		if cmd.Flags().Changed(name) {
			set()
		}
	}
	return c, c.Validate()
}

func setLogging(l config.Log) error {
	format := log.TextFormat
	if l.Format == config.LogJSON {
		format = log.JSONFormat
	}
	return errors.Join(log.SetFormat(format), log.SetLevel(string(l.Level)))
}

func printf(w io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintf(w, format, args...)
	return err
}
