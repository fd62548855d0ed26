package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

func newDetach() *cobra.Command {
	var (
		daemon daemonFlags
		req    controlv1.DetachDiskRequest
	)
	cmd := &cobra.Command{
		Use:   "detach NAME",
		Short: "Stop serving from a layer disk and detach it",
		Long: `detach stops serving from a disk, unmounts it and detaches its device. A disk whose layers are used by images or
containers stays as it is: remove those first, or give --drain, which stops new use of the disk and detaches it when the
last of them is gone. Images that berthd has registered in containerd from the disk are taken back.

A disk that berthd's configuration names comes back at the next start of berthd.`,
		Example:           "  berth detach base\n  berth detach base --drain",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeOne(daemon.diskNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			return daemon.call(cmd.Context(), func(ctx context.Context, c controlv1.ControlServiceClient) error {
				resp, err := c.DetachDisk(ctx, &req)
				if err != nil {
					return err
				}
				if resp.GetDetached() {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: detached\n", req.GetName())
				} else {
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: draining, %d snapshots still use it\n", req.GetName(), resp.GetHolders())
				}
				return err
			})
		},
	}
	daemon.register(cmd)
	cmd.Flags().BoolVar(&req.Drain, "drain", false, "if it is in use, serve no new layers from it and detach it when the last is released")
	return cmd
}
