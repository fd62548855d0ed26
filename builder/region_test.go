package builder

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestRegion writes a region in pieces and makes it the head after some of them: wherever that happens, the same bytes
// come to the same place.
func TestRegion(t *testing.T) {
	const piece = 1 << 20
	content := []byte(bigContent(t, 40*piece))
	const offset = 3 * blockBytes
	for _, after := range []int{0, 1, 10, 17, 30, 40} {
		for _, memory := range []int64{0, 5 * piece, 1 << 40} {
			t.Run(fmt.Sprintf("head after %d MiB, memory %d", after, memory), func(t *testing.T) {
				disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
				require.NoError(t, err)
				defer disk.Close()
				left := newBudget(memory)
				r := newRegion(t.Context(), disk, left, func() (*os.File, error) { return newSpool(t.TempDir()) })
				for i := range 40 {
					if i == after {
						require.NoError(t, r.promote(offset))
					}
					n, err := r.Write(content[i*piece : (i+1)*piece])
					require.NoError(t, err)
					require.Equal(t, piece, n)
					require.LessOrEqual(t, r.memoryBytes, layerMemoryBytes)
				}
				if after == 40 {
					require.NoError(t, r.promote(offset))
				}
				require.Nil(t, r.spool)
				require.Equal(t, memory, left.left.Load())
				got, err := io.ReadAll(io.NewSectionReader(disk, offset, 1<<40))
				require.NoError(t, err)
				require.True(t, bytes.Equal(content, got))
				require.NoError(t, r.discard())
			})
		}
	}
}

// TestRegionWaits: without room for a spool file the writer waits until it is the head, or is called off.
func TestRegionWaits(t *testing.T) {
	full := func() (*os.File, error) { return os.OpenFile("/dev/full", os.O_RDWR, 0) }
	disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	require.NoError(t, err)
	defer disk.Close()

	r := newRegion(t.Context(), disk, newBudget(4), full)
	_, err = r.Write([]byte("kept"))
	require.NoError(t, err)
	done := make(chan error)
	go func() {
		_, err := r.Write([]byte(" and waiting"))
		done <- err
	}()
	require.NoError(t, r.promote(0))
	require.NoError(t, <-done)
	got, err := os.ReadFile(disk.Name())
	require.NoError(t, err)
	require.Equal(t, "kept and waiting", string(got))

	ctx, cancel := context.WithCancel(t.Context())
	r = newRegion(ctx, disk, newBudget(0), full)
	go func() {
		_, err := r.Write([]byte("never"))
		done <- err
	}()
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.NoError(t, r.discard())

	broken := fmt.Errorf("no such device")
	r = newRegion(t.Context(), disk, newBudget(0), func() (*os.File, error) { return nil, broken })
	_, err = r.Write([]byte("x"))
	require.ErrorIs(t, err, broken)
}
