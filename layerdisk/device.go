package layerdisk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
)

// Where the file systems keep what proves them (EROFS: fs/erofs/erofs_fs.h, ext4: fs/ext4/ext4.h of the kernel), from
// the beginning of the device.
const (
	superblockOffset = 1024
	firstBlockBytes  = 4096

	erofsMagic      = 0xE0F5E1E2
	erofsUUIDOffset = superblockOffset + 48
	ext4Magic       = 0xEF53
	ext4MagicOffset = superblockOffset + 0x38
	ext4UUIDOffset  = superblockOffset + 0x68
)

// ReadHeader reads and checks the header of the device or file r, that the superblock behind it belongs to the same
// disk, and that the whole disk is there. It reads two times and few bytes. Errors are ErrNotLayerDisk, ErrVersion,
// ErrCorrupt, and those of r.
func ReadHeader(r io.ReaderAt) (Header, error) {
	first := make([]byte, firstBlockBytes)
	n, err := r.ReadAt(first, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Header{}, fmt.Errorf("read header: %w", err)
	}
	h, err := ParseHeader(first[:n])
	if err != nil {
		return Header{}, err
	}
	if err := checkSuperblock(h, first); err != nil {
		return Header{}, err
	}
	var last [1]byte
	if err := readFull(r, last[:], h.DiskBytes-1); err != nil {
		return Header{}, fmt.Errorf("read the last of %d bytes of the disk: %w", h.DiskBytes, err)
	}
	return h, nil
}

// ReadIndex does what ReadHeader does, then reads the index and proves it by its digest and all rules of the format.
// It needs no mount. Memory is bounded by a small multiple of MaxIndexBytes. Errors are as those of ReadHeader.
func ReadIndex(r io.ReaderAt) (*Index, Identity, error) {
	h, err := ReadHeader(r)
	if err != nil {
		return nil, Identity{}, err
	}
	data := make([]byte, h.IndexBytes)
	if err := readFull(r, data, h.IndexOffset); err != nil {
		return nil, Identity{}, fmt.Errorf("read index of %d bytes at offset %d: %w", h.IndexBytes, h.IndexOffset, err)
	}
	if got := digest.SHA256.FromBytes(data); got != h.IndexDigest {
		return nil, Identity{}, fmt.Errorf("%w: the digest of its index is %s, the header says %s", ErrCorrupt, got, h.IndexDigest)
	}
	ix, err := Parse(data)
	if err != nil {
		return nil, Identity{}, err
	}
	if ix.UUID != h.UUID {
		return nil, Identity{}, fmt.Errorf("%w: the index has UUID %s, the header %s", ErrCorrupt, ix.UUID, h.UUID)
	}
	if ix.FileSystem != h.FileSystem {
		return nil, Identity{}, fmt.Errorf("%w: the index names file system %s, the header %s", ErrCorrupt, ix.FileSystem, h.FileSystem)
	}
	return ix, h.Identity(), nil
}

// readFull fills b. A device that ends too early is ErrCorrupt.
func readFull(r io.ReaderAt, b []byte, offset int64) error {
	n, err := r.ReadAt(b, offset)
	if n == len(b) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: device or file ends at offset %d: copy or attach the whole disk", ErrCorrupt, offset+int64(n))
	}
	return err
}

// checkSuperblock makes sure that the kernel would mount the file system that the header was written for.
func checkSuperblock(h Header, first []byte) error {
	var id uuid.UUID
	var found bool
	switch h.FileSystem {
	case FileSystemEROFS:
		found = binary.LittleEndian.Uint32(first[superblockOffset:]) == erofsMagic
		copy(id[:], first[erofsUUIDOffset:])
	case FileSystemExt4:
		found = binary.LittleEndian.Uint16(first[ext4MagicOffset:]) == ext4Magic
		copy(id[:], first[ext4UUIDOffset:])
	}
	if !found {
		return fmt.Errorf("%w: no %s superblock behind its header", ErrCorrupt, h.FileSystem)
	}
	if id.String() != h.UUID {
		return fmt.Errorf("%w: the file system's UUID is %s, the header says %s", ErrCorrupt, id, h.UUID)
	}
	return nil
}
