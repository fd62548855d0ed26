package layerdisk_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

const (
	diskBytes   = 1 << 20
	indexOffset = 8192
)

// device is a layer disk without its layers: header, superblock magic and UUID, index.
func device(t *testing.T, fileSystem string) []byte {
	t.Helper()
	ix := layerdisktest.Index(fileSystem, testImages()...)
	encoded, err := layerdisk.Seal(ix)
	require.NoError(t, err)
	b := make([]byte, diskBytes)
	header, err := layerdisk.NewHeader(ix, encoded, indexOffset, diskBytes).MarshalBinary()
	require.NoError(t, err)
	copy(b, header)
	id := uuid.MustParse(ix.UUID)
	switch fileSystem {
	case layerdisk.FileSystemEROFS:
		binary.LittleEndian.PutUint32(b[1024:], 0xE0F5E1E2)
		copy(b[1024+48:], id[:])
	case layerdisk.FileSystemExt4:
		binary.LittleEndian.PutUint16(b[1024+0x38:], 0xEF53)
		copy(b[1024+0x68:], id[:])
	}
	copy(b[indexOffset:], encoded)
	return b
}

// reseal makes the checksum right again after a change of the header.
func reseal(b []byte) {
	binary.LittleEndian.PutUint32(b[96:], 0)
	binary.LittleEndian.PutUint32(b[96:], crc32.Checksum(b[:512], crc32.MakeTable(crc32.Castagnoli)))
}

func TestReadIndex(t *testing.T) {
	for _, fileSystem := range []string{layerdisk.FileSystemEROFS, layerdisk.FileSystemExt4} {
		b := device(t, fileSystem)
		ix, id, err := layerdisk.ReadIndex(bytes.NewReader(b))
		require.NoError(t, err)
		require.Equal(t, fileSystem, ix.FileSystem)
		require.Equal(t, ix.UUID, id.UUID)
		require.Len(t, ix.Images, 4)
		// A device is mostly larger than the disk on it.
		_, again, err := layerdisk.ReadIndex(bytes.NewReader(append(b, make([]byte, 12345)...)))
		require.NoError(t, err)
		require.Equal(t, id, again)
	}
}

func TestReadIndexRefuses(t *testing.T) {
	put64 := func(at int, v uint64) func([]byte) []byte {
		return func(b []byte) []byte { binary.LittleEndian.PutUint64(b[at:], v); reseal(b); return b }
	}
	put := func(at int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:], v); reseal(b); return b }
	}
	for _, tt := range []struct {
		name   string
		change func(b []byte) []byte
		class  error
		want   string
	}{
		{"empty", func([]byte) []byte { return nil }, layerdisk.ErrNotLayerDisk, "too few"},
		{"shorter than a header", func(b []byte) []byte { return b[:511] }, layerdisk.ErrNotLayerDisk, "too few"},
		{"zeros", func(b []byte) []byte { return make([]byte, len(b)) }, layerdisk.ErrNotLayerDisk, "no berth header"},
		{"no magic", func(b []byte) []byte { b[0] = 'b'; return b }, layerdisk.ErrNotLayerDisk, "no berth header"},
		{"flipped bit", func(b []byte) []byte { b[60] ^= 4; return b }, layerdisk.ErrCorrupt, "header checksum"},
		{"flipped bit behind the fields", func(b []byte) []byte { b[500] ^= 4; return b }, layerdisk.ErrCorrupt, "header checksum"},
		{"flipped checksum", func(b []byte) []byte { b[97] ^= 4; return b }, layerdisk.ErrCorrupt, "header checksum"},
		{"other major version", put(8, 2, 0, 7, 0), layerdisk.ErrVersion, "the disk is of version 2.7, this berth reads version 1.x"},
		{"major version 0", put(8, 0), layerdisk.ErrVersion, "version 0.0"},
		{"unknown file system", put(12, 'x', 'f', 's', 0, 0), layerdisk.ErrCorrupt, `"xfs" is neither`},
		{"file system not padded", put(12+6, 'x'), layerdisk.ErrCorrupt, "not padded"},
		{"other file system", put(12, 'e', 'x', 't', '4', 0), layerdisk.ErrCorrupt, "no ext4 superblock"},
		{"no UUID", put(24, make([]byte, 16)...), layerdisk.ErrCorrupt, "all zeros"},
		{"other UUID", put(24, 1, 2, 3), layerdisk.ErrCorrupt, "the file system's UUID is"},
		{"index in the first block", put64(40, 512), layerdisk.ErrCorrupt, "does not lie between"},
		{"index offset negative", put64(40, 1<<63), layerdisk.ErrCorrupt, "does not lie between"},
		{"index behind the disk", put64(40, diskBytes), layerdisk.ErrCorrupt, "does not lie between"},
		{"index over the end", put64(40, diskBytes-10), layerdisk.ErrCorrupt, "does not lie between"},
		{"index offset overflows", put64(40, 1<<63-2), layerdisk.ErrCorrupt, "does not lie between"},
		{"index empty", put64(48, 0), layerdisk.ErrCorrupt, "index size of 0"},
		{"index absurd", put64(48, layerdisk.MaxIndexBytes+1), layerdisk.ErrCorrupt, "index size of"},
		{"index size negative", put64(48, 1<<63+5), layerdisk.ErrCorrupt, "index size of -"},
		{"index longer than it is", func(b []byte) []byte { b[48]++; reseal(b); return b }, layerdisk.ErrCorrupt, "digest of its index"},
		{"other index digest", put(56, 1, 2, 3), layerdisk.ErrCorrupt, "digest of its index"},
		{"disk empty", put64(88, 0), layerdisk.ErrCorrupt, "disk size of 0"},
		{"disk absurd", put64(88, 1<<60), layerdisk.ErrCorrupt, "disk size of"},
		{"disk larger than the device", put64(88, diskBytes+1), layerdisk.ErrCorrupt, "ends at offset"},
		{"cut", func(b []byte) []byte { return b[:diskBytes-1] }, layerdisk.ErrCorrupt, "copy or attach the whole disk"},
		{"cut to a block", func(b []byte) []byte { return b[:4096] }, layerdisk.ErrCorrupt, "copy or attach the whole disk"},
		{"cut to a header", func(b []byte) []byte { return b[:512] }, layerdisk.ErrCorrupt, "no erofs superblock"},
		{"superblock gone", func(b []byte) []byte { clear(b[1024:1100]); return b }, layerdisk.ErrCorrupt, "no erofs superblock"},
		{"superblock of another disk", func(b []byte) []byte { b[1024+48] ^= 1; return b }, layerdisk.ErrCorrupt, "the file system's UUID is"},
		{"flipped bit in the index", func(b []byte) []byte { b[indexOffset+77] ^= 1; return b }, layerdisk.ErrCorrupt, "digest of its index"},
		{"index of another disk", func(b []byte) []byte {
			other := layerdisktest.Index(layerdisk.FileSystemEROFS, testImages()[:1]...)
			return withIndex(b, other)
		}, layerdisk.ErrCorrupt, "the index has UUID"},
		{"index of another file system", func(b []byte) []byte {
			ix, _, err := layerdisk.ReadIndex(bytes.NewReader(b))
			if err != nil {
				return nil
			}
			ix.FileSystem = layerdisk.FileSystemExt4
			encoded, _ := layerdisk.Encode(*ix) // with the UUID of the header
			return withEncoded(b, encoded)
		}, layerdisk.ErrCorrupt, "names file system ext4"},
		{"index not JSON", func(b []byte) []byte { return withEncoded(b, []byte("nothing")) }, layerdisk.ErrCorrupt, "index"},
		{"index of another major version", func(b []byte) []byte { return withEncoded(b, []byte(`{"formatVersion":"3.0"}`)) },
			layerdisk.ErrVersion, "version 3.0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, _, err := layerdisk.ReadIndex(bytes.NewReader(tt.change(device(t, layerdisk.FileSystemEROFS))))
			require.ErrorIs(t, err, tt.class)
			require.ErrorContains(t, err, tt.want)
		})
	}
	require.ErrorIs(t, layerdisk.ErrNotLayerDisk, errdefs.ErrInvalidArgument)
	require.ErrorIs(t, layerdisk.ErrOtherDisk, errdefs.ErrFailedPrecondition)
}

func withIndex(b []byte, ix *layerdisk.Index) []byte {
	encoded, err := layerdisk.Seal(ix)
	if err != nil {
		return nil
	}
	return withEncoded(b, encoded)
}

// withEncoded puts other bytes in the place of the index and makes the header fit them, all but the UUID.
func withEncoded(b, encoded []byte) []byte {
	copy(b[indexOffset:], encoded)
	binary.LittleEndian.PutUint64(b[48:], uint64(len(encoded)))
	sum := digest.FromBytes(encoded)
	for i := range 32 {
		var v byte
		for _, c := range []byte(sum.Encoded()[2*i : 2*i+2]) {
			v = v<<4 | byte(strings.IndexByte("0123456789abcdef", c))
		}
		b[56+i] = v
	}
	reseal(b)
	return b
}

// brokenDevice fails at and behind an offset.
type brokenDevice struct {
	io.ReaderAt
	from int64
}

var errBroken = errors.New("input/output error")

func (d brokenDevice) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > d.from {
		return 0, errBroken
	}
	return d.ReaderAt.ReadAt(p, off)
}

func TestReadIndexPassesErrorsOn(t *testing.T) {
	b := device(t, layerdisk.FileSystemEROFS)
	for _, from := range []int64{0, 4096, diskBytes - 1} {
		_, _, err := layerdisk.ReadIndex(brokenDevice{bytes.NewReader(b), from})
		require.ErrorIs(t, err, errBroken)
		require.NotErrorIs(t, err, layerdisk.ErrCorrupt)
		require.NotErrorIs(t, err, layerdisk.ErrNotLayerDisk)
	}
}

func TestHeaderIgnoresLaterFields(t *testing.T) {
	b := device(t, layerdisk.FileSystemEROFS)
	b[10], b[20], b[200] = 9, 1, 0xff // minor version, reserved field, rest
	reseal(b)
	h, err := layerdisk.ReadHeader(bytes.NewReader(b))
	require.NoError(t, err)
	require.Equal(t, uint16(9), h.Minor)
}

func TestHeaderMarshalRefuses(t *testing.T) {
	valid, err := layerdisk.ReadHeader(bytes.NewReader(device(t, layerdisk.FileSystemEROFS)))
	require.NoError(t, err)
	for name, change := range map[string]func(*layerdisk.Header){
		"version":      func(h *layerdisk.Header) { h.Major = 2 },
		"file system":  func(h *layerdisk.Header) { h.FileSystem = "a long name" },
		"UUID":         func(h *layerdisk.Header) { h.UUID = "x" },
		"index digest": func(h *layerdisk.Header) { h.IndexDigest = "" },
		"sha512":       func(h *layerdisk.Header) { h.IndexDigest = digest.SHA512.FromString("") },
		"index offset": func(h *layerdisk.Header) { h.IndexOffset = 0 },
		"index size":   func(h *layerdisk.Header) { h.IndexBytes = h.DiskBytes },
		"disk size":    func(h *layerdisk.Header) { h.DiskBytes = -1 },
	} {
		h := valid
		change(&h)
		_, err := h.MarshalBinary()
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
	}
}

func TestIdentityCheck(t *testing.T) {
	id := layerdisk.Identity{UUID: "a", IndexDigest: "b"}
	require.NoError(t, id.Check(layerdisk.Identity{}))
	require.NoError(t, id.Check(id))
	require.NoError(t, id.Check(layerdisk.Identity{UUID: "a"}))
	require.ErrorIs(t, id.Check(layerdisk.Identity{UUID: "c"}), layerdisk.ErrOtherDisk)
	require.ErrorIs(t, id.Check(layerdisk.Identity{UUID: "a", IndexDigest: "c"}), layerdisk.ErrOtherDisk)
}

func TestReadIndexOfAFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(name, device(t, layerdisk.FileSystemExt4), 0o600))
	f, err := os.Open(name)
	require.NoError(t, err)
	defer f.Close()
	_, _, err = layerdisk.ReadIndex(f)
	require.NoError(t, err)
}
