package blockdevtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"berth.dev/berth/blockdev"
)

// Action is one call of a Fake.
type Action struct {
	// Call counts all calls from 1.
	Call int
	// Op is the method's name, Object the ID or name it was about, empty for lists.
	Op, Object string
	// Err is what it answered.
	Err error
}

// Fault makes calls of a Fake fail.
type Fault struct {
	// Op to fail; empty is every one.
	Op string
	// Call, if not 0, is the one call that fails, counted over all calls from 1. Otherwise Times calls fail, and 0 is
	// all of them.
	Call, Times int
	Err         error
	// Done says that the operation is done all the same, and only its answer lost.
	Done bool
}

// Fake is a driver in memory. Its devices are paths that no kernel knows: OpenDevice opens them. It is its own storage, so a
// restart of a process is to go on with the same Fake.
type Fake struct {
	maxAttachments int

	// mu guards what follows.
	mu        sync.Mutex
	volumes   map[string]*fakeVolume
	snapshots map[string]*fakeSnapshot
	attached  map[string]*fakeDevice
	made      int
	faults    []Fault
	actions   []Action
	calls     int
	hook      func(ctx context.Context, a Action) error
}

type fakeVolume struct {
	blockdev.Volume
	content []byte
}

type fakeSnapshot struct {
	blockdev.VolumeSnapshot
	content []byte
}

type fakeDevice struct {
	blockdev.Device
	users int
}

var (
	_ blockdev.Attacher    = (*Fake)(nil)
	_ blockdev.Provisioner = (*Fake)(nil)
	_ blockdev.Snapshotter = (*Fake)(nil)
)

// NewFake makes an empty fake. maxAttachments of 0 is no limit.
func NewFake(maxAttachments int) *Fake {
	return &Fake{
		maxAttachments: maxAttachments,
		volumes:        make(map[string]*fakeVolume),
		snapshots:      make(map[string]*fakeSnapshot),
		attached:       make(map[string]*fakeDevice),
	}
}

// Plan replaces the faults to come and begins to count calls from 1 again. The first fault that fits a call is taken.
func (f *Fake) Plan(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.calls = faults, 0
}

// OnCall calls hook before each operation, without any lock, to make it slow or fail. Nil ends that.
func (f *Fake) OnCall(hook func(ctx context.Context, a Action) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// Actions are all calls so far, in the order of their ends.
func (f *Fake) Actions() []Action {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.actions)
}

// do runs one operation under the lock, with the faults planned for it.
func (f *Fake) do(ctx context.Context, op, object string, operation func() error) error {
	f.mu.Lock()
	f.calls++
	a := Action{Call: f.calls, Op: op, Object: object}
	hook := f.hook
	f.mu.Unlock()

	if hook != nil {
		a.Err = hook(ctx, a)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if a.Err == nil {
		a.Err = ctx.Err()
	}
	if a.Err == nil {
		fault := f.fault(a)
		if fault.Err == nil || fault.Done {
			a.Err = operation()
		}
		if fault.Err != nil {
			a.Err = fault.Err
		}
	}
	f.actions = append(f.actions, a)
	if a.Err != nil {
		return fmt.Errorf("%s %s: %w", op, object, a.Err)
	}
	return nil
}

// fault finds the fault of a call and uses it up.
func (f *Fake) fault(a Action) Fault {
	for i, fault := range f.faults {
		if fault.Op != "" && fault.Op != a.Op || fault.Call != 0 && fault.Call != a.Call {
			continue
		}
		if fault.Times > 0 {
			f.faults[i].Times--
			if f.faults[i].Times == 0 {
				f.faults = slices.Delete(slices.Clone(f.faults), i, i+1)
			}
		}
		return fault
	}
	return Fault{}
}

// Properties of the fake: it can do everything.
func (f *Fake) Properties() blockdev.Properties {
	return blockdev.Properties{MaxAttachments: f.maxAttachments, ReadOnlyAttach: true, VolumeSnapshots: true}
}

// Attach gives a device a path of its own each time.
func (f *Fake) Attach(ctx context.Context, volumeID string, opts blockdev.AttachOptions) (dev blockdev.Device, err error) {
	err = f.do(ctx, "Attach", volumeID, func() error {
		if f.volumes[volumeID] == nil {
			return blockdev.ErrNotFound
		}
		if d := f.attached[volumeID]; d != nil {
			if d.ReadOnly != opts.ReadOnly {
				return blockdev.ErrExists
			}
			dev = d.Device
			return nil
		}
		if f.maxAttachments > 0 && len(f.attached) >= f.maxAttachments {
			return blockdev.ErrAttachLimit
		}
		f.made++
		dev = blockdev.Device{Path: fmt.Sprintf("fake:%d", f.made), ReadOnly: opts.ReadOnly}
		f.attached[volumeID] = &fakeDevice{Device: dev}
		return nil
	})
	if err != nil {
		return blockdev.Device{}, err
	}
	return dev, nil
}

// Detach refuses a device that Use is using.
func (f *Fake) Detach(ctx context.Context, volumeID string) error {
	return f.do(ctx, "Detach", volumeID, func() error {
		if d := f.attached[volumeID]; d != nil && d.users > 0 {
			return blockdev.ErrInUse
		}
		delete(f.attached, volumeID)
		return nil
	})
}

// Attached lists the attached volumes.
func (f *Fake) Attached(ctx context.Context) (map[string]blockdev.Device, error) {
	all := make(map[string]blockdev.Device)
	err := f.do(ctx, "Attached", "", func() error {
		for id, d := range f.attached {
			all[id] = d.Device
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// CreateVolume gives IDs that differ from the names and are never used again.
func (f *Fake) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (volume blockdev.Volume, err error) {
	err = f.do(ctx, "CreateVolume", req.Name, func() error {
		if req.Name == "" || req.SizeBytes < 0 || req.SizeBytes == 0 && req.SourceSnapshotID == "" {
			return blockdev.ErrInvalid
		}
		for _, v := range f.volumes {
			if v.Name != req.Name {
				continue
			}
			if v.SourceSnapshotID != req.SourceSnapshotID || req.SizeBytes != 0 && req.SizeBytes != v.SizeBytes {
				return blockdev.ErrExists
			}
			volume = v.Volume
			return nil
		}
		v, err := f.newVolume(req)
		volume = v
		return err
	})
	if err != nil {
		return blockdev.Volume{}, err
	}
	return volume, nil
}

func (f *Fake) newVolume(req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	size := req.SizeBytes
	var content []byte
	if req.SourceSnapshotID != "" {
		s := f.snapshots[req.SourceSnapshotID]
		if s == nil {
			return blockdev.Volume{}, blockdev.ErrNotFound
		}
		if size == 0 {
			size = s.SizeBytes
		}
		if size < s.SizeBytes {
			return blockdev.Volume{}, blockdev.ErrInvalid
		}
		content = s.content
	}
	f.made++
	v := &fakeVolume{
		Volume:  blockdev.Volume{ID: fmt.Sprintf("vol-%d", f.made), Name: req.Name, SizeBytes: size, SourceSnapshotID: req.SourceSnapshotID},
		content: make([]byte, size),
	}
	copy(v.content, content)
	f.volumes[v.ID] = v
	return v.Volume, nil
}

// DeleteVolume deletes one that is not attached.
func (f *Fake) DeleteVolume(ctx context.Context, volumeID string) error {
	return f.do(ctx, "DeleteVolume", volumeID, func() error {
		if f.attached[volumeID] != nil {
			return blockdev.ErrInUse
		}
		delete(f.volumes, volumeID)
		return nil
	})
}

// GetVolume finds a volume.
func (f *Fake) GetVolume(ctx context.Context, volumeID string) (volume blockdev.Volume, err error) {
	err = f.do(ctx, "GetVolume", volumeID, func() error {
		v := f.volumes[volumeID]
		if v == nil {
			return blockdev.ErrNotFound
		}
		volume = v.Volume
		return nil
	})
	return volume, err
}

// ListVolumes lists volumes by ID.
func (f *Fake) ListVolumes(ctx context.Context) (list []blockdev.Volume, err error) {
	err = f.do(ctx, "ListVolumes", "", func() error {
		for _, id := range slices.Sorted(maps.Keys(f.volumes)) {
			list = append(list, f.volumes[id].Volume)
		}
		return nil
	})
	return list, err
}

// CreateSnapshot gives a snapshot that is ready at once.
func (f *Fake) CreateSnapshot(ctx context.Context, name, sourceVolumeID string) (snapshot blockdev.VolumeSnapshot, err error) {
	err = f.do(ctx, "CreateSnapshot", name, func() error {
		if name == "" {
			return blockdev.ErrInvalid
		}
		for _, s := range f.snapshots {
			if s.Name != name {
				continue
			}
			if s.SourceVolumeID != sourceVolumeID {
				return blockdev.ErrExists
			}
			snapshot = s.VolumeSnapshot
			return nil
		}
		v := f.volumes[sourceVolumeID]
		if v == nil {
			return blockdev.ErrNotFound
		}
		f.made++
		snapshot = blockdev.VolumeSnapshot{
			ID: fmt.Sprintf("snap-%d", f.made), Name: name, SourceVolumeID: v.ID,
			SizeBytes: v.SizeBytes, Created: time.Now(), ReadyToUse: true,
		}
		f.snapshots[snapshot.ID] = &fakeSnapshot{snapshot, slices.Clone(v.content)}
		return nil
	})
	return snapshot, err
}

// DeleteSnapshot deletes a snapshot.
func (f *Fake) DeleteSnapshot(ctx context.Context, snapshotID string) error {
	return f.do(ctx, "DeleteSnapshot", snapshotID, func() error {
		delete(f.snapshots, snapshotID)
		return nil
	})
}

// GetSnapshot finds a snapshot.
func (f *Fake) GetSnapshot(ctx context.Context, snapshotID string) (snapshot blockdev.VolumeSnapshot, err error) {
	err = f.do(ctx, "GetSnapshot", snapshotID, func() error {
		s := f.snapshots[snapshotID]
		if s == nil {
			return blockdev.ErrNotFound
		}
		snapshot = s.VolumeSnapshot
		return nil
	})
	return snapshot, err
}

// ListSnapshots lists snapshots by ID.
func (f *Fake) ListSnapshots(ctx context.Context) (list []blockdev.VolumeSnapshot, err error) {
	err = f.do(ctx, "ListSnapshots", "", func() error {
		for _, id := range slices.Sorted(maps.Keys(f.snapshots)) {
			list = append(list, f.snapshots[id].VolumeSnapshot)
		}
		return nil
	})
	return list, err
}

// errReadOnly is what a write to a read-only device gives.
var errReadOnly = errors.New("device is read-only")

// OpenDevice opens a device by its path, as Config.Open wants it. What is read and written is the volume's content at that
// time; a device that was detached meanwhile fails.
func (f *Fake) OpenDevice(dev blockdev.Device, _ bool) (Content, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, d := range f.attached {
		if d.Path == dev.Path {
			return &fakeContent{f, id, d}, nil
		}
	}
	return nil, fmt.Errorf("open %s: %w", dev.Path, blockdev.ErrNotFound)
}

// Use keeps a device in use until release, as Config.Use wants it.
func (f *Fake) Use(path string) (release func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, d := range f.attached {
		if d.Path == path {
			d.users++
			return func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				d.users--
			}, nil
		}
	}
	return nil, fmt.Errorf("use %s: %w", path, blockdev.ErrNotFound)
}
