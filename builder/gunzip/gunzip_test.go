package gunzip_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/builder/gunzip"
)

// programs are the ways to decompress that this machine has.
func programs(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{"in process": ""}
	if p := gunzip.Program(); p != "" {
		all["igzip"] = p
	}
	return all
}

func compress(t *testing.T, raw []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	_, err := w.Write(raw)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return buf.Bytes()
}

func sample(n int) []byte {
	source := rand.NewChaCha8([32]byte{1})
	b := make([]byte, n)
	_, _ = source.Read(b[:n/2]) // one half is random, the other zeros
	return b
}

func TestReader(t *testing.T) {
	raw := sample(5 << 20)
	whole := compress(t, raw)
	members := append(compress(t, raw[:1000]), compress(t, raw[1000:])...)
	for name, program := range programs(t) {
		for kind, packed := range map[string][]byte{"one member": whole, "two members": members, "rubbish behind": append(bytes.Clone(whole), "rubbish"...)} {
			r, err := gunzip.NewReader(t.Context(), program, bytes.NewReader(packed))
			require.NoError(t, err)
			got, err := io.ReadAll(r)
			require.NoError(t, err, "%s, %s", name, kind)
			require.True(t, bytes.Equal(raw, got), "%s, %s", name, kind)
			require.NoError(t, r.Close())
		}
	}
}

func TestReaderRefusesDamage(t *testing.T) {
	packed := compress(t, sample(1<<20))
	flipped := bytes.Clone(packed)
	flipped[len(flipped)-6] ^= 1 // in the checksum
	failed := errors.New("connection lost")
	for name, program := range programs(t) {
		for kind, src := range map[string]io.Reader{
			"cut short": bytes.NewReader(packed[:len(packed)/2]),
			"checksum":  bytes.NewReader(flipped),
			"source":    io.MultiReader(bytes.NewReader(packed[:1000]), errReader{failed}),
		} {
			r, err := gunzip.NewReader(t.Context(), program, src)
			require.NoError(t, err)
			_, err = io.ReadAll(r)
			require.Error(t, err, "%s, %s", name, kind)
			require.ErrorContains(t, err, "decompress gzip")
			if kind == "source" {
				require.ErrorIs(t, err, failed, name)
			}
			require.NoError(t, r.Close())
		}
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

// TestCloseEarly: Close ends the program and waits for what reads the source.
func TestCloseEarly(t *testing.T) {
	packed := compress(t, sample(64<<20))
	for _, program := range programs(t) {
		r, err := gunzip.NewReader(t.Context(), program, bytes.NewReader(packed))
		require.NoError(t, err)
		_, err = io.ReadFull(r, make([]byte, 1000))
		require.NoError(t, err)
		require.NoError(t, r.Close())
	}
}

func TestCancel(t *testing.T) {
	program := gunzip.Program()
	if program == "" {
		t.Skip("needs igzip")
	}
	ctx, cancel := context.WithCancel(t.Context())
	source, feed := io.Pipe()
	context.AfterFunc(ctx, func() { _ = feed.CloseWithError(ctx.Err()) })
	r, err := gunzip.NewReader(ctx, program, source)
	require.NoError(t, err)
	_, err = feed.Write(compress(t, sample(1<<20))[:1000])
	require.NoError(t, err)
	cancel()
	_, err = io.ReadAll(r)
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, r.Close())
}

func TestProgramMissing(t *testing.T) {
	_, err := gunzip.NewReader(t.Context(), filepath.Join(t.TempDir(), "igzip"), bytes.NewReader(nil))
	require.ErrorIs(t, err, os.ErrNotExist)
	t.Setenv("PATH", t.TempDir())
	require.Empty(t, gunzip.Program())
}
