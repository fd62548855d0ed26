package slowdisk_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/test/harness/leak"
	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/slowdisk"
	"berth.dev/berth/test/harness/slowdisk/lazy"
	"berth.dev/berth/test/harness/wait"
)

const (
	block = 64 << 10
	size  = 40*block + 4096
)

// attached is a slow disk of random bytes below a loop device.
type attached struct {
	*slowdisk.Disk
	dir, device string
	content     []byte
}

func attach(t *testing.T) *attached {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	dir, err := os.MkdirTemp("/tmp", "slow")
	require.NoError(t, err)
	a := &attached{dir: dir, content: make([]byte, size)}
	t.Cleanup(func() {
		require.NoError(t, loop.DetachBelow(dir))
		require.NoError(t, a.Close())
		require.NoError(t, leak.WaitNone(context.Background(), dir))
		require.NoError(t, os.RemoveAll(dir))
	})
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(a.content)
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, a.content, 0o600))
	speed := lazy.Typical()
	speed.BlockBytes = block
	a.Disk, err = slowdisk.Start(t.Context(), slowdisk.Config{Dir: dir, File: file, Speed: speed})
	require.NoError(t, err)
	l, err := device.AttachLoop(t.Context(), a.Path(), device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	a.device = l.Path
	require.True(t, l.DirectIO, "or the kernel would read ahead in the file")
	return a
}

// read past all caches.
func (a *attached) read(offset int64, length int) ([]byte, error) {
	fd, err := unix.Open(a.device, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE) // aligned
	if err != nil {
		return nil, err
	}
	defer unix.Munmap(b)
	n, err := unix.Pread(fd, b, offset)
	return bytes.Clone(b[:max(n, 0)]), err
}

func TestBlocksAreRestoredOnce(t *testing.T) {
	a := attach(t)
	before, err := a.Stats(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(41), before.Blocks, "the last one is short")
	for range 2 {
		for _, b := range []int64{30, 7, 31} {
			got, err := a.read(b*block+4096, 8192)
			require.NoError(t, err)
			require.Equal(t, a.content[b*block+4096:b*block+4096+8192], got)
		}
	}
	after, err := a.Stats(t.Context())
	require.NoError(t, err)
	require.Equal(t, int64(3), after.Restored-before.Restored)
	require.Equal(t, int64(6), after.Reads-before.Reads)
	require.Equal(t, int64(6*8192), after.Bytes-before.Bytes)

	got, err := a.read(0, size)
	require.NoError(t, err)
	require.True(t, bytes.Equal(a.content, got))
	after, err = a.Stats(t.Context())
	require.NoError(t, err)
	require.Equal(t, after.Blocks, after.Restored)
}

// Reads overtake one another: all those of one large direct read are under way at once.
func TestReadsAreParallel(t *testing.T) {
	a := attach(t)
	before, err := a.Stats(t.Context())
	require.NoError(t, err)
	require.NoError(t, a.Hold(t.Context()))
	done := make(chan error, 2)
	for i := range int64(2) {
		go func() {
			_, err := a.read(i*20*block, block)
			done <- err
		}()
	}
	require.NoError(t, wait.Until(t.Context(), time.Minute, "both reads to be held up", func(ctx context.Context) error {
		s, err := a.Stats(ctx)
		if err == nil && s.Waiting < 2 {
			err = os.ErrNotExist
		}
		return err
	}))
	held, err := a.Stats(t.Context())
	require.NoError(t, err)
	require.Equal(t, before.Restored, held.Restored)
	require.NoError(t, a.Release(t.Context()))
	require.NoError(t, <-done)
	require.NoError(t, <-done)
}

func TestFailAndMend(t *testing.T) {
	a := attach(t)
	require.NoError(t, a.Fail(t.Context()))
	_, err := a.read(0, 4096)
	require.ErrorIs(t, err, unix.EIO)
	require.NoError(t, a.Mend(t.Context()))
	_, err = a.read(0, 4096)
	require.NoError(t, err)
}

// A disk whose process dies while a read of it is held up fails that read: nothing hangs, and everything can be taken
// away.
func TestDeathHangsNothing(t *testing.T) {
	a := attach(t)
	require.NoError(t, a.Hold(t.Context()))
	done := make(chan error, 1)
	go func() {
		_, err := a.read(block, 4096)
		done <- err
	}()
	require.NoError(t, wait.Until(t.Context(), time.Minute, "the read to be held up", func(ctx context.Context) error {
		s, err := a.Stats(ctx)
		if err == nil && s.Waiting == 0 {
			err = os.ErrNotExist
		}
		return err
	}))
	require.NoError(t, a.Kill())
	require.Error(t, <-done)
	_, err := a.read(block, 4096)
	require.Error(t, err)
}
