// Package doctor checks a node: whether its kernel, file systems, containerd and berthd fit together, and what to
// change where they do not. It changes nothing itself, except for probes that it removes before it returns.
package doctor

import (
	"context"
	"fmt"
	"os"

	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/node/containerdconfig"
)

// Status of a check.
type Status int

// Statuses, from good to bad.
const (
	OK Status = iota
	// Warn is something that works less well, or that could not be checked.
	Warn
	// Fail is something that a user of this node wants and that does not work.
	Fail
)

// String returns OK, WARN or FAIL.
func (s Status) String() string {
	switch s {
	case OK:
		return "OK"
	case Warn:
		return "WARN"
	case Fail:
		return "FAIL"
	}
	return fmt.Sprintf("status(%d)", int(s))
}

// MarshalText returns String, for JSON.
func (s Status) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Result of a check.
type Result struct {
	// Name of what was checked.
	Name   string `json:"name"`
	Status Status `json:"status"`
	// Detail is what was found.
	Detail string `json:"detail"`
	// Advice is what to change, empty if nothing.
	Advice string `json:"advice,omitempty"`
}

// Node says where things are.
type Node struct {
	// Root and Socket are berthd's.
	Root, Socket string
	// Containerd is the binary. If it is empty or missing, the checks use only the socket and the configuration files.
	Containerd string
	// ContainerdConfig and ContainerdAddress are containerd's.
	ContainerdConfig, ContainerdAddress string
	// Snapshotter is the name of the proxy plugin.
	Snapshotter string
	// Platform of the node, as os/architecture[/variant].
	Platform string
	// CRI says that Kubernetes is meant to use berthd.
	CRI bool
	// ProcFileSystems, LoopControl and Modules are the kernel's files; empty means their usual paths.
	ProcFileSystems, LoopControl, Modules string
	// Devices says where to look for layer disks; the zero value means everywhere except on loop devices.
	Devices attached.Options
}

// Run makes all checks, in an order in which the first failure explains the later ones.
func Run(ctx context.Context, n Node) []Result {
	var all []Result
	if os.Geteuid() != 0 {
		all = append(all, Result{"privileges", Fail, "without root neither berthd nor containerd can be asked, nor disks looked at", "run berth doctor as root"})
	}
	all = append(all, checkKernel(n)...)
	all = append(all, checkRoot(n)...)
	berthd, results := checkBerthd(ctx, n)
	all = append(all, results...)
	if berthd == nil {
		all = append(all, checkDatabases(n)...)
	}
	all = append(all, checkSetAside(n)...)
	all = append(all, checkDevices(ctx, n)...)
	version, results := checkContainerdVersion(ctx, n)
	all = append(all, results...)
	file, results := checkContainerdConfig(ctx, n, version)
	all = append(all, results...)
	if r, err := askContainerd(ctx, n.ContainerdAddress); err == nil {
		all = append(all, checkRunning(n, r, file)...)
		if berthd != nil && r.plugin(snapshotterType, n.Snapshotter) != nil {
			all = append(all, checkImages(ctx, n)...)
		}
		if r.hasCRI() && r.plugin(snapshotterType, n.Snapshotter) != nil {
			all = append(all, checkCRIImages(ctx, n)...)
		}
	}
	return append(all, checkTools()...)
}

// Worst returns the worst status of the results.
func Worst(results []Result) Status {
	worst := OK
	for _, r := range results {
		worst = max(worst, r.Status)
	}
	return worst
}

func (n Node) settings(v containerdconfig.Version) containerdconfig.Settings {
	return containerdconfig.Settings{Version: v, Snapshotter: n.Snapshotter, Socket: n.Socket, Root: n.Root,
		Platform: n.Platform, CRI: n.CRI}
}
