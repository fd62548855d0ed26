package device_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/test/harness/leak"
	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/slowdisk"
	"berth.dev/berth/test/harness/slowdisk/lazy"
)

const mib = 1 << 20

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// backing makes a file and checks at the end that no loop device stands for it any more.
func backing(t *testing.T, size int64) string {
	t.Helper()
	needRoot(t)
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, bytes.Repeat([]byte("berth---"), 512), 0o600))
	require.NoError(t, os.Truncate(path, size))
	t.Cleanup(func() {
		loops, err := device.FindLoops(path)
		require.NoError(t, err)
		for _, l := range loops {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			require.NoError(t, device.DetachLoop(ctx, l))
		}
		require.Empty(t, loops, "the test left a loop device")
	})
	return path
}

func TestLoop(t *testing.T) {
	for name, readonly := range map[string]bool{"read-only": true, "writable": false} {
		t.Run(name, func(t *testing.T) {
			path := backing(t, mib)
			loop, err := device.AttachLoop(t.Context(), path, device.LoopOptions{ReadOnly: readonly, Tag: "berth-test:" + name})
			require.NoError(t, err)
			require.Equal(t, readonly, loop.ReadOnly)
			require.True(t, loop.Whole)
			require.Equal(t, "berth-test:"+name, loop.Tag)

			size, err := device.SizeBytes(loop.Path)
			require.NoError(t, err)
			require.EqualValues(t, mib, size)
			ro, err := device.ReadOnly(loop.Path)
			require.NoError(t, err)
			require.Equal(t, readonly, ro)
			got := make([]byte, 16)
			f, err := os.Open(loop.Path)
			require.NoError(t, err)
			_, err = f.ReadAt(got, 0)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			require.Equal(t, "berth---berth---", string(got))

			// Opening a read-only device for writing is allowed, writing to it is not.
			f, err = os.OpenFile(loop.Path, os.O_WRONLY, 0)
			require.NoError(t, err)
			_, err = f.WriteAt(got, 0)
			require.NoError(t, f.Close())
			if readonly {
				require.ErrorIs(t, err, unix.EPERM)
			} else {
				require.NoError(t, err)
			}

			found, err := device.FindLoops(path)
			require.NoError(t, err)
			require.Equal(t, []device.Loop{loop}, found)
			tagged, err := device.TaggedLoops("berth-test:" + name)
			require.NoError(t, err)
			require.Contains(t, tagged, loop)

			require.NoError(t, device.DetachLoop(t.Context(), loop))
			require.NoError(t, device.DetachLoop(t.Context(), loop), "detaching again is no error")
		})
	}
}

func TestLoopIsDirect(t *testing.T) {
	path := backing(t, mib)
	probe, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		t.Skip("the file system of the temporary directory has no direct I/O")
	}
	require.NoError(t, probe.Close())
	loop, err := device.AttachLoop(t.Context(), path, device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	require.True(t, loop.DirectIO)
	require.NoError(t, device.DetachLoop(t.Context(), loop))
}

func TestDetachLoopInUse(t *testing.T) {
	path := backing(t, mib)
	loop, err := device.AttachLoop(t.Context(), path, device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	claim, err := os.OpenFile(loop.Path, os.O_RDONLY|unix.O_EXCL, 0)
	require.NoError(t, err)
	used, err := device.InUse(loop.Path)
	require.NoError(t, err)
	require.True(t, used)

	err = device.DetachLoop(t.Context(), loop)
	require.ErrorIs(t, err, blockdev.ErrInUse)
	require.True(t, errdefs.IsFailedPrecondition(err))
	_, ok, err := device.LoopAt(loop.Path)
	require.NoError(t, err)
	require.True(t, ok, "a refused detach must not happen later")

	require.NoError(t, claim.Close())
	used, err = device.InUse(loop.Path)
	require.NoError(t, err)
	require.False(t, used)
	require.NoError(t, device.DetachLoop(t.Context(), loop))
}

func TestDetachLoopOfAnother(t *testing.T) {
	mine, others := backing(t, mib), backing(t, mib)
	gone, err := device.AttachLoop(t.Context(), mine, device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, device.DetachLoop(t.Context(), gone))
	other, err := device.AttachLoop(t.Context(), others, device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)

	gone.Path = other.Path // as if the number had been used again
	require.NoError(t, device.DetachLoop(t.Context(), gone))
	_, ok, err := device.LoopAt(other.Path)
	require.NoError(t, err)
	require.True(t, ok, "another's device was detached")
	require.NoError(t, device.DetachLoop(t.Context(), other))
}

func TestDetachLoopWaitsForReaders(t *testing.T) {
	path := backing(t, mib)
	loop, err := device.AttachLoop(t.Context(), path, device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	reader, err := os.Open(loop.Path)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, device.DetachLoop(ctx, loop), context.DeadlineExceeded)
	require.NoError(t, reader.Close())
	require.NoError(t, device.DetachLoop(t.Context(), loop))
}

// A device that is missed would be attached a second time, and the first never given back.
func TestFindLoopsMissesNone(t *testing.T) {
	path, other := backing(t, mib), backing(t, mib)
	loop, err := device.AttachLoop(t.Context(), path, device.LoopOptions{ReadOnly: true, Tag: "berth-test:mine"})
	require.NoError(t, err)
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 3 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				l, err := device.AttachLoop(t.Context(), other, device.LoopOptions{ReadOnly: true})
				if err == nil {
					err = device.DetachLoop(t.Context(), l)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 300 {
		found, err := device.FindLoops(path)
		if err != nil || len(found) != 1 || found[0] != loop {
			t.Errorf("found %v, %v", found, err)
			break
		}
	}
	close(stop)
	group.Wait()
	require.NoError(t, device.DetachLoop(t.Context(), loop))
}

// A loop device that somebody else made of a file whose file system has died is no reason not to attach others.
func TestLoopDeviceOnDeadStorage(t *testing.T) {
	file := backing(t, mib)
	dir, err := os.MkdirTemp("/tmp", "dead") // the path of a socket is short
	require.NoError(t, err)
	slow, err := slowdisk.Start(t.Context(), slowdisk.Config{Dir: dir, File: file, Speed: lazy.Typical()})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, loop.DetachBelow(dir))
		require.NoError(t, slow.Close())
		require.NoError(t, leak.WaitNone(context.Background(), dir))
		require.NoError(t, os.RemoveAll(dir))
	})
	dead, err := device.AttachLoop(t.Context(), slow.Path(), device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	require.NoError(t, slow.Kill())
	require.Eventually(t, func() bool {
		_, _, err := device.LoopAt(dead.Path)
		return errors.Is(err, unix.ENOTCONN)
	}, time.Minute, 10*time.Millisecond, "the kernel has forgotten the file's attributes and cannot tell of the device")

	l, err := device.AttachLoop(t.Context(), file, device.LoopOptions{ReadOnly: true, Tag: "berth-test-dead"})
	require.NoError(t, err)
	found, err := device.FindLoops(file)
	require.NoError(t, err)
	require.Equal(t, []device.Loop{l}, found)
	found, err = device.TaggedLoops("berth-test-dead")
	require.NoError(t, err)
	require.Equal(t, []device.Loop{l}, found)
	require.NoError(t, device.DetachLoop(t.Context(), l))
}

func TestAttachLoopConcurrent(t *testing.T) {
	path := backing(t, mib)
	var all sync.Map
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			loop, err := device.AttachLoop(t.Context(), path, device.LoopOptions{ReadOnly: true})
			if err != nil {
				t.Error(err)
				return
			}
			_, twice := all.LoadOrStore(loop.Path, loop)
			if twice {
				t.Errorf("%s given twice", loop.Path)
			}
		})
	}
	group.Wait()
	all.Range(func(_, loop any) bool {
		require.NoError(t, device.DetachLoop(t.Context(), loop.(device.Loop)))
		return true
	})
}

func TestAttachLoopRefuses(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	_, err := device.AttachLoop(t.Context(), filepath.Join(dir, "none"), device.LoopOptions{})
	require.ErrorIs(t, err, blockdev.ErrNotFound)
	_, err = device.AttachLoop(t.Context(), dir, device.LoopOptions{ReadOnly: true})
	require.ErrorIs(t, err, blockdev.ErrInvalid)
	require.NoError(t, unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	_, err = device.AttachLoop(t.Context(), filepath.Join(dir, "fifo"), device.LoopOptions{ReadOnly: true})
	require.Error(t, err, "a fifo must not block either")
	_, err = device.AttachLoop(t.Context(), dir, device.LoopOptions{Tag: string(make([]byte, 64))})
	require.ErrorIs(t, err, blockdev.ErrInvalid)
}

func TestSetReadOnly(t *testing.T) {
	path := backing(t, mib)
	loop, err := device.AttachLoop(t.Context(), path, device.LoopOptions{})
	require.NoError(t, err)
	was, err := device.SetReadOnly(loop.Path, true)
	require.NoError(t, err)
	require.False(t, was)
	ro, err := device.ReadOnly(loop.Path)
	require.NoError(t, err)
	require.True(t, ro)
	was, err = device.SetReadOnly(loop.Path, false)
	require.NoError(t, err)
	require.True(t, was)

	// The number is most likely given to the next one, and the flag must not be.
	_, err = device.SetReadOnly(loop.Path, true)
	require.NoError(t, err)
	require.NoError(t, device.DetachLoop(t.Context(), loop))
	loop, err = device.AttachLoop(t.Context(), path, device.LoopOptions{})
	require.NoError(t, err)
	require.False(t, loop.ReadOnly)
	require.NoError(t, device.DetachLoop(t.Context(), loop))
}

func TestLoopForgetsReadOnly(t *testing.T) {
	path := backing(t, mib)
	before, err := device.AttachLoop(t.Context(), path, device.LoopOptions{})
	require.NoError(t, err)
	_, err = device.SetReadOnly(before.Path, true)
	require.NoError(t, err)
	require.NoError(t, device.DetachLoop(t.Context(), before))
	// The lowest free number is given again, unless another process was faster.
	after, err := device.AttachLoop(t.Context(), path, device.LoopOptions{})
	require.NoError(t, err)
	require.False(t, after.ReadOnly, "the flag of an earlier attachment is still there")
	require.NoError(t, device.DetachLoop(t.Context(), after))
	if after.Path != before.Path {
		_, err = device.SetReadOnly(before.Path, false)
		require.NoError(t, err)
	}
}

func TestNotADevice(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	for name, call := range map[string]func(string) error{
		"size":      func(p string) error { _, err := device.SizeBytes(p); return err },
		"read-only": func(p string) error { _, err := device.ReadOnly(p); return err },
		"set":       func(p string) error { _, err := device.SetReadOnly(p, true); return err },
		"in use":    func(p string) error { _, err := device.InUse(p); return err },
		"number":    func(p string) error { _, err := device.Number(p); return err },
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorIs(t, call(file), blockdev.ErrInvalid)
			require.ErrorIs(t, call(file+".none"), blockdev.ErrNotFound)
		})
	}
}

func TestName(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	image := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(image, make([]byte, 4096), 0o600))
	loop, dev, err := device.AttachLoopWhileUsed(t.Context(), image, device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	defer func() { require.NoError(t, dev.Close()) }()
	number, err := device.Number(loop.Path)
	require.NoError(t, err)
	name, err := device.Name(number)
	require.NoError(t, err)
	require.Equal(t, filepath.Base(loop.Path), name)
	_, err = device.Name(unix.Mkdev(4000, 1))
	require.True(t, errdefs.IsNotFound(err), "%v", err)
}
