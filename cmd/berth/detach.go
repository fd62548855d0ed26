package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/internal/program"
	"berth.dev/berth/node/users"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

func newDetach() *cobra.Command {
	var (
		daemon               daemonFlags
		req                  controlv1.DetachDiskRequest
		address, snapshotter string
	)
	cmd := &cobra.Command{
		Use:   "detach NAME",
		Short: "Stop serving from a layer disk and detach it",
		Long: `detach stops serving from a disk, unmounts it and detaches its device. A disk whose layers are used by images or
containers stays as it is, and detach names them: remove those first, or give --drain, which stops new use of the disk
and detaches it when the last of them is gone. Images that berthd has registered in containerd from the disk are taken back.

A disk that berthd's configuration names comes back at the next start of berthd.`,
		Example:           "  berth detach base\n  berth detach base --drain",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeOne(daemon.diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			return daemon.call(cmd.Context(), func(ctx context.Context, c controlv1.ControlServiceClient) error {
				resp, err := c.DetachDisk(ctx, &req)
				if err == nil && resp.GetDetached() {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: detached\n", req.GetName())
					return err
				}
				if err != nil && status.Code(err) != codes.FailedPrecondition {
					return err
				}
				for _, line := range usersOf(ctx, c, req.GetName(), address, snapshotter) {
					cmd.PrintErrf("%s: %s\n", req.GetName(), line)
				}
				if err == nil {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: draining, %s still in use\n", req.GetName(), count(int(resp.GetHolders()), "snapshot"))
				}
				return err
			})
		},
	}
	daemon.register(cmd)
	cmd.Flags().StringVar(&address, "containerd-address", defaultContainerd, "containerd's `socket`, to ask who uses the disk")
	cmd.Flags().StringVar(&snapshotter, "snapshotter", "berth", "`name` of the proxy plugin in containerd")
	cmd.Flags().BoolVar(&req.Drain, "drain", false, "if it is in use, serve no new layers from it and detach it when the last is released")
	return cmd
}

// usersOf returns lines that name the users of a disk, or say why they are not known.
func usersOf(ctx context.Context, c controlv1.ControlServiceClient, disk, address, snapshotter string) []string {
	unknown := func(err error) []string {
		return []string{"who uses it is not known: " + program.OneLine(answered(err))}
	}
	resp, err := c.ListUses(ctx, &controlv1.ListUsesRequest{Disk: disk})
	if err != nil {
		return unknown(err)
	}
	chains := map[digest.Digest]bool{}
	for _, u := range resp.GetUses() {
		for _, id := range u.GetChainIds() {
			chains[digest.Digest(id)] = true
		}
	}
	if _, err := os.Stat(address); err != nil {
		return unknown(err)
	}
	client, err := client.New(address, client.WithTimeout(connectTimeout))
	if err != nil {
		return unknown(err)
	}
	defer client.Close() //nolint:errcheck // a connection that only asks
	found, err := users.Find(ctx, client, snapshotter, chains)
	if err != nil {
		return unknown(err)
	}
	var lines []string
	for _, u := range found {
		lines = append(lines, "used by "+u.String())
	}
	return lines
}
