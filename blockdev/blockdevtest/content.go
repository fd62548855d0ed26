package blockdevtest

import (
	"fmt"
	"io"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev"
)

// fakeContent is an open device of a Fake.
type fakeContent struct {
	fake     *Fake
	volumeID string
	device   *fakeDevice
}

func (c *fakeContent) content() ([]byte, error) {
	v := c.fake.volumes[c.volumeID]
	if c.fake.attached[c.volumeID] != c.device || v == nil {
		return nil, fmt.Errorf("%s was detached: %w", c.device.Path, blockdev.ErrNotFound)
	}
	if c.device.state == DeviceFails {
		return nil, fmt.Errorf("%s: %w", c.device.Path, errIO)
	}
	if c.device.cut {
		return v.content[:len(v.content)/2], nil
	}
	return v.content, nil
}

// errIO is what a device that fails gives.
var errIO = fmt.Errorf("input/output error: %w", errdefs.ErrDataLoss)

// ready waits for a device that stalls, as the kernel does: for as long as it takes.
func (c *fakeContent) ready() {
	for {
		c.fake.mu.Lock()
		healed := c.device.healed
		c.fake.mu.Unlock()
		if healed == nil {
			return
		}
		<-healed
	}
}

// ReadAt reads from the volume.
func (c *fakeContent) ReadAt(p []byte, offset int64) (int, error) {
	c.ready()
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	content, err := c.content()
	if err == nil && c.fake.hits(c.fake.wrong.ReadError, "read", c.volumeID) {
		err = fmt.Errorf("%s: %w", c.device.Path, errIO)
	}
	if err != nil {
		return 0, err
	}
	if offset >= int64(len(content)) {
		return 0, io.EOF
	}
	n := copy(p, content[offset:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes to the volume.
func (c *fakeContent) WriteAt(p []byte, offset int64) (int, error) {
	c.ready()
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	content, err := c.content()
	if err != nil {
		return 0, err
	}
	if c.device.ReadOnly {
		return 0, fmt.Errorf("write %s: %w", c.device.Path, errReadOnly)
	}
	if offset+int64(len(p)) > int64(len(content)) {
		return 0, fmt.Errorf("write %s: %w", c.device.Path, blockdev.ErrNoSpace)
	}
	return copy(content[offset:], p), nil
}

// Close has nothing to do.
func (c *fakeContent) Close() error { return nil }

// Answers says, without reading, that an open device is still attached and in order.
func (f *Fake) Answers(c Content) bool {
	open, ok := c.(*fakeContent)
	f.mu.Lock()
	defer f.mu.Unlock()
	return ok && f.attached[open.volumeID] == open.device && open.device.state == DeviceWell && !open.device.cut
}
