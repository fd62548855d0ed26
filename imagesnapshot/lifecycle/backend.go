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
	Flash FlashVolumeSnapshotter
	// Check, if not nil, says why the storage cannot keep image snapshots, before anything is made in it. Its errors
	// are those of package blockdev: ErrUnsupported ends a build, and whatever may pass is tried again.
	Check func(ctx context.Context) error
	// TakeParameters gives the parameters of a spec that the storage takes when it makes a volume, in its own words,
	// and the keys of the others. If it is nil, the storage takes none.
	TakeParameters func(parameters map[string]string) (taken map[string]string, ignored []string)
}

// FlashVolumeSnapshotter makes temporary volume snapshots that can be used at once, where the storage has such a thing.
// They are looked up and deleted like others. In other storage the volume itself serves instead.
type FlashVolumeSnapshotter interface {
	CreateFlashVolumeSnapshot(ctx context.Context, name, sourceVolumeID string) (blockdev.VolumeSnapshot, error)
}

// backends are the storage by the names of its drivers.
type backends struct {
	all map[string]Backend
	// builds is the driver that builds use from now on, legacy that of what names none.
	builds, legacy string
}

// name of the driver that something in the store names; what is from before there was a choice names none.
func (b backends) name(driver string) string { return cmp.Or(driver, b.legacy) }

// of finds the storage that something is in. Its error is FailedPrecondition: somebody has to configure the driver.
func (b backends) of(driver string) (Backend, error) {
	driver = b.name(driver)
	if found, ok := b.all[driver]; ok {
		return found, nil
	}
	return Backend{}, fmt.Errorf("its storage is that of driver %q, which is not configured here; put it back into the configuration: %w",
		driver, errdefs.ErrFailedPrecondition)
}

// flashes says whether the storage of a driver may have temporary volume snapshots of ours.
func (b backends) flashes(driver string) bool {
	found, err := b.of(driver)
	return err != nil || found.Flash != nil
}

// inUse returns the names of the drivers that may have something of ours: all, or only those that new builds use or
// that something in the list is on. Every node has this program, and a listing of all volumes costs a cloud something.
func (b backends) inUse(list []*imagesnapshot.ImageSnapshot, all bool) []string {
	found := map[string]bool{b.builds: true}
	if all {
		for name := range b.all {
			found[name] = true
		}
	}
	for _, s := range list {
		found[b.name(s.Status.Driver)] = true
		if w := s.Status.Work; w != nil {
			found[b.name(w.Driver)] = true
			for _, l := range w.Garbage {
				found[b.name(l.Driver)] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// noteIgnored reports parameters that have no effect to the user.
func noteIgnored(j *job) {
	parameters := j.object.Spec.Build.Parameters
	if len(parameters) == 0 {
		return
	}
	ignored := slices.Collect(maps.Keys(parameters))
	if j.backend.TakeParameters != nil {
		_, ignored = j.backend.TakeParameters(parameters)
	}
	if len(ignored) == 0 {
		return
	}
	slices.Sort(ignored)
	j.object.AddEvent(time.Now().UTC(), imagesnapshot.EventWarning, imagesnapshot.ReasonParametersIgnored,
		fmt.Sprintf("these parameters have no effect, because driver %s does not know them or its configuration sets them: %s",
			j.driver, strings.Join(ignored, ", ")))
}

// volumeParameters are those of the spec that the storage takes.
func volumeParameters(s *imagesnapshot.ImageSnapshot, b Backend) map[string]string {
	if b.TakeParameters == nil || len(s.Spec.Build.Parameters) == 0 {
		return nil
	}
	taken, _ := b.TakeParameters(s.Spec.Build.Parameters)
	return taken
}
