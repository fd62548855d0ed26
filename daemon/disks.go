package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/log"

	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/stage"
)

// openDisks has the disks of the run before back.
func openDisks(ctx context.Context, n *node) (err error) {
	c := n.config.Stage
	n.stage, err = stage.Open(stage.Config{
		Root: n.config.Root, Drivers: n.drivers.Attachers(), IdleTimeout: c.IdleTimeout.Std(), AttachWait: c.AttachWait.Std(),
		MinRate: c.MinRate, Observer: diskObserver{n.metrics, n.failures},
	})
	if err != nil {
		return err
	}
	n.disks = disks.NewKeeper(n.stage, n.ledger)
	metrics.RegisterDisks(n.registry, func() (metrics.DiskTotals, error) { return diskTotals(n.disks.List()), nil })
	if err := restore(ctx, n.stage, c.RestoreTimeout.Std()); err != nil {
		return errors.Join(err, n.stage.Close())
	}
	return nil
}

// restore waits for the disks of the run before, but not for ever: the rest comes back in the background.
func restore(ctx context.Context, s *stage.Stager, timeout time.Duration) error {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := s.Restore(bounded)
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		log.G(ctx).WithError(err).Warn("serving while disks are still being restored")
		return nil
	}
	return err
}

// keepDisks has the disks of the configuration attached.
func keepDisks(ctx context.Context, n *node) { n.disks.Configure(ctx, diskSpecs(&n.config)) }

func closeDisks(n *node) error {
	n.disks.Wait()
	return n.stage.Close()
}

func diskSpecs(c *Config) []stage.Spec {
	var specs []stage.Spec
	for _, d := range c.Disks {
		specs = append(specs, stage.Spec{Name: d.Name, Driver: d.DriverName(), VolumeID: d.VolumeID(),
			VolumeSnapshotID: d.VolumeSnapshot, Keep: d.KeepAttached(), Expect: layerdisk.Identity{IndexDigest: d.Expect}})
	}
	return specs
}

// diskTotals are for the gauges. Configured disks that are missing count as waiting.
func diskTotals(list []disks.Disk) metrics.DiskTotals {
	t := metrics.DiskTotals{ByState: map[string]int{}}
	for _, d := range list {
		t.ByState[string(d.State)]++
		if d.Serving {
			t.Layers += d.Layers
		}
		t.LayersInUse += d.LayersInUse
		t.Adopted += d.Holders
	}
	return t
}
