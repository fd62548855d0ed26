// Package blockdevtest proves that a block storage driver does what package blockdev says. Suite is run by every
// driver's tests; Fake is a driver in memory that passes it too, for the tests of what stands on drivers.
package blockdevtest

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
)

// Content reads and writes what is on a device.
type Content interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
}

// Config says how to test a driver. Which roles are tested follows from the interfaces that the driver has.
type Config struct {
	// New gives a driver with storage that holds nothing of the names that the suite uses (they begin with "suite-").
	// It is called for each test and cleans up by t.Cleanup what it made.
	New func(t *testing.T) blockdev.Attacher
	// Reopen gives another driver for the same storage and node, as after a restart of the process; the old one is not
	// used any more, and is not closed by the suite. Nil if there is no such thing, and the test of it is skipped.
	Reopen func(t *testing.T, old blockdev.Attacher) blockdev.Attacher
	// Open opens an attached device. Nil opens Device.Path as a file.
	Open func(dev blockdev.Device, write bool) (Content, error)
	// Use keeps an attached device in use, as a mount does, until release is called. Nil opens Device.Path with O_EXCL.
	Use func(t *testing.T, dev blockdev.Device) (release func())
	// NewVolume makes a blank volume of SizeBytes for a driver that is not a blockdev.Provisioner, and deletes it by
	// t.Cleanup.
	NewVolume func(t *testing.T, driver blockdev.Attacher) (volumeID string)
	// SizeBytes of the volumes that the suite makes, which also makes one of twice the size. Zero is 1 MiB.
	SizeBytes int64
	// Run runs one test; nil calls it. synctest.Test gives each test a clock of its own.
	Run func(t *testing.T, test func(t *testing.T))
	// Patience is how long one operation may take; zero is ten seconds.
	Patience time.Duration
}

// Suite runs all tests that fit the driver's roles and properties. Each leaves nothing in the storage, and checks that.
func Suite(t *testing.T, cfg Config) {
	t.Helper()
	if cfg.SizeBytes == 0 {
		cfg.SizeBytes = 1 << 20
	}
	if cfg.Patience == 0 {
		cfg.Patience = 10 * time.Second
	}
	if cfg.Open == nil {
		cfg.Open = openFile
	}
	if cfg.Use == nil {
		cfg.Use = claim
	}
	if cfg.Run == nil {
		cfg.Run = func(t *testing.T, test func(*testing.T)) { test(t) }
	}
	for name, test := range map[string]func(*run){
		"attach":                attachAndDetach,
		"attach read-only":      attachReadOnly,
		"attach concurrently":   attachConcurrently,
		"attach the other way":  attachTheOtherWay,
		"attach what is not":    attachWhatIsNot,
		"attach limit":          attachLimit,
		"attach cancelled":      attachCancelled,
		"detach in use":         detachInUse,
		"reopen":                reopen,
		"create volume":         createVolume,
		"create concurrently":   createConcurrently,
		"create refuses":        createRefuses,
		"delete volume":         deleteVolume,
		"reuse name":            reuseName,
		"list volumes":          listVolumes,
		"snapshot":              snapshot,
		"snapshot is frozen":    snapshotIsFrozen,
		"snapshot stands alone": snapshotStandsAlone,
		"snapshot refuses":      snapshotRefuses,
		"list snapshots":        listSnapshots,
	} {
		t.Run(name, func(t *testing.T) {
			cfg.Run(t, func(t *testing.T) {
				r := newRun(t, cfg)
				test(r)
				r.expectNothing()
			})
		})
	}
}

func openFile(dev blockdev.Device, write bool) (Content, error) {
	if write {
		return os.OpenFile(dev.Path, os.O_RDWR|os.O_SYNC, 0)
	}
	return os.Open(dev.Path)
}

func claim(t *testing.T, dev blockdev.Device) (release func()) {
	t.Helper()
	f, err := os.OpenFile(dev.Path, os.O_RDONLY|os.O_EXCL, 0)
	require.NoError(t, err)
	return func() { require.NoError(t, f.Close()) }
}

// run is one test with its driver.
type run struct {
	*testing.T
	Config
	ctx    context.Context //nolint:containedctx // of the one test that the run is
	driver blockdev.Attacher
	// The roles that the driver has; the others are nil.
	provisioner blockdev.Provisioner
	snapshotter blockdev.VolumeSnapshotter
}

func newRun(t *testing.T, cfg Config) *run {
	t.Helper()
	r := &run{T: t, Config: cfg}
	ctx, cancel := context.WithTimeout(t.Context(), 10*cfg.Patience)
	t.Cleanup(cancel)
	r.ctx = ctx
	r.use(cfg.New(t))
	require.Equal(t, r.snapshotter != nil, r.driver.Properties().VolumeSnapshots, "Properties.VolumeSnapshots must say whether the driver is a VolumeSnapshotter")
	return r
}

func (r *run) use(driver blockdev.Attacher) {
	r.driver = driver
	r.provisioner, _ = driver.(blockdev.Provisioner)
	r.snapshotter, _ = driver.(blockdev.VolumeSnapshotter)
}

func (r *run) needProvisioner() {
	r.Helper()
	if r.provisioner == nil {
		r.Skip("the driver makes no volumes")
	}
}

func (r *run) needSnapshotter() {
	r.Helper()
	if r.snapshotter == nil || r.provisioner == nil {
		r.Skip("the driver makes no volumes of volume snapshots")
	}
}

// volume makes a blank volume.
func (r *run) volume(name string) string {
	r.Helper()
	if r.provisioner == nil {
		require.NotNil(r, r.NewVolume, "Config.NewVolume is needed for a driver that makes no volumes")
		return r.NewVolume(r.T, r.driver)
	}
	v, err := r.provisioner.CreateVolume(r.ctx, blockdev.CreateVolumeRequest{Name: name, SizeBytes: r.SizeBytes})
	require.NoError(r, err)
	return v.ID
}

func (r *run) attach(volumeID string, readonly bool) blockdev.Device {
	r.Helper()
	dev, err := r.driver.Attach(r.ctx, volumeID, blockdev.AttachOptions{ReadOnly: readonly})
	require.NoError(r, err)
	require.NotEmpty(r, dev.Path)
	return dev
}

func (r *run) detach(volumeID string) {
	r.Helper()
	require.NoError(r, r.driver.Detach(r.ctx, volumeID))
}

func (r *run) deleteVolume(volumeID string) {
	r.Helper()
	if r.provisioner != nil {
		require.NoError(r, r.provisioner.DeleteVolume(r.ctx, volumeID))
	}
}

// write attaches, writes text at the offset, and detaches.
func (r *run) write(volumeID, text string, offset int64) {
	r.Helper()
	dev := r.attach(volumeID, false)
	c, err := r.Open(dev, true)
	require.NoError(r, err)
	_, err = c.WriteAt([]byte(text), offset)
	require.NoError(r, errors.Join(err, c.Close()))
	r.detach(volumeID)
}

// read attaches, reads as many bytes as text has at the offset, and detaches.
func (r *run) read(volumeID string, length int, offset int64) string {
	r.Helper()
	dev := r.attach(volumeID, true)
	got := r.readDevice(dev, length, offset)
	r.detach(volumeID)
	return got
}

func (r *run) readDevice(dev blockdev.Device, length int, offset int64) string {
	r.Helper()
	c, err := r.Open(dev, false)
	require.NoError(r, err)
	buf := make([]byte, length)
	n, err := c.ReadAt(buf, offset)
	if n == length {
		err = nil
	}
	require.NoError(r, errors.Join(err, c.Close()))
	return string(buf)
}

// waitReady waits until volumes can be made of the snapshot.
func (r *run) waitReady(s blockdev.VolumeSnapshot) blockdev.VolumeSnapshot {
	r.Helper()
	require.Eventually(r, func() bool {
		got, err := r.snapshotter.GetVolumeSnapshot(r.ctx, s.ID)
		require.NoError(r, err)
		s = got
		return s.ReadyToUse
	}, r.Patience, 10*time.Millisecond, "snapshot %s is not ready", s.ID)
	return s
}

// expectNothing makes sure that the test has given everything back.
func (r *run) expectNothing() {
	r.Helper()
	attached, err := r.driver.Attached(r.ctx)
	require.NoError(r, err)
	require.Empty(r, attached)
	if r.provisioner != nil {
		volumes, err := r.provisioner.ListVolumes(r.ctx)
		require.NoError(r, err)
		require.Empty(r, volumes)
	}
	if r.snapshotter != nil {
		snapshots, err := r.snapshotter.ListVolumeSnapshots(r.ctx)
		require.NoError(r, err)
		require.Empty(r, snapshots)
	}
}
