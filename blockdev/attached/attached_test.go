package attached_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

const (
	mib      = 1 << 20
	patience = 20 * time.Second
)

func open(t *testing.T, dir string, cfg attached.Config) *attached.Driver {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	cfg.Dir = filepath.Join(dir, "records")
	d, err := attached.Open(cfg)
	require.NoError(t, err)
	return d
}

// plug makes the file a block device of the node, as plugging in a disk does, until the test ends.
func plug(t *testing.T, file string, readonly bool) device.Loop {
	t.Helper()
	loop, err := device.AttachLoop(t.Context(), file, device.LoopOptions{ReadOnly: readonly})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, device.DetachLoop(context.Background(), loop)) })
	return loop
}

// realDir is a temporary directory whose files have the names that the kernel shows.
func realDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	return dir
}

func TestSuite(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, volumes := "", 0
	blockdevtest.Suite(t, blockdevtest.Config{
		New: func(t *testing.T) blockdev.Attacher {
			dir, volumes = realDir(t), 0
			return open(t, dir, attached.Config{})
		},
		Reopen: func(t *testing.T, _ blockdev.Attacher) blockdev.Attacher { return open(t, dir, attached.Config{}) },
		NewVolume: func(t *testing.T, _ blockdev.Attacher) string {
			volumes++
			file := filepath.Join(dir, "volume"+string(rune('a'+volumes)))
			require.NoError(t, os.WriteFile(file, make([]byte, mib), 0o600))
			plug(t, file, false)
			return "loop:" + file
		},
	})
}

// makeDisk makes a layer disk that differs from those of other names.
func makeDisk(t *testing.T, file, name string) layerdisk.Identity {
	t.Helper()
	_, id := layerdisktest.Disk(t, file, layerdisk.FileSystemEROFS, func(layer, dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, layer), []byte(name), 0o644))
	}, layerdisktest.Image{Reference: "docker.io/library/" + name + ":1", Layers: []string{name}})
	return id
}

func readOnly(t *testing.T, path string) bool {
	t.Helper()
	ro, err := device.ReadOnly(path)
	require.NoError(t, err)
	return ro
}

func TestAttachByIndex(t *testing.T) {
	dir := realDir(t)
	d := open(t, dir, attached.Config{Options: attached.Options{LoopsBelow: []string{dir}}, Wait: 50 * time.Millisecond})
	file := filepath.Join(dir, "disk")
	id := makeDisk(t, file, "app")
	volume := attached.VolumeID(id.IndexDigest)

	_, err := d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.ErrorIs(t, err, blockdev.ErrNotFound)
	loop := plug(t, file, false)
	_, err = d.Attach(t.Context(), volume, blockdev.AttachOptions{})
	require.ErrorIs(t, err, blockdev.ErrUnsupported, "a layer disk is never attached for writing")

	dev, err := d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.Equal(t, blockdev.Device{Path: loop.Path, ReadOnly: true}, dev)
	require.True(t, readOnly(t, loop.Path))
	_, err = d.Attach(t.Context(), "loop:"+file, blockdev.AttachOptions{ReadOnly: true})
	require.ErrorIs(t, err, blockdev.ErrInUse)
	require.ErrorContains(t, err, volume, "by which name it is attached")
	require.NoError(t, d.Detach(t.Context(), volume))
	require.False(t, readOnly(t, loop.Path), "it is given back as it was")

	// What was read-only before stays so.
	_, err = device.SetReadOnly(loop.Path, true)
	require.NoError(t, err)
	_, err = d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, d.Detach(t.Context(), volume))
	require.True(t, readOnly(t, loop.Path))
	_, err = d.Attach(t.Context(), "loop:"+file, blockdev.AttachOptions{})
	require.ErrorIs(t, err, blockdev.ErrUnsupported)

	// Somebody else's.
	f, err := os.OpenFile(loop.Path, os.O_RDONLY|os.O_EXCL, 0)
	require.NoError(t, err)
	_, err = d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.ErrorIs(t, err, blockdev.ErrInUse)
	require.NoError(t, f.Close())
	all, err := d.Attached(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
}

// TestLeft: a disk that goes without a word, and another that comes in its place or elsewhere.
func TestLeft(t *testing.T) {
	dir := realDir(t)
	d := open(t, dir, attached.Config{Options: attached.Options{LoopsBelow: []string{dir}}, Wait: 50 * time.Millisecond})
	file, other := filepath.Join(dir, "disk"), filepath.Join(dir, "other")
	id := makeDisk(t, file, "app")
	makeDisk(t, other, "other")
	volume := attached.VolumeID(id.IndexDigest)
	first := plug(t, file, false)
	_, err := d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, device.DetachLoop(t.Context(), first))
	all, err := d.Attached(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
	_, err = d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.ErrorIs(t, err, blockdev.ErrNotFound)
	plug(t, other, false) // most likely the same device again
	_, err = d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.ErrorIs(t, err, blockdev.ErrNotFound)
	again := plug(t, file, false)
	dev, err := d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.Equal(t, again.Path, dev.Path)
	// A copy takes over.
	copied := filepath.Join(dir, "copy")
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(copied, data, 0o600))
	second := plug(t, copied, false)
	got, err := d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.Equal(t, dev, got, "as long as the first is there, it stays")
	require.NoError(t, device.DetachLoop(t.Context(), again))
	got, err = d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.Equal(t, second.Path, got.Path)
	require.NoError(t, d.Detach(t.Context(), volume))
}

// TestMove: the device is there, but gives errors while it is in use.
func TestMove(t *testing.T) {
	dir := realDir(t)
	d := open(t, dir, attached.Config{Options: attached.Options{LoopsBelow: []string{dir}}, Wait: 50 * time.Millisecond})
	file, copied := filepath.Join(dir, "disk"), filepath.Join(dir, "copy")
	id := makeDisk(t, file, "app")
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	volume := attached.VolumeID(id.IndexDigest)
	old := plug(t, file, false)
	before, err := d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	user, err := os.OpenFile(old.Path, os.O_RDONLY|os.O_EXCL, 0)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(file, 0))
	got, err := d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.Equal(t, before, got, "there is no other")

	require.NoError(t, os.WriteFile(copied, data, 0o600))
	other := plug(t, copied, false)
	claim, err := os.OpenFile(other.Path, os.O_RDONLY|os.O_EXCL, 0)
	require.NoError(t, err)
	got, err = d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.Equal(t, before, got, "the other is somebody's")
	require.NoError(t, claim.Close())
	got, err = d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.Equal(t, blockdev.Device{Path: other.Path, ReadOnly: true}, got)
	all, err := d.Attached(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]blockdev.Device{volume: got}, all)
	require.NoError(t, user.Close())
	require.NoError(t, d.Detach(t.Context(), volume))
	require.False(t, readOnly(t, other.Path))
}

// TestAttachWaits for a device that comes later, without anybody who watches.
func TestAttachWaits(t *testing.T) {
	dir := realDir(t)
	d := open(t, dir, attached.Config{})
	file := filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(file, make([]byte, mib), 0o600))
	type answer struct {
		dev blockdev.Device
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		dev, err := d.Attach(t.Context(), "loop:"+file, blockdev.AttachOptions{ReadOnly: true})
		answers <- answer{dev, err}
	}()
	loop := plug(t, file, false)
	a := <-answers
	require.NoError(t, a.err)
	require.Equal(t, loop.Path, a.dev.Path)
	require.NoError(t, d.Detach(t.Context(), "loop:"+file))

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := d.Attach(ctx, "loop:"+file+"x", blockdev.AttachOptions{ReadOnly: true})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorIs(t, err, blockdev.ErrNotFound)
}

// TestInterrupted: a crash between writing down what is to be done and doing it.
func TestInterrupted(t *testing.T) {
	dir := realDir(t)
	d := open(t, dir, attached.Config{})
	file := filepath.Join(dir, "disk")
	require.NoError(t, os.WriteFile(file, make([]byte, mib), 0o600))
	loop := plug(t, file, false)
	volume := "loop:" + file
	_, err := d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	_, err = device.SetReadOnly(loop.Path, false)
	require.NoError(t, err)
	d = open(t, dir, attached.Config{})
	all, err := d.Attached(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
	_, err = d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	require.True(t, readOnly(t, loop.Path))
	require.NoError(t, d.Detach(t.Context(), volume))
	require.False(t, readOnly(t, loop.Path))

	// A record of another boot says nothing about this one.
	_, err = d.Attach(t.Context(), volume, blockdev.AttachOptions{ReadOnly: true})
	require.NoError(t, err)
	records, err := filepath.Glob(filepath.Join(dir, "records", "*.json"))
	require.NoError(t, err)
	require.Len(t, records, 1)
	data, err := os.ReadFile(records[0])
	require.NoError(t, err)
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	require.NoError(t, err)
	require.Contains(t, string(data), strings.TrimSpace(string(boot)))
	require.NoError(t, os.WriteFile(records[0], []byte(strings.ReplaceAll(string(data), strings.TrimSpace(string(boot)), "another")), 0o600))
	all, err = d.Attached(t.Context())
	require.NoError(t, err)
	require.Empty(t, all)
	require.NoError(t, d.Detach(t.Context(), volume))
	require.True(t, readOnly(t, loop.Path), "what is found so after a reboot is not ours to change")
	require.NoError(t, os.WriteFile(records[0], []byte("{"), 0o600))
	_, err = d.Attached(t.Context())
	require.ErrorContains(t, err, records[0])
}
