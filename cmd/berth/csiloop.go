package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/spf13/cobra"

	"berth.dev/berth/blockdev/loopcsi"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/unixsocket"
	"berth.dev/berth/version"
)

const csiLoopLong = `csi-loop serves the embedded loop driver as a CSI driver: volumes and volume snapshots are sparse files below
a directory, attached as loop devices. It has the identity, controller and node services of CSI v1.13 for block volumes of
this one node.

It is for trying out and testing what speaks CSI, berthd among it (see [drivers.csi.NAME] of its configuration), on a machine
without a cloud. The directory can be used by one process at a time, so it is not the one that berthd itself uses. It runs
until SIGTERM; what is attached stays attached.

--without leaves out what CSI drivers may lack, one of
  publish     volumes are attached on the node, not by the controller
  stage       volumes are published without being staged
  readonly    readonly in requests is ignored, as some drivers do
  snapshots   no volume snapshots
  list        no ListVolumes and ListSnapshots
  get         no ControllerGetVolume and GetSnapshot`

func newCSILoop() *cobra.Command {
	var (
		directory, socket string
		without           []string
		options           loopcsi.Options
	)
	cmd := &cobra.Command{
		Use:     "csi-loop",
		Short:   "Serve files as the volumes of a CSI driver",
		Long:    csiLoopLong,
		Example: "  berth csi-loop --directory /srv/csi-loop --socket /run/berth/csi-loop.sock",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			for _, f := range without {
				options.Without = append(options.Without, loopcsi.Feature(f))
			}
			if options.NodeID == "" {
				if options.NodeID, err = os.Hostname(); err != nil {
					return fmt.Errorf("find a node ID: %w: name one with --node-id", err)
				}
			}
			options.Version = version.String()
			listener, err := unixsocket.Listen(cmd.Context(), socket)
			if err != nil {
				return err
			}
			defer func() {
				if closeErr := listener.Close(); !errors.Is(closeErr, net.ErrClosed) {
					err = errors.Join(err, closeErr)
				}
			}()
			driver, err := loopdev.Open(directory)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, driver.Close()) }()
			server, err := loopcsi.New(driver, options)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s serves node %s on %s\n", loopcsi.Name, options.NodeID, socket); err != nil {
				return err
			}
			return server.Serve(cmd.Context(), listener)
		},
	}
	f := cmd.Flags()
	f.StringVar(&directory, "directory", "/var/lib/berth-csi-loop", "`directory` of volumes and volume snapshots")
	f.StringVar(&socket, "socket", "/run/berth/csi-loop.sock", "unix socket to serve on")
	f.StringVar(&options.NodeID, "node-id", "", "what the driver calls this node; its host name if not given")
	f.IntVar(&options.MaxVolumes, "max-volumes", 0, "volumes that can be attached at once; 0 is no limit")
	f.StringSliceVar(&without, "without", nil, "`features` to leave out, see above")
	return cmd
}
