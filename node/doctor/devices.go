package doctor

import (
	"context"
	"fmt"
	"os"
	"strings"

	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/blockdev/sysblock"
)

// checkDevices looks for layer disks among the block devices that berthd does not have, and says how to use them.
func checkDevices(ctx context.Context, n Node) []Result {
	const name = "block devices"
	if os.Geteuid() != 0 {
		return []Result{{name, Warn, "not checked", "run berth doctor as root"}}
	}
	view, err := attached.Scan(ctx, n.Devices)
	if err != nil {
		return []Result{{name, Warn, err.Error(), "mount /sys and /proc"}}
	}
	known := make(map[string]string)
	// Without an answer, every disk counts as one that berthd does not have. The missing answer has its own result.
	if status, err := askBerthd(ctx, n.Socket); err == nil {
		for _, d := range status.GetDisks() {
			known[d.GetUuid()] = d.GetName()
		}
	}
	var results []Result
	for _, d := range view.Disks {
		devices := paths(append([]sysblock.Device{d.Device}, d.Others...))
		if disk, ok := known[d.Identity.UUID]; ok {
			if len(d.Others) > 0 {
				results = append(results, Result{"disk " + disk, OK, fmt.Sprintf("%s have the same layer disk, one is used", devices), ""})
			}
			continue
		}
		results = append(results, Result{name, Warn, fmt.Sprintf("%s: layer disk %s that berthd does not have", devices, d.Identity.UUID),
			"berth attach --driver " + attached.Name + " --volume " + d.VolumeID + ", or set discover.enabled"})
	}
	for _, r := range view.Refused {
		results = append(results, Result{name, Warn, fmt.Sprintf("%s has a berth header, but: %v", r.Device.Path, r.Err), "build the disk again, or take it away"})
	}
	if len(results) == 0 {
		results = append(results, Result{name, OK, fmt.Sprintf("%d layer disks among them, berthd has all", len(view.Disks)), ""})
	}
	return results
}

func paths(devices []sysblock.Device) string {
	all := make([]string, len(devices))
	for i, d := range devices {
		all[i] = d.Path
	}
	return strings.Join(all, ", ")
}
