package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/program"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

const attachLong = `attach makes the running berthd serve the layers of a disk: a file made by "berth build", or a block device that
holds one. berthd proves that it is a layer disk before it serves from it, and only ever reads it.

With --volume the argument is a volume of the driver, with --volume-snapshot a volume snapshot: of that a volume is made for this
node, and deleted again when the disk is detached.

A disk attached this way is detached again once nothing has used it for the configured time, unless --keep is given.
To have a disk at every start, name it in berthd's configuration instead.`

func newAttach() *cobra.Command {
	var (
		daemon                 daemonFlags
		req                    controlv1.AttachDiskRequest
		volume, volumeSnapshot bool
		asJSON                 bool
	)
	cmd := &cobra.Command{
		Use:   "attach PATH|DEVICE|ID",
		Short: "Attach a layer disk to the running berthd and serve from it",
		Long:  attachLong,
		Example: `  berth attach /srv/berth/base.img
  berth attach /dev/sdb --name base --keep
  berth attach base.img --expect sha256:…
  berth attach --driver ebs --volume-snapshot snap-0123456789abcdef0 --name base`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case volumeSnapshot:
				req.SnapshotId = args[0]
			case volume:
				req.VolumeId = args[0]
			default:
				path, err := filepath.Abs(args[0])
				if err != nil {
					return fmt.Errorf("attach %s: %w", args[0], err)
				}
				req.VolumeId = path
			}
			if e := req.GetExpectIndexDigest(); e != "" {
				if err := digest.Digest(e).Validate(); err != nil {
					return program.Usage(fmt.Errorf("--expect %q: %w: write the index digest as \"berth inspect\" prints it", e, err))
				}
			}
			return daemon.call(cmd.Context(), func(ctx context.Context, c controlv1.ControlServiceClient) error {
				resp, err := c.AttachDisk(ctx, &req)
				if err != nil {
					return err
				}
				if asJSON {
					return writeMessage(cmd.OutOrStdout(), resp.GetDisk())
				}
				d := resp.GetDisk()
				_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d layers on %s, index %s\n", d.GetName(), d.GetLayers(), orDash(d.GetDevice()), d.GetIndexDigest())
				return err
			})
		},
	}
	daemon.register(cmd)
	f := cmd.Flags()
	f.StringVar(&req.Name, "name", "", "`name` to show the disk under and detach it by; derived from the path or ID if not given")
	f.StringVar(&req.Driver, "driver", "", "`driver` that attaches it; the one for files and block devices if not given")
	f.BoolVar(&volume, "volume", false, "the argument is the driver's ID of a volume, not a path")
	f.BoolVar(&volumeSnapshot, "volume-snapshot", false, "the argument is the driver's ID of a volume snapshot, of which a volume is made")
	cmd.MarkFlagsMutuallyExclusive("volume", "volume-snapshot")
	f.BoolVar(&req.Keep, "keep", false, "keep it attached while nothing uses it")
	f.StringVar(&req.ExpectIndexDigest, "expect", "", "refuse a disk whose index has another `digest`")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
