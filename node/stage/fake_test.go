package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// fakeSystem mounts in memory. The text at the beginning of a volume says which disk it holds.
type fakeSystem struct {
	driver *blockdevtest.Fake

	mu      sync.Mutex
	indexes map[string]*layerdisk.Index // by that text
	ids     map[string]layerdisk.Identity
	mounts  map[string]fsmount.Mounted
	release map[string]func()
	// sick is the answer of all checks.
	sick error
}

var _ system = (*fakeSystem)(nil)

const labelBytes = 16

func newFakeSystem(driver *blockdevtest.Fake) *fakeSystem {
	return &fakeSystem{
		driver: driver, indexes: make(map[string]*layerdisk.Index), ids: make(map[string]layerdisk.Identity),
		mounts: make(map[string]fsmount.Mounted), release: make(map[string]func()),
	}
}

// volume makes a volume that holds a layer disk.
func (f *fakeSystem) volume(t testing.TB, name string, layers ...string) blockdev.Volume {
	t.Helper()
	v, err := f.driver.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: name, SizeBytes: 4096})
	require.NoError(t, err)
	dev, err := f.driver.Attach(t.Context(), v.ID, blockdev.AttachOptions{})
	require.NoError(t, err)
	c, err := f.driver.OpenDevice(dev, true)
	require.NoError(t, err)
	label := make([]byte, labelBytes)
	copy(label, name)
	_, err = c.WriteAt(label, 0)
	require.NoError(t, err)
	require.NoError(t, f.driver.Detach(t.Context(), v.ID))
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, layerdisktest.Image{Reference: "example.org/" + name + ":1", Layers: layers})
	encoded, err := layerdisk.Seal(ix)
	require.NoError(t, err)
	f.indexes[name], f.ids[name] = ix, layerdisk.NewHeader(ix, encoded, 4096, 1<<20).Identity()
	return v
}

func (f *fakeSystem) label(path string) (string, error) {
	c, err := f.driver.OpenDevice(blockdev.Device{Path: path}, false)
	if err != nil {
		return "", err
	}
	label := make([]byte, labelBytes)
	if _, err := c.ReadAt(label, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return strings.TrimRight(string(label), "\x00"), nil
}

func number(path string) (n uint64) {
	_, _ = fmt.Sscanf(path, "fake:%d", &n)
	return n
}

func (f *fakeSystem) Prove(dev blockdev.Device) (proof, error) {
	label, err := f.label(dev.Path)
	if err != nil {
		return proof{}, err
	}
	if f.indexes[label] == nil {
		return proof{}, layerdisk.ErrNotLayerDisk
	}
	return proof{f.indexes[label], f.ids[label], number(dev.Path), 4096}, nil
}

func (f *fakeSystem) Sample(string, int64) error { return nil }

func (f *fakeSystem) Verify(context.Context, string, layerdisk.Identity) error { return nil }

func (f *fakeSystem) setSick(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sick = err
}

func (f *fakeSystem) CheckDevice(string, uint64, layerdisk.Identity) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sick
}

func (f *fakeSystem) CheckDir(string) error { return nil }

func (f *fakeSystem) Mount(device, target string, fs fsmount.FileSystem) error {
	release, err := f.driver.Use(device)
	if err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mounts[target] = fsmount.Mounted{Target: target, Device: number(device), Source: device, Type: string(fs), ReadOnly: true}
	f.release[target] = release
	return nil
}

func (f *fakeSystem) Unmount(target string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if release := f.release[target]; release != nil {
		release()
	}
	delete(f.mounts, target)
	delete(f.release, target)
	return nil
}

func (f *fakeSystem) At(target string) ([]fsmount.Mounted, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m, ok := f.mounts[target]; ok {
		return []fsmount.Mounted{m}, nil
	}
	return nil, nil
}

func (f *fakeSystem) Below(string) (all []fsmount.Mounted, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.mounts {
		all = append(all, m)
	}
	return all, nil
}
