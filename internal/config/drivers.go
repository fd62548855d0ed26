package config

import (
	"fmt"
	"maps"
	"slices"

	"berth.dev/berth/blockdev/loopdev"
)

// LoopDriver is the name of the embedded driver, the default of disks.
const LoopDriver = loopdev.Name

// Drivers are the block storage drivers besides the embedded one, by the names that disks name them by.
type Drivers struct {
	CSI map[string]CSI `toml:"csi"`
}

// CSI is a CSI driver that runs on this node, and how it is used.
type CSI struct {
	// Node is the unix socket of the node service, Controller that of the controller service; empty is the same one.
	Node       string `toml:"node"`
	Controller string `toml:"controller"`
	// Directory in which devices appear; empty is <root>/csi/<name>. A driver in a container must see it at the same
	// path.
	Directory string `toml:"directory"`
	// Timeout of one request; 0 is the client's default.
	Timeout Duration `toml:"timeout"`
	// Parameters of volumes and VolumeSnapshotParameters of volume snapshots that are made.
	Parameters               map[string]string `toml:"parameters"`
	VolumeSnapshotParameters map[string]string `toml:"volume_snapshot_parameters"`
	// RestoreParameters are added to Parameters for volumes that are made from a volume snapshot.
	RestoreParameters map[string]string `toml:"restore_parameters"`
	// Topology replaces what the driver says of where this node is.
	Topology map[string]string `toml:"topology"`
	Secrets  CSISecrets        `toml:"secrets"`
}

// CSISecrets name directories with a file for each key of a secret; empty is none.
type CSISecrets struct {
	Provision         string `toml:"provision"`
	VolumeSnapshot    string `toml:"volume_snapshot"`
	ControllerPublish string `toml:"controller_publish"`
	NodeStage         string `toml:"node_stage"`
	NodePublish       string `toml:"node_publish"`
}

func (d Drivers) has(name string) bool {
	_, ok := d.CSI[name]
	return ok || name == LoopDriver || name == AttachedDriver
}

// names of all drivers.
func (d Drivers) names() []string {
	return append([]string{LoopDriver, AttachedDriver}, slices.Sorted(maps.Keys(d.CSI))...)
}

func (d Drivers) check() []error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(d.CSI)) {
		for _, err := range d.CSI[name].check(name) {
			errs = append(errs, fmt.Errorf("drivers.csi.%s: %w", name, err))
		}
	}
	return errs
}

func (c CSI) check(name string) []error {
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if name == LoopDriver || name == AttachedDriver {
		refuse("%q is a driver of berth's own, take another name", name)
	}
	if err := checkDiskName(name); err != nil {
		refuse("name: %w", err)
	}
	if c.Node == "" {
		refuse("node: the unix socket of the driver's node service is required")
	}
	for _, p := range []struct{ key, path string }{
		{"node", c.Node},
		{"controller", c.Controller},
		{"directory", c.Directory},
		{"secrets.provision", c.Secrets.Provision},
		{"secrets.volume_snapshot", c.Secrets.VolumeSnapshot},
		{"secrets.controller_publish", c.Secrets.ControllerPublish},
		{"secrets.node_stage", c.Secrets.NodeStage},
		{"secrets.node_publish", c.Secrets.NodePublish},
	} {
		if p.path != "" && !cleanAbs(p.path) {
			refuse("%s: %q is not a clean absolute path", p.key, p.path)
		}
	}
	for _, p := range []struct{ key, path string }{{"node", c.Node}, {"controller", c.Controller}} {
		if len(p.path) > maxSocket {
			refuse("%s: %q has %d bytes, a unix socket's path at most %d", p.key, p.path, len(p.path), maxSocket)
		}
	}
	if c.Timeout < 0 {
		refuse("timeout: %s is negative, 0s or more is allowed", c.Timeout)
	}
	return errs
}
