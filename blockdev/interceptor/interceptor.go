// Package interceptor puts code around every operation of a driver, such as patience or a clock, without a driver or a
// caller of one knowing.
package interceptor

import (
	"context"

	"berth.dev/berth/blockdev"
)

// Interceptor runs do, once or more, and returns an error for it. operation is the name of the method, as "Attach".
type Interceptor func(ctx context.Context, operation string, do func(context.Context) error) error

// Wrap returns a driver with exactly the roles of this one (Provisioner and VolumeSnapshotter as well as Attacher).
// Every operation of it but Properties goes through the interceptors, the first one outermost.
func Wrap(driver blockdev.Attacher, through ...Interceptor) blockdev.Attacher {
	around := chain(through)
	a := attacher{driver, around}
	p, makes := driver.(blockdev.Provisioner)
	s, freezes := driver.(blockdev.VolumeSnapshotter)
	switch {
	case makes && freezes:
		return struct {
			attacher
			provisioner
			snapshotter
		}{a, provisioner{p, around}, snapshotter{s, around}}
	case makes:
		return struct {
			attacher
			provisioner
		}{a, provisioner{p, around}}
	case freezes:
		return struct {
			attacher
			snapshotter
		}{a, snapshotter{s, around}}
	}
	return a
}

func chain(through []Interceptor) Interceptor {
	return func(ctx context.Context, operation string, do func(context.Context) error) error {
		for i := len(through) - 1; i >= 0; i-- {
			inner, around := do, through[i]
			do = func(ctx context.Context) error { return around(ctx, operation, inner) }
		}
		return do(ctx)
	}
}

// result is for operations that answer with more than an error.
func result[T any](ctx context.Context, around Interceptor, operation string, do func(context.Context) (T, error)) (out T, err error) {
	err = around(ctx, operation, func(ctx context.Context) (err error) {
		out, err = do(ctx)
		return err
	})
	return out, err
}

type attacher struct {
	driver blockdev.Attacher
	around Interceptor
}

var _ blockdev.Attacher = attacher{}

func (a attacher) Properties() blockdev.Properties { return a.driver.Properties() }

func (a attacher) Attach(ctx context.Context, volumeID string, opts blockdev.AttachOptions) (blockdev.Device, error) {
	return result(ctx, a.around, "Attach", func(ctx context.Context) (blockdev.Device, error) {
		return a.driver.Attach(ctx, volumeID, opts)
	})
}

func (a attacher) Detach(ctx context.Context, volumeID string) error {
	return a.around(ctx, "Detach", func(ctx context.Context) error { return a.driver.Detach(ctx, volumeID) })
}

func (a attacher) Attached(ctx context.Context) (map[string]blockdev.Device, error) {
	return result(ctx, a.around, "Attached", a.driver.Attached)
}

type provisioner struct {
	driver blockdev.Provisioner
	around Interceptor
}

var _ blockdev.Provisioner = provisioner{}

func (p provisioner) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	return result(ctx, p.around, "CreateVolume", func(ctx context.Context) (blockdev.Volume, error) {
		return p.driver.CreateVolume(ctx, req)
	})
}

func (p provisioner) DeleteVolume(ctx context.Context, volumeID string) error {
	return p.around(ctx, "DeleteVolume", func(ctx context.Context) error { return p.driver.DeleteVolume(ctx, volumeID) })
}

func (p provisioner) GetVolume(ctx context.Context, volumeID string) (blockdev.Volume, error) {
	return result(ctx, p.around, "GetVolume", func(ctx context.Context) (blockdev.Volume, error) {
		return p.driver.GetVolume(ctx, volumeID)
	})
}

func (p provisioner) ListVolumes(ctx context.Context) ([]blockdev.Volume, error) {
	return result(ctx, p.around, "ListVolumes", p.driver.ListVolumes)
}

type snapshotter struct {
	driver blockdev.VolumeSnapshotter
	around Interceptor
}

var _ blockdev.VolumeSnapshotter = snapshotter{}

func (s snapshotter) CreateVolumeSnapshot(ctx context.Context, name, sourceVolumeID string) (blockdev.VolumeSnapshot, error) {
	return result(ctx, s.around, "CreateVolumeSnapshot", func(ctx context.Context) (blockdev.VolumeSnapshot, error) {
		return s.driver.CreateVolumeSnapshot(ctx, name, sourceVolumeID)
	})
}

func (s snapshotter) DeleteVolumeSnapshot(ctx context.Context, id string) error {
	return s.around(ctx, "DeleteVolumeSnapshot", func(ctx context.Context) error { return s.driver.DeleteVolumeSnapshot(ctx, id) })
}

func (s snapshotter) GetVolumeSnapshot(ctx context.Context, id string) (blockdev.VolumeSnapshot, error) {
	return result(ctx, s.around, "GetVolumeSnapshot", func(ctx context.Context) (blockdev.VolumeSnapshot, error) {
		return s.driver.GetVolumeSnapshot(ctx, id)
	})
}

func (s snapshotter) ListVolumeSnapshots(ctx context.Context) ([]blockdev.VolumeSnapshot, error) {
	return result(ctx, s.around, "ListVolumeSnapshots", s.driver.ListVolumeSnapshots)
}
