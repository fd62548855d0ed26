package imageimport

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// giveUpIdle detaches disks that only their registered images have used for long enough, and returns when to look
// again.
func (c *reconciler) giveUpIdle(ctx context.Context, all []found, disks []Disk) (again time.Time) {
	if c.idleTimeout == 0 {
		return time.Time{}
	}
	for _, d := range disks {
		if d.Phase != Serving || d.Keep || d.Holders == 0 || !c.states.isWanted(d.Name) {
			continue
		}
		free, err := c.withdrawer.free(ctx, d, all, disks)
		if err != nil {
			log.G(ctx).WithError(err).WithField("disk", d.Name).Warn("cannot find out whether the disk is idle, trying again")
		}
		now, st := time.Now(), c.states.of(d.UUID)
		switch {
		case !free:
			st.freeSince = time.Time{}
		case st.freeSince.IsZero():
			st.freeSince = now
		case !now.Before(st.freeSince.Add(c.idleTimeout)):
			c.giveUp(ctx, d, all, disks)
			return now // this may have changed other disks too
		}
		// No event reports that the last container is gone.
		if at := now.Add(c.idleTimeout / 2); again.IsZero() || at.Before(again) {
			again = at
		}
	}
	return again
}

func (c *reconciler) giveUp(ctx context.Context, d Disk, all []found, disks []Disk) {
	entry := log.G(ctx).WithField("disk", d.Name)
	err := c.takeBack(ctx, d.UUID, all, disks)
	if err == nil {
		err = c.node.Detach(ctx, d.Name)
	}
	switch {
	case err == nil:
		entry.Info("detached an idle disk and took back its registered images")
	case errdefs.IsFailedPrecondition(err):
		entry.WithError(err).Info("disk is used again, registering its images again")
	case ctx.Err() == nil:
		entry.WithError(err).Warn("cannot detach the idle disk yet")
	}
}
