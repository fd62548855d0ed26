package blockdevtest

import (
	"fmt"
	"io"

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
	return v.content, nil
}

// ReadAt reads from the volume.
func (c *fakeContent) ReadAt(p []byte, offset int64) (int, error) {
	c.fake.mu.Lock()
	defer c.fake.mu.Unlock()
	content, err := c.content()
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
