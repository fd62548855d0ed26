package layerdisk

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
)

// HeaderBytes is the size of the header at the very beginning of the device. EROFS and ext4 both leave the first
// 1024 bytes to others.
const HeaderBytes = 512

const (
	headerMagic = "BERTHDSK"

	offMajor       = 8
	offMinor       = 10
	offFileSystem  = 12
	lenFileSystem  = 8
	offUUID        = 24
	offIndexOffset = 40
	offIndexBytes  = 48
	offIndexDigest = 56
	offDiskBytes   = 88
	offChecksum    = 96

	// minIndexOffset keeps the index behind the block with the header and the superblock.
	minIndexOffset = 4096
)

// Header finds and proves a layer disk without mounting it. Writing it completes a disk: it is written last.
type Header struct {
	Major, Minor uint16
	// FileSystem is FileSystemEROFS or FileSystemExt4.
	FileSystem string
	// UUID of the disk, lower case with dashes; the file system's superblock has the same.
	UUID string
	// IndexOffset and IndexBytes say where on the device the encoded index is.
	IndexOffset, IndexBytes int64
	// IndexDigest is the sha256 digest of the encoded index.
	IndexDigest digest.Digest
	// DiskBytes is the size of all that belongs to the disk; the device may be larger.
	DiskBytes int64
}

// NewHeader describes a disk with the sealed index ix, whose encoded bytes lie at indexOffset of the device.
func NewHeader(ix *Index, encoded []byte, indexOffset, diskBytes int64) Header {
	return Header{
		Major:       MajorVersion,
		Minor:       uint16(ix.minor()),
		FileSystem:  ix.FileSystem,
		UUID:        ix.UUID,
		IndexOffset: indexOffset,
		IndexBytes:  int64(len(encoded)),
		IndexDigest: digest.SHA256.FromBytes(encoded),
		DiskBytes:   diskBytes,
	}
}

// Identity of the disk, as the header claims it.
func (h Header) Identity() Identity {
	return Identity{UUID: h.UUID, IndexDigest: h.IndexDigest}
}

// MarshalBinary gives the HeaderBytes bytes of the header. A header that ParseHeader would refuse is
// errdefs.ErrInvalidArgument.
func (h Header) MarshalBinary() ([]byte, error) {
	if h.Major != MajorVersion {
		return nil, fmt.Errorf("encode header: major version %d, can only write %d: %w", h.Major, MajorVersion, errdefs.ErrInvalidArgument)
	}
	if err := h.check(); err != nil {
		return nil, fmt.Errorf("encode header: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	id, err := uuid.Parse(h.UUID)
	if err != nil {
		return nil, fmt.Errorf("encode header: UUID %q: %w: %w", h.UUID, err, errdefs.ErrInvalidArgument)
	}
	sum, err := hex.DecodeString(h.IndexDigest.Encoded())
	if err != nil {
		return nil, fmt.Errorf("encode header: index digest %q: %w: %w", h.IndexDigest, err, errdefs.ErrInvalidArgument)
	}
	b := make([]byte, HeaderBytes)
	copy(b, headerMagic)
	binary.LittleEndian.PutUint16(b[offMajor:], h.Major)
	binary.LittleEndian.PutUint16(b[offMinor:], h.Minor)
	copy(b[offFileSystem:offFileSystem+lenFileSystem], h.FileSystem)
	copy(b[offUUID:], id[:])
	binary.LittleEndian.PutUint64(b[offIndexOffset:], uint64(h.IndexOffset))
	binary.LittleEndian.PutUint64(b[offIndexBytes:], uint64(h.IndexBytes))
	copy(b[offIndexDigest:], sum)
	binary.LittleEndian.PutUint64(b[offDiskBytes:], uint64(h.DiskBytes))
	binary.LittleEndian.PutUint32(b[offChecksum:], headerChecksum(b))
	return b, nil
}

// ParseHeader decodes and checks the first bytes of a device, at least HeaderBytes of them. Errors are ErrNotLayerDisk,
// ErrVersion and ErrCorrupt. Of a higher minor version it ignores what it does not know.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderBytes {
		return Header{}, fmt.Errorf("%w: %d bytes are too few for a header of %d", ErrNotLayerDisk, len(b), HeaderBytes)
	}
	b = b[:HeaderBytes]
	if string(b[:len(headerMagic)]) != headerMagic {
		return Header{}, fmt.Errorf("%w: no berth header at its beginning; the device holds something else, or its building was interrupted", ErrNotLayerDisk)
	}
	// The checksum comes first: without it a flipped bit would look like another version.
	if got, want := binary.LittleEndian.Uint32(b[offChecksum:]), headerChecksum(b); got != want {
		return Header{}, fmt.Errorf("%w: header checksum is %08x, its bytes give %08x", ErrCorrupt, got, want)
	}
	h := Header{
		Major: binary.LittleEndian.Uint16(b[offMajor:]),
		Minor: binary.LittleEndian.Uint16(b[offMinor:]),
	}
	if h.Major != MajorVersion {
		return Header{}, versionError(fmt.Sprintf("%d.%d", h.Major, h.Minor))
	}
	name, padding, _ := bytes.Cut(b[offFileSystem:offFileSystem+lenFileSystem], []byte{0})
	if len(bytes.Trim(padding, "\x00")) != 0 {
		return Header{}, fmt.Errorf("%w: header: file system name is not padded with zeros", ErrCorrupt)
	}
	h.FileSystem = string(name)
	var id uuid.UUID
	copy(id[:], b[offUUID:])
	h.UUID = id.String()
	h.IndexDigest = digest.NewDigestFromBytes(digest.SHA256, b[offIndexDigest:offIndexDigest+32])
	// A value of 2^63 or more becomes negative here and is refused as such.
	h.IndexOffset = int64(binary.LittleEndian.Uint64(b[offIndexOffset:])) //nolint:gosec // checked below
	h.IndexBytes = int64(binary.LittleEndian.Uint64(b[offIndexBytes:]))   //nolint:gosec // checked below
	h.DiskBytes = int64(binary.LittleEndian.Uint64(b[offDiskBytes:]))     //nolint:gosec // checked below
	if err := h.check(); err != nil {
		return Header{}, fmt.Errorf("%w: header: %w", ErrCorrupt, err)
	}
	return h, nil
}

// check is everything a header must keep to but its version.
func (h Header) check() error {
	if err := checkFileSystem(h.FileSystem); err != nil {
		return err
	}
	if err := checkUUID(h.UUID); err != nil {
		return err
	}
	if h.IndexDigest.Validate() != nil || h.IndexDigest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("index digest %q is not a sha256 digest", h.IndexDigest)
	}
	if h.DiskBytes < minIndexOffset || h.DiskBytes > MaxContentBytes {
		return fmt.Errorf("disk size of %d bytes is not between %d and %d", h.DiskBytes, minIndexOffset, int64(MaxContentBytes))
	}
	if h.IndexBytes <= 0 || h.IndexBytes > MaxIndexBytes {
		return fmt.Errorf("index size of %d bytes is not between 1 and %d", h.IndexBytes, MaxIndexBytes)
	}
	if h.IndexOffset < minIndexOffset || h.IndexOffset > h.DiskBytes-h.IndexBytes {
		return fmt.Errorf("index of %d bytes at offset %d does not lie between offset %d and the disk's end at %d",
			h.IndexBytes, h.IndexOffset, minIndexOffset, h.DiskBytes)
	}
	return nil
}

// headerChecksum is the CRC-32C of the header with the checksum field zero.
func headerChecksum(b []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, b[:offChecksum])
	sum = crc32.Update(sum, table, []byte{0, 0, 0, 0})
	return crc32.Update(sum, table, b[offChecksum+4:HeaderBytes])
}

func versionError(found string) error {
	return fmt.Errorf("%w: the disk is of version %s, this berth reads version %d.x: use a berth that knows it, or build the disk again",
		ErrVersion, found, MajorVersion)
}

func checkFileSystem(name string) error {
	switch name {
	case FileSystemEROFS, FileSystemExt4:
		return nil
	}
	return fmt.Errorf("file system %q is neither %q nor %q", name, FileSystemEROFS, FileSystemExt4)
}

func checkUUID(s string) error {
	id, err := uuid.Parse(s)
	if err != nil {
		return fmt.Errorf("UUID %q: %w", s, err)
	}
	if id == uuid.Nil {
		return errors.New("UUID is all zeros")
	}
	if id.String() != s {
		return fmt.Errorf("UUID %q is not written as %q", s, id)
	}
	return nil
}
