package layerdisk

import (
	"fmt"

	"github.com/opencontainers/go-digest"
)

// Identity distinguishes one layer disk from every other. The zero Identity stands for any disk.
type Identity struct {
	// UUID of the disk, lower case with dashes.
	UUID string `json:"uuid"`
	// IndexDigest is the sha256 digest of the encoded index.
	IndexDigest digest.Digest `json:"index_digest"`
}

// String gives both parts for messages.
func (id Identity) String() string {
	return fmt.Sprintf("%s (index %s)", id.UUID, id.IndexDigest)
}

// Check compares the identity that was found with the wanted one, where an empty field stands for any value. The
// error is ErrOtherDisk.
func (id Identity) Check(want Identity) error {
	if want.UUID != "" && want.UUID != id.UUID {
		return fmt.Errorf("%w: its UUID is %s, want %s", ErrOtherDisk, id.UUID, want.UUID)
	}
	if want.IndexDigest != "" && want.IndexDigest != id.IndexDigest {
		return fmt.Errorf("%w: the digest of its index is %s, want %s", ErrOtherDisk, id.IndexDigest, want.IndexDigest)
	}
	return nil
}
