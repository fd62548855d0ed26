package daemon

import (
	"context"
	"sync"

	"github.com/containerd/log"

	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/node/disks"
)

// discover has layer disks attached that nobody named, until ctx ends.
func discover(ctx context.Context, n *node) {
	discovery := disks.NewDiscovery(n.disks)
	var running sync.WaitGroup
	running.Go(func() { discovery.Run(ctx) })
	defer running.Wait()
	refused := make(map[string]string)
	err := n.drivers.Found().Watch(ctx, func(v attached.View) {
		if v.EventsErr != nil {
			log.G(ctx).WithError(v.EventsErr).Warn("the kernel sends no events about devices, so they are looked for every few seconds")
		}
		refused = logRefused(ctx, refused, v.Refused)
		discovery.Update(foundDisks(v))
	})
	if ctx.Err() == nil {
		log.G(ctx).WithError(err).Error("layer disks are no longer looked for: restart berthd")
	}
}

// logRefused logs what was not refused for the same reason before.
func logRefused(ctx context.Context, before map[string]string, refused []attached.Refused) (now map[string]string) {
	now = make(map[string]string, len(refused))
	for _, r := range refused {
		now[r.Device.Name] = r.Err.Error()
		if before[r.Device.Name] != r.Err.Error() {
			log.G(ctx).WithError(r.Err).WithField("device", r.Device.Path).Warn("a device with a berth header is not used")
		}
	}
	return now
}

func foundDisks(v attached.View) []disks.Found {
	found := make([]disks.Found, 0, len(v.Disks))
	for _, d := range v.Disks {
		f := disks.Found{Driver: attached.Name, VolumeID: d.VolumeID, UUID: d.Identity.UUID, IndexDigest: d.Identity.IndexDigest,
			Device: d.Device.Path}
		for _, o := range d.Others {
			f.Others = append(f.Others, o.Path)
		}
		found = append(found, f)
	}
	return found
}
