package lifecycle

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/imagesnapshot"
)

// Backend is block storage that keeps image snapshots, in all the roles that this takes.
type Backend struct {
	Provisioner blockdev.Provisioner
	Attacher    blockdev.Attacher
	Snapshotter blockdev.VolumeSnapshotter
	// Flash may be nil.
	Flash FlashSnapshotter
	// Check says why the storage cannot keep image snapshots, before anything is made in it; nil is that it can. Its
	// errors are those of package blockdev: ErrUnsupported ends a build, what passes is tried again.
	Check func(ctx context.Context) error
	// TakeParameters gives those of a spec's parameters that the storage takes when it makes a volume, in its own
	// words, and the keys of the others; nil takes none.
	TakeParameters func(parameters map[string]string) (taken map[string]string, ignored []string)
}

// FlashSnapshotter makes temporary volume snapshots that can be used at once, where the storage has such a thing. They
// are looked up and deleted like others. Where it has not, the volume itself serves instead.
type FlashSnapshotter interface {
	CreateFlashSnapshot(ctx context.Context, name, sourceVolumeID string) (blockdev.VolumeSnapshot, error)
}

// driverName is the name of the driver that something in the store names; what is from before there was a choice names
// none.
func (e *Engine) driverName(name string) string { return cmp.Or(name, e.LegacyDriver) }

// backend finds the storage that has something. Its error is FailedPrecondition: somebody has to configure the driver.
func (e *Engine) backend(driver string) (Backend, error) {
	driver = e.driverName(driver)
	if driver == e.Driver {
		return e.Backend, nil
	}
	if b, ok := e.Others[driver]; ok {
		return b, nil
	}
	return Backend{}, fmt.Errorf("its storage is that of driver %q, which is not configured here; put it back into the configuration: %w",
		driver, errdefs.ErrFailedPrecondition)
}

// drivers gives the names of those that may have something of ours: all, or only those that new builds use or that
// something in the list is on. Every node has this program, and a listing of all volumes costs a cloud something.
func (e *Engine) drivers(list []*imagesnapshot.ImageSnapshot, all bool) []string {
	names := map[string]bool{e.Driver: true}
	if all {
		for name := range e.Others {
			names[name] = true
		}
	}
	for _, s := range list {
		names[e.driverName(s.Status.Driver)] = true
		if w := s.Status.Work; w != nil {
			names[e.driverName(w.Driver)] = true
			for _, l := range w.Garbage {
				names[e.driverName(l.Driver)] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// noteIgnored tells the user of parameters that nothing was done about.
func (r *run) noteIgnored(s *imagesnapshot.ImageSnapshot, b Backend) {
	if len(s.Spec.Build.Parameters) == 0 {
		return
	}
	ignored := slices.Collect(maps.Keys(s.Spec.Build.Parameters))
	if b.TakeParameters != nil {
		_, ignored = b.TakeParameters(s.Spec.Build.Parameters)
	}
	if len(ignored) == 0 {
		return
	}
	slices.Sort(ignored)
	s.AddEvent(time.Now().UTC(), imagesnapshot.EventWarning, imagesnapshot.ReasonParametersIgnored,
		fmt.Sprintf("driver %s knows nothing of these parameters, or its configuration sets them, so they have no effect: %s",
			r.driverName(s.Status.Work.Driver), strings.Join(ignored, ", ")))
}

// volumeParameters are those of the spec that the storage takes.
func volumeParameters(s *imagesnapshot.ImageSnapshot, b Backend) map[string]string {
	if b.TakeParameters == nil || len(s.Spec.Build.Parameters) == 0 {
		return nil
	}
	taken, _ := b.TakeParameters(s.Spec.Build.Parameters)
	return taken
}
