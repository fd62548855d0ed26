package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/config"
)

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

// load reads the file, lets the flags that were given override it, and validates the result.
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
