package stage

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

func TestStageAndUnstage(t *testing.T) {
	for _, fs := range []string{layerdisk.FileSystemEROFS, layerdisk.FileSystemExt4} {
		t.Run(fs, func(t *testing.T) {
			n := newNode(t)
			n.start()
			path, id := n.disk("one", fs, "a", "b")
			changed := n.Changed()
			require.Nil(t, n.Index("one"))
			status := n.stage("one", path)
			<-changed
			require.Equal(t, id.UUID, n.Index("one").UUID)
			require.Equal(t, id.UUID, status.UUID)
			require.Equal(t, id.IndexDigest, status.IndexDigest)
			require.Equal(t, StateIdle, status.State)
			require.True(t, status.Serving)
			require.Equal(t, 2, status.Layers)
			require.Equal(t, filepath.Join(n.dir, "d", "0"), status.MountPoint)
			require.Positive(t, status.SizeBytes)
			ro, err := device.ReadOnly(status.Device)
			require.NoError(t, err)
			require.True(t, ro)
			mounts, err := fsmount.At(status.MountPoint)
			require.NoError(t, err)
			require.Len(t, mounts, 1)
			require.True(t, mounts[0].ReadOnly)

			held := n.acquire("h", chain("a", "b"), "b")
			require.Equal(t, Held{
				Dir: filepath.Join(n.dir, "d/0/l/1"), DiskUUID: id.UUID, DiskName: "one", LayerNumber: 1,
				DiffID: layerdisktest.DiffID("b"), BlobSize: 1001, MatchedBy: layerdisk.MatchChainID,
			}, held)
			dir, err := n.Layers.LayerDir(id.UUID, 1)
			require.NoError(t, err)
			require.Equal(t, held.Dir, dir)
			require.Equal(t, StateInUse, n.status("one").State)
			require.Equal(t, 1, n.status("one").LayersInUse)

			require.NoError(t, n.Layers.Release(t.Context(), "h"))
			changed = n.Changed()
			_, err = n.Unstage(t.Context(), "one", UnstageOptions{})
			require.NoError(t, err)
			<-changed
			require.Nil(t, n.Index("one"))
			require.Empty(t, n.left())
			require.Empty(t, n.Disks())
			require.FileExists(t, path)
			_, err = n.Unstage(t.Context(), "one", UnstageOptions{})
			require.True(t, errdefs.IsNotFound(err), err)
		})
	}
}

func TestStageConcurrently(t *testing.T) {
	n := newNode(t)
	n.start()
	path, _ := n.disk("one", "erofs", "a")
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			_, err := n.Stage(t.Context(), Spec{Name: "one", Driver: "loop", VolumeID: path})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	loops, err := device.FindLoops(path)
	require.NoError(t, err)
	require.Len(t, loops, 1)
	mounts, err := fsmount.Below(n.dir)
	require.NoError(t, err)
	require.Len(t, mounts, 1)
}

func TestStageRefuses(t *testing.T) {
	n := newNode(t)
	n.start()
	path, id := n.disk("one", "erofs", "a")
	n.stage("one", path)
	before := n.left()
	other, otherID := n.disk("two", "erofs", "a", "b")
	copied := filepath.Join(n.dir, "copy.img")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(copied, data, 0o600))
	cut := filepath.Join(n.dir, "cut.img")
	require.NoError(t, os.WriteFile(cut, data[:len(data)-4096], 0o600))
	noise := filepath.Join(n.dir, "noise.img")
	require.NoError(t, os.WriteFile(noise, make([]byte, 1<<20), 0o600))

	for _, tc := range []struct {
		name string
		spec Spec
		is   func(error) bool
		want error
	}{
		{"name taken", Spec{Name: "one", VolumeID: other}, errdefs.IsAlreadyExists, nil},
		{"volume taken", Spec{Name: "again", VolumeID: path}, errdefs.IsAlreadyExists, nil},
		{"same disk on another volume", Spec{Name: "copy", VolumeID: copied}, errdefs.IsAlreadyExists, nil},
		{"other index than expected", Spec{Name: "two", VolumeID: other, Expect: layerdisk.Identity{IndexDigest: id.IndexDigest}}, nil, layerdisk.ErrOtherDisk},
		{"other UUID than expected", Spec{Name: "two", VolumeID: other, Expect: layerdisk.Identity{UUID: id.UUID}}, nil, layerdisk.ErrOtherDisk},
		{"expected otherwise than it is", Spec{Name: "one", VolumeID: path, Expect: otherID}, nil, layerdisk.ErrOtherDisk},
		{"no layer disk", Spec{Name: "noise", VolumeID: noise}, nil, layerdisk.ErrNotLayerDisk},
		{"cut off", Spec{Name: "cut", VolumeID: cut}, nil, layerdisk.ErrCorrupt},
		{"no such file", Spec{Name: "none", VolumeID: path + ".none"}, errdefs.IsNotFound, nil},
		{"a directory", Spec{Name: "dir", VolumeID: n.dir}, errdefs.IsInvalidArgument, nil},
		{"no such volume", Spec{Name: "none", VolumeID: "none"}, errdefs.IsNotFound, nil},
		{"no such snapshot", Spec{Name: "none", VolumeSnapshotID: "none"}, errdefs.IsNotFound, nil},
		{"no such driver", Spec{Name: "none", VolumeID: "x", Driver: "cloud"}, errdefs.IsInvalidArgument, nil},
		{"bad name", Spec{Name: "../x", VolumeID: other}, errdefs.IsInvalidArgument, nil},
		{"no source", Spec{Name: "x"}, errdefs.IsInvalidArgument, nil},
		{"two sources", Spec{Name: "x", VolumeID: "v", VolumeSnapshotID: "s"}, errdefs.IsInvalidArgument, nil},
		{"bad digest", Spec{Name: "x", VolumeID: other, Expect: layerdisk.Identity{IndexDigest: "sha256:1"}}, errdefs.IsInvalidArgument, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if tc.spec.Driver == "" {
				tc.spec.Driver = "loop"
			}
			_, err := n.Stage(t.Context(), tc.spec)
			require.Error(t, err)
			if tc.want != nil {
				require.ErrorIs(t, err, tc.want)
			} else {
				require.True(t, tc.is(err), "%v", err)
			}
			require.Equal(t, before, n.left(), "a refused disk leaves nothing")
			require.Len(t, n.Disks(), 1)
			require.True(t, n.status("one").Serving)
		})
	}
}

func TestStageCancelled(t *testing.T) {
	n := newNode(t)
	n.start()
	path, _ := n.disk("one", "erofs", "a")
	ctx, cancel := context.WithCancel(t.Context())
	n.Stager.crash = func(point string) {
		if point == "after "+string(StateAttaching) {
			cancel()
		}
	}
	_, err := n.Stage(ctx, Spec{Name: "one", Driver: "loop", VolumeID: path})
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, n.left())
}

func TestBeforeRestore(t *testing.T) {
	n := newNode(t)
	_, err := n.Stage(t.Context(), Spec{Name: "one", Driver: "loop", VolumeID: "x"})
	require.True(t, errdefs.IsUnavailable(err), err)
	_, err = n.Layers.Acquire(t.Context(), "h", chain("a"))
	require.True(t, errdefs.IsUnavailable(err), err)
	_, err = n.Reconcile(t.Context(), nil)
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	require.NoError(t, n.Restore(t.Context()))
	require.True(t, errdefs.IsFailedPrecondition(n.Restore(t.Context())))
	_, err = n.Unstage(t.Context(), "one", UnstageOptions{})
	require.True(t, errdefs.IsUnavailable(err), "who uses what must be known first: %v", err)
	_, err = Open(n.config)
	require.True(t, errdefs.IsUnavailable(err), "a second process must be refused: %v", err)
}

func TestUnstageInUse(t *testing.T) {
	n := newNode(t)
	n.start()
	path, id := n.disk("one", "erofs", "a", "b")
	n.stage("one", path)
	n.acquire("x", chain("a"), "a")
	n.acquire("y", chain("a"), "a")

	holders, err := n.Unstage(t.Context(), "one", UnstageOptions{})
	require.True(t, errdefs.IsFailedPrecondition(err), err)
	require.ErrorContains(t, err, "2 snapshots")
	require.Equal(t, 2, holders)
	n.acquire("z", chain("a", "b"), "b")
	require.NoError(t, n.Layers.Release(t.Context(), "z"))

	holders, err = n.Unstage(t.Context(), "one", UnstageOptions{Drain: true})
	require.NoError(t, err)
	require.Equal(t, 2, holders)
	require.Equal(t, StateDraining, n.status("one").State)
	require.Equal(t, MissDraining, n.miss("z", chain("a", "b")).Reason)
	_, err = n.Layers.LayerDir(id.UUID, 0)
	require.NoError(t, err, "those who hold it go on")

	n.stage("one", path)
	n.acquire("z", chain("a", "b"), "b")
	require.NoError(t, n.Layers.Release(t.Context(), "z"))
	_, err = n.Unstage(t.Context(), "one", UnstageOptions{Drain: true})
	require.NoError(t, err)

	n.crash()
	n.start(Hold{"x", id.UUID, 0})
	require.Equal(t, StateDraining, n.status("one").State, "a drain survives a restart")
	require.NoError(t, n.Layers.Release(t.Context(), "x"))
	soon(t, "the drained disk leaves", func() bool { return len(n.Disks()) == 0 })
	require.Empty(t, n.left())
}

func TestAcquireMatches(t *testing.T) {
	n := newNode(t)
	n.start()
	require.Equal(t, MissNoDisk, n.miss("h", chain("a")).Reason)
	one, oneID := n.disk("one", "erofs", "a", "b")
	two, twoID := n.disk("two", "erofs", "c", "b")
	n.stage("one", one)
	n.stage("two", two)

	require.Equal(t, MissNotOnDisk, n.miss("h", chain("x")).Reason)
	require.Equal(t, MissContradiction, n.miss("h", layerdisk.LayerName{ChainID: layerdisktest.ChainID("a"), DiffID: layerdisktest.DiffID("b")}).Reason)

	require.Equal(t, twoID.UUID, n.acquire("1", chain("c", "b"), "b").DiskUUID)
	held := n.acquire("2", layerdisk.LayerName{ChainID: layerdisktest.ChainID("x", "b"), DiffID: layerdisktest.DiffID("b")}, "b")
	require.Equal(t, layerdisk.MatchDiffID, held.MatchedBy)
	require.Equal(t, twoID.UUID, held.DiskUUID, "the disk in use is preferred")
	held = n.acquire("3", layerdisk.LayerName{Blob: layerdisktest.BlobDigest("a")}, "a")
	require.Equal(t, layerdisk.MatchBlob, held.MatchedBy)
	require.Equal(t, oneID.UUID, held.DiskUUID)

	again := n.acquire("3", chain("a"), "a")
	require.Equal(t, held.Dir, again.Dir)
	require.Equal(t, 1, n.status("one").Holders)
	_, err := n.Layers.Acquire(t.Context(), "3", chain("a", "b"))
	require.True(t, errdefs.IsFailedPrecondition(err), err)

	found, err := n.Locate(layerdisk.LayerName{DiffID: layerdisktest.DiffID("b")})
	require.NoError(t, err)
	require.Equal(t, "one", found.DiskName, "both are in use, the first by name")
	require.Len(t, n.Images("example.org/one:1", nil), 1)
	require.Empty(t, n.Images("example.org/none:1", nil))
}

func TestStageFromSnapshot(t *testing.T) {
	n := newNode(t)
	n.start()
	path, _ := n.disk("one", "erofs", "a")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	volume, err := n.driver.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "built", SizeBytes: int64(len(data))})
	require.NoError(t, err)
	dev, err := n.driver.Attach(t.Context(), volume.ID, blockdev.AttachOptions{})
	require.NoError(t, err)
	_, err = n.Stage(t.Context(), Spec{Name: "one", Driver: "loop", VolumeID: volume.ID})
	require.ErrorIs(t, err, blockdev.ErrInUse, "who writes to it must not lose the device")
	require.NoError(t, os.WriteFile(dev.Path, data, 0o600))
	require.NoError(t, n.driver.Detach(t.Context(), volume.ID))
	snapshot, err := n.driver.CreateVolumeSnapshot(t.Context(), "frozen", volume.ID)
	require.NoError(t, err)

	status, err := n.Stage(t.Context(), Spec{Name: "one", Driver: "loop", VolumeSnapshotID: snapshot.ID})
	require.NoError(t, err)
	require.NotEmpty(t, status.VolumeID)
	n.acquire("h", chain("a"), "a")
	n.reboot()
	n.start(Hold{"h", status.UUID, 0})
	require.Equal(t, status.VolumeID, n.status("one").VolumeID)
	require.NoError(t, n.Layers.Release(t.Context(), "h"))
	_, err = n.Unstage(t.Context(), "one", UnstageOptions{})
	require.NoError(t, err)
	require.Empty(t, n.left())
	_, err = n.driver.GetVolume(t.Context(), volume.ID)
	require.NoError(t, err, "what was not made here is not deleted")
}

func TestForeignMountIsLeftAlone(t *testing.T) {
	n := newNode(t)
	foreign := filepath.Join(n.dir, "d", "0")
	require.NoError(t, os.Mkdir(foreign, 0o700))
	require.NoError(t, unix.Mount("foreign", foreign, "tmpfs", 0, ""))
	n.start()
	list, err := n.Foreign()
	require.NoError(t, err)
	require.Len(t, list, 1)
	path, _ := n.disk("one", "erofs", "a")
	status := n.stage("one", path)
	require.NotEqual(t, foreign, status.MountPoint)
	_, err = n.Unstage(t.Context(), "one", UnstageOptions{})
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"mount " + foreign, "directory 0"}, n.left())

	// Others mount over a disk: it stays theirs, ours is mounted anew.
	require.NoError(t, fsmount.Unmount(foreign))
	require.NoError(t, os.Remove(foreign))
	status = n.stage("one", path)
	require.NoError(t, n.Close())
	require.NoError(t, unix.Mount("foreign", status.MountPoint, "tmpfs", 0, ""))
	n.open()
	n.start()
	require.NotEqual(t, status.MountPoint, n.status("one").MountPoint)
	n.acquire("h", chain("a"), "a")
}
