package main

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/blockdev/loopcsi"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/internal/program"
	"berth.dev/berth/internal/unixsocket"
	"berth.dev/berth/internal/version"
)

const csiLoopLong = `csi-loop serves the embedded loop driver as a CSI driver: volumes and volume snapshots are sparse files below
a directory, attached as loop devices. It has the identity, controller and node services of CSI v1.13 for block volumes of
this one node.

Use it to try out and to test programs that speak CSI, such as berthd (see [drivers.csi.NAME] of its configuration), on a
machine without a cloud. One process at a time can use the directory, so choose another one than that of berthd. csi-loop
runs until SIGTERM. Volumes that are attached stay attached.

With --node this machine plays further nodes that share the volumes. A volume is attached to one node at a time.

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
		nodes             map[string]string
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
			options.Version, options.Holders = version.String(), filepath.Join(directory, "nodes.json")
			sockets := map[string]string{options.NodeID: socket}
			for id, path := range nodes {
				if sockets[id] != "" {
					return program.Usage(fmt.Errorf("node %s is named twice", id))
				}
				sockets[id] = path
			}
			return serveCSI(cmd, directory, options, sockets)
		},
	}
	f := cmd.Flags()
	f.StringVar(&directory, "directory", "/var/lib/berth-csi-loop", "`directory` of volumes and volume snapshots")
	f.StringVar(&socket, "socket", "/run/berth/csi-loop.sock", "unix socket to serve on")
	f.StringVar(&options.NodeID, "node-id", "", "what the driver calls this node; its host name if not given")
	f.IntVar(&options.MaxVolumes, "max-volumes", 0, "volumes that can be attached at once; 0 is no limit")
	pairsVar(f, &nodes, "node", "", "`ID=SOCKET` of another node that this machine plays; may be repeated")
	f.DurationVar(&options.SnapshotTime, "snapshot-time", 0, "how long volume snapshots take to be ready to use")
	f.StringSliceVar(&without, "without", nil, "`features` to leave out, see above")
	return cmd
}

// serveCSI serves the nodes, each on its socket, until the context ends or one of them fails.
func serveCSI(cmd *cobra.Command, directory string, options loopcsi.Options, sockets map[string]string) (err error) {
	listeners := make(map[string]net.Listener)
	defer func() {
		for _, l := range listeners {
			if closeErr := l.Close(); !errors.Is(closeErr, net.ErrClosed) {
				err = errors.Join(err, closeErr)
			}
		}
	}()
	for _, id := range slices.Sorted(maps.Keys(sockets)) {
		if listeners[id], err = unixsocket.Listen(cmd.Context(), sockets[id]); err != nil {
			delete(listeners, id)
			return err
		}
	}
	driver, err := loopdev.Open(directory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, driver.Close()) }()
	first, err := loopcsi.New(driver, options)
	if err != nil {
		return err
	}
	servers := make(map[string]*loopcsi.Server)
	for id := range listeners {
		if servers[id], err = first.ForNode(id); err != nil {
			return err
		}
		if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s serves node %s on %s\n", loopcsi.Name, id, sockets[id]); err != nil {
			return err
		}
	}
	group, ctx := errgroup.WithContext(cmd.Context())
	for id, server := range servers {
		group.Go(func() error { return server.Serve(ctx, listeners[id]) })
	}
	return group.Wait()
}
