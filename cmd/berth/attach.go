package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/program"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

const attachLong = `attach makes the running berthd serve the layers of a disk: a file made by "berth build", or a block device that
holds one. berthd proves that it is a layer disk before it serves from it, and only ever reads it.

With --volume the argument is a volume of the driver, with --volume-snapshot a volume snapshot: of that a volume is made
for this node, and deleted again when the disk is detached. With --image-snapshot it is the name or the ID of an image
snapshot that this berthd keeps, and the disk gets its name.

A disk attached this way is detached again once nothing has used it for the configured time, unless --keep is given.
To have a disk at every start, name it in berthd's configuration instead.`

// attachFlags say what the argument is, and how the disk is attached.
type attachFlags struct {
	req                                   controlv1.AttachDiskRequest
	volume, volumeSnapshot, imageSnapshot bool
	asJSON                                bool
}

func newAttach() *cobra.Command {
	var (
		daemon daemonFlags
		a      attachFlags
	)
	cmd := &cobra.Command{
		Use:   "attach PATH|DEVICE|ID",
		Short: "Attach a layer disk to the running berthd and serve from it",
		Long:  attachLong,
		Example: `  berth attach /srv/berth/base.img
  berth attach /dev/sdb --name base --keep
  berth attach base.img --expect sha256:…
  berth attach --image-snapshot nightly
  berth attach --driver ebs --volume-snapshot snap-0123456789abcdef0 --name base`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if a.imageSnapshot {
				return completeOne(daemon.imageSnapshotNames)(cmd, args, begun)
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if e := a.req.GetExpectIndexDigest(); e != "" {
				if err := digest.Digest(e).Validate(); err != nil {
					return program.Usage(fmt.Errorf("--expect %q: %w: write the index digest as \"berth inspect\" prints it", e, err))
				}
			}
			return daemon.dial(cmd.Context(), func(ctx context.Context, conn connection) error {
				return a.attach(ctx, conn, args[0], cmd.OutOrStdout())
			})
		},
	}
	daemon.register(cmd)
	f := cmd.Flags()
	f.StringVar(&a.req.Name, "name", "", "`name` to show the disk under and detach it by; derived from the argument if not given")
	f.StringVar(&a.req.Driver, "driver", "", "`driver` that attaches it; the one for files and block devices if not given")
	f.BoolVar(&a.volume, "volume", false, "the argument is the driver's ID of a volume, not a path")
	f.BoolVar(&a.volumeSnapshot, "volume-snapshot", false, "the argument is the driver's ID of a volume snapshot, of which a volume is made")
	f.BoolVar(&a.imageSnapshot, "image-snapshot", false, "the argument is the name or ID of an image snapshot")
	cmd.MarkFlagsMutuallyExclusive("volume", "volume-snapshot", "image-snapshot")
	cmd.MarkFlagsMutuallyExclusive("driver", "image-snapshot")
	f.BoolVar(&a.req.Keep, "keep", false, "keep it attached while nothing uses it")
	f.StringVar(&a.req.ExpectIndexDigest, "expect", "", "refuse a disk whose index has another `digest`")
	f.BoolVar(&a.asJSON, "json", false, "print JSON")
	return cmd
}

func (a *attachFlags) attach(ctx context.Context, conn connection, what string, w io.Writer) error {
	switch {
	case a.imageSnapshot:
		if err := a.ofImageSnapshot(ctx, imagesnapshotv1.NewImageSnapshotServiceClient(conn), what); err != nil {
			return err
		}
	case a.volumeSnapshot:
		a.req.VolumeSnapshotId = what
	case a.volume:
		a.req.VolumeId = what
	default:
		path, err := filepath.Abs(what)
		if err != nil {
			return fmt.Errorf("attach %s: %w", what, err)
		}
		a.req.VolumeId = path
	}
	resp, err := controlv1.NewControlServiceClient(conn).AttachDisk(ctx, &a.req)
	if err != nil {
		return err
	}
	d := resp.GetDisk()
	if a.asJSON {
		return writeMessage(w, d)
	}
	_, err = fmt.Fprintf(w, "%s: %s on %s, index %s\n", d.GetName(), count(int(d.GetLayers()), "layer"), orDash(d.GetDevice()), d.GetIndexDigest())
	return err
}

// ofImageSnapshot makes the request name the disk of an image snapshot: its volume snapshot and its index digest.
func (a *attachFlags) ofImageSnapshot(ctx context.Context, c imageSnapshots, name string) error {
	resp, err := c.GetImageSnapshot(ctx, &imagesnapshotv1.GetImageSnapshotRequest{NameOrId: name})
	if err != nil {
		return err
	}
	s := resp.GetImageSnapshot()
	st := s.GetStatus()
	if st.GetVolumeSnapshotId() == "" || st.GetIndexDigest() == "" {
		return fmt.Errorf("image snapshot %s is %s and has no disk yet", s.GetName(), phaseWord(st.GetPhase()))
	}
	a.req.Name = cmp.Or(a.req.GetName(), s.GetName())
	a.req.Driver, a.req.VolumeSnapshotId = st.GetDriver(), st.GetVolumeSnapshotId()
	a.req.ExpectIndexDigest = cmp.Or(a.req.GetExpectIndexDigest(), st.GetIndexDigest())
	return nil
}
