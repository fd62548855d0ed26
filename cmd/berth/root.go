package main

import "github.com/spf13/cobra"

// newRoot lists every verb; each is a file of its own.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "berth",
		Short:         "Image snapshots for containerd: build layer disks, inspect them, see what a node does with them",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newAttach(),
		newBuild(),
		newCatalog(),
		newConfig(),
		newCSILoop(),
		newDetach(),
		newDoctor(),
		newEvents(),
		newExplain(),
		newImageSnapshot(),
		newInspect(),
		newMatch(),
		newStatus(),
		newTrace(),
		newVerify(),
		newVersion(),
	)
	return root
}
