package readahead

import (
	"errors"
	"fmt"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/erofs"
	"berth.dev/berth/readahead/accesslist"
)

// maxMetadata is read ahead without a list: that of a disk with about 600,000 files. More would delay what the start
// needs.
const maxMetadata = 64 << 20

// errNothing is there to read: neither a list, nor metadata that is known.
var errNothing = errors.New("it is not known where the file system has its metadata")

// metadataOf an EROFS, which has all inodes and directories in one place; of others it is not known, which is
// errNothing.
func metadataOf(d *Disk, image string) (*accesslist.List, error) {
	if d.Index.FileSystem != layerdisk.FileSystemEROFS {
		return nil, fmt.Errorf("no access list of %s: %w, which is %s", image, errNothing, d.Index.FileSystem)
	}
	f, err := openDevice(d)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // opened for reading
	fs, err := erofs.Open(f)
	if errors.Is(err, erofs.ErrDamaged) {
		return nil, fmt.Errorf("no access list of %s: %w: %w", image, errNothing, err) // one that others wrote
	}
	if err != nil {
		return nil, fmt.Errorf("look for metadata on %s: %w", d.Device, err)
	}
	offset, length := fs.Metadata()
	length = min(length, d.SizeBytes-offset, maxMetadata)
	if offset <= 0 || length <= 0 {
		return nil, fmt.Errorf("no access list of %s: %w: mixed with data", image, errNothing) // as mkfs.erofs does
	}
	return &accesslist.List{
		Image: image, Disk: d.Identity.IndexDigest, Metadata: []accesslist.Range{{Offset: offset, Length: length}},
	}, nil
}
