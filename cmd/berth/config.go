package main

import (
	"cmp"
	"context"
	"fmt"
	"os"

	"github.com/containerd/platforms"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/program"
	"berth.dev/berth/node/containerdconfig"
	"berth.dev/berth/node/doctor"
)

// containerdFlags name the containerd of the node and how it knows berthd.
type containerdFlags struct {
	binary, config, address, snapshotter string
	root, socket                         string
	noCRI                                bool
}

func (f *containerdFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.binary, "containerd", "containerd", "containerd's `binary`")
	fl.StringVar(&f.address, "containerd-address", defaultContainerd, "containerd's `socket`")
	fl.StringVar(&f.snapshotter, "snapshotter", "berth", "`name` of the proxy plugin, which pulls name to use berthd")
	fl.StringVar(&f.root, "root", "/var/lib/berth", "berthd's root `directory`")
	fl.StringVar(&f.socket, "socket", cmp.Or(os.Getenv("BERTH_SOCKET"), defaultSocket),
		"berthd's unix `socket`; the environment's BERTH_SOCKET is the default")
	fl.BoolVar(&f.noCRI, "no-cri", false, "Kubernetes is not meant to use berthd, or there is none")
}

func newConfig() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Print configuration for others"}
	cmd.AddCommand(newConfigContainerd())
	return cmd
}

func newConfigContainerd() *cobra.Command {
	var (
		f       containerdFlags
		version string
	)
	cmd := &cobra.Command{
		Use:   "containerd",
		Short: "Print what containerd's configuration needs to pull and run with berthd",
		Long: `containerd prints the part of containerd's configuration that makes it use berthd, for the version of containerd that
runs (or else is installed) here, with the reason for each setting. "berth doctor" checks the outcome.`,
		Example: "  berth config containerd > /etc/containerd/conf.d/berth.toml && systemctl restart containerd",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := f.version(cmd.Context(), version)
			if err != nil {
				return err
			}
			if containerdconfig.Newest().Before(v) {
				cmd.PrintErrf("containerd %s is newer than what this berth was tested with: taking it to be like %s\n", v, containerdconfig.Newest())
			}
			snippet, err := containerdconfig.Snippet(containerdconfig.Settings{Version: v, Snapshotter: f.snapshotter,
				Socket: f.socket, Root: f.root, Platform: platforms.DefaultString(), CRI: !f.noCRI})
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(snippet)
			return err
		},
	}
	f.register(cmd)
	cmd.Flags().StringVar(&version, "version", "", "`version` of containerd, 2.4 or so, instead of the one found")
	return cmd
}

func (f *containerdFlags) version(ctx context.Context, given string) (containerdconfig.Version, error) {
	if given != "" {
		v, err := containerdconfig.ParseVersion(given)
		return v, program.Usage(err)
	}
	if running, err := doctor.RunningVersion(ctx, f.address); err == nil {
		return containerdconfig.ParseVersion(running)
	}
	v, text, err := containerdconfig.BinaryVersion(ctx, f.binary)
	if err != nil && text == "" {
		return v, fmt.Errorf("find containerd: nothing answers on %s, and %w: give --version", f.address, err)
	}
	return v, err
}

func (f *containerdFlags) node() doctor.Node {
	return doctor.Node{Root: f.root, Socket: f.socket, Containerd: f.binary, ContainerdConfig: cmp.Or(f.config, containerdconfig.DefaultPath),
		ContainerdAddress: f.address, Snapshotter: f.snapshotter, Platform: platforms.DefaultString(), CRI: !f.noCRI}
}
