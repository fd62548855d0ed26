package main

import (
	"fmt"
	"runtime"

	"github.com/spf13/cobra"

	"berth.dev/berth/internal/program"
	"berth.dev/berth/internal/version"
	"berth.dev/berth/layerdisk"
)

// newRoot lists every verb; each has a file of its own.
func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Image snapshots for containerd: build layer disks, inspect them, see what a node does with them",
		Long: `berth builds layer disks from container images, inspects and verifies them, and talks to berthd, which
serves their layers to containerd on a node.

The exit status is 0 on success, 1 on an error, 2 if the command line cannot be understood, and 130 if the command
was interrupted. "berth match" has more.`,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		newAttach(),
		newBuild(),
		newCatalog(),
		newConfig(),
		newContent(),
		newCSILoop(),
		newDetach(),
		newDoctor(),
		newEvents(),
		newExplain(),
		newImageSnapshot(),
		newInspect(),
		newMatch(),
		newStatus(),
		newRecord(),
		newRelease(),
		newVerify(),
	)
	program.AddVersion(root, fmt.Sprintf("%s, layer disk format %d.%d, %s %s/%s", version.String(),
		layerdisk.MajorVersion, layerdisk.MinorVersion, runtime.Version(), runtime.GOOS, runtime.GOARCH))
	program.AddManual(root)
	addCompletion(root)
	return root
}
