package blockdevtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"berth.dev/berth/blockdev"
)

// fakeDevice is one attachment of a volume and its device.
type fakeDevice struct {
	blockdev.Device
	number int
	users  int
	// appears is when the device is there.
	appears time.Time
	// stuckUntil, if not zero, is when the detachment that has begun ends.
	stuckUntil time.Time
	// cut says that it shows half of the volume.
	cut   bool
	state DeviceState
	// healed is closed when a device that stalls does not any more.
	healed chan struct{}
}

// DeviceState is how a device answers.
type DeviceState int

// States of a device.
const (
	DeviceWell DeviceState = iota
	// DeviceFails gives an error for everything.
	DeviceFails
	// DeviceStalls does not answer before its state changes.
	DeviceStalls
)

// SetDevice has the device of an attached volume answer in another way until it is attached anew; false if it is not
// attached.
func (f *Fake) SetDevice(volumeID string, state DeviceState) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.attached[volumeID]
	if d == nil {
		return false
	}
	d.set(state)
	return true
}

// set the state. The caller holds the Fake's mu.
func (d *fakeDevice) set(state DeviceState) {
	if d.healed != nil && state != DeviceStalls {
		close(d.healed)
		d.healed = nil
	}
	if d.healed == nil && state == DeviceStalls {
		d.healed = make(chan struct{})
	}
	d.state = state
}

// Remove takes a volume's device away, used or not, as a force-detach by others or a pulled cable does; false if it is
// not attached.
func (f *Fake) Remove(volumeID string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.attached[volumeID]
	if d != nil {
		f.drop(volumeID, d)
	}
	return d != nil
}

// drop ends an attachment. Who still has the device open gets errors. The caller holds mu.
func (f *Fake) drop(volumeID string, d *fakeDevice) {
	delete(f.attached, volumeID)
	if d.users > 0 {
		f.inUse[d] = true
	}
	d.set(DeviceFails)
}

// Reboot ends all use of devices; what is attached stays so, under other names.
func (f *Fake) Reboot() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.inUse)
	old := f.attached
	f.attached = make(map[string]*fakeDevice)
	ids := slices.Sorted(maps.Keys(old))
	slices.SortFunc(ids, func(a, b string) int {
		if f.roll("boot", a) < f.roll("boot", b) {
			return -1
		}
		return 1
	})
	for _, id := range ids {
		d := f.newDevice(id, old[id].ReadOnly)
		d.stuckUntil = old[id].stuckUntil
		old[id].set(DeviceFails)
		f.attached[id] = d
	}
}

// newDevice names a device. The caller holds mu.
func (f *Fake) newDevice(volumeID string, readonly bool) *fakeDevice {
	var number int
	if f.wrong.ReuseNames {
		taken := make(map[int]bool)
		for _, d := range f.attached {
			taken[d.number] = true
		}
		for d := range f.inUse {
			taken[d.number] = true
		}
		for number = 1; taken[number]; {
			number++
		}
	} else {
		f.made++
		number = f.made
	}
	d := &fakeDevice{
		Device: blockdev.Device{Path: fmt.Sprintf("fake:%d", number), ReadOnly: readonly}, number: number,
		appears: time.Now().Add(f.draw(f.wrong.DeviceAfter, "appear", volumeID)),
		cut:     f.hits(f.wrong.CutDevice, "cut", volumeID),
	}
	switch {
	case f.hits(f.wrong.FailDevice, "fail device", volumeID):
		d.set(DeviceFails)
	case f.hits(f.wrong.StallDevice, "stall device", volumeID):
		d.set(DeviceStalls)
	}
	return d
}

// Attach gives a device a path of its own each time, unless Misbehaviour.ReuseNames says otherwise.
func (f *Fake) Attach(ctx context.Context, volumeID string, opts blockdev.AttachOptions) (dev blockdev.Device, err error) {
	var appears time.Time
	err = f.do(ctx, "Attach", volumeID, func() error {
		d, err := f.attach(volumeID, opts)
		if err == nil {
			dev, appears = f.found(volumeID, d).Device, d.appears
		}
		return err
	})
	if err == nil {
		if err = pause(ctx, time.Until(appears)); err != nil {
			err = fmt.Errorf("wait for the device of volume %s: %w", volumeID, err)
		}
	}
	if err != nil {
		return blockdev.Device{}, err
	}
	return dev, nil
}

func (f *Fake) attach(volumeID string, opts blockdev.AttachOptions) (*fakeDevice, error) {
	if f.look(volumeID) == nil {
		return nil, blockdev.ErrNotFound
	}
	if d := f.attached[volumeID]; d != nil {
		if !d.stuckUntil.IsZero() {
			return nil, blockdev.ErrThrottled
		}
		if d.ReadOnly != opts.ReadOnly {
			return nil, blockdev.ErrExists
		}
		return d, nil
	}
	if f.maxAttachments > 0 && len(f.attached)+f.wrong.SlotsTaken >= f.maxAttachments {
		return nil, blockdev.ErrAttachLimit
	}
	d := f.newDevice(volumeID, opts.ReadOnly)
	f.attached[volumeID] = d
	return d, nil
}

// serialBytes is VIRTIO_BLK_ID_BYTES (include/uapi/linux/virtio_blk.h).
const serialBytes = 20

// found is the device that looking for the volume's serial finds. The caller holds mu.
func (f *Fake) found(volumeID string, own *fakeDevice) *fakeDevice {
	for _, id := range slices.Sorted(maps.Keys(f.attached)) {
		if id != volumeID && id[:min(len(id), serialBytes)] == volumeID[:min(len(volumeID), serialBytes)] &&
			f.hits(f.wrong.CutSerials, "serial", volumeID) {
			return f.attached[id]
		}
	}
	return own
}

// Detach refuses a device that Use is using.
func (f *Fake) Detach(ctx context.Context, volumeID string) error {
	return f.do(ctx, "Detach", volumeID, func() error {
		d := f.attached[volumeID]
		switch {
		case d == nil:
			return nil
		case d.users > 0:
			return blockdev.ErrInUse
		case !d.stuckUntil.IsZero():
			return blockdev.ErrThrottled
		case f.hits(f.wrong.StickDetach, "stick", volumeID):
			d.stuckUntil = time.Now().Add(f.draw(f.wrong.StuckFor, "stuck", volumeID))
			return blockdev.ErrThrottled
		}
		f.drop(volumeID, d)
		return nil
	})
}

// Attached lists the attached volumes whose devices are there.
func (f *Fake) Attached(ctx context.Context) (map[string]blockdev.Device, error) {
	all := make(map[string]blockdev.Device)
	err := f.do(ctx, "Attached", "", func() error {
		for id, d := range f.attached {
			if !time.Now().Before(d.appears) {
				all[id] = d.Device
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// errReadOnly is what a write to a read-only device gives.
var errReadOnly = errors.New("device is read-only")

// device finds the device of a path. The caller holds mu.
func (f *Fake) device(path string) (volumeID string, d *fakeDevice, err error) {
	for id, d := range f.attached {
		if d.Path == path && !time.Now().Before(d.appears) {
			return id, d, nil
		}
	}
	return "", nil, fmt.Errorf("open %s: %w", path, blockdev.ErrNotFound)
}

// OpenDevice opens a device by its path, as Config.Open wants it. What is read and written is the volume's content at
// that time; a device that was detached meanwhile fails.
func (f *Fake) OpenDevice(dev blockdev.Device, _ bool) (Content, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id, d, err := f.device(dev.Path)
	if err != nil {
		return nil, err
	}
	return &fakeContent{f, id, d}, nil
}

// Use keeps a device in use until release, as Config.Use wants it.
func (f *Fake) Use(path string) (release func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, d, err := f.device(path)
	if err != nil {
		return nil, err
	}
	d.users++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		d.users--
		if d.users == 0 {
			delete(f.inUse, d)
		}
	}, nil
}
