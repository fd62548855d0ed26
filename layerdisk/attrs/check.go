package attrs

import (
	"errors"
	"fmt"
	"path"
	"strings"
)

// Limits of an entry. They are those of Linux (linux/limits.h, linux/xattr.h).
const (
	// MaxPathBytes of an entry's path and of a symbolic link's target.
	MaxPathBytes = 4095
	// MaxNameBytes of one element of a path.
	MaxNameBytes = 255
	// MaxXattrNameBytes includes the prefix such as "security.".
	MaxXattrNameBytes = 255
	// MaxXattrValueBytes of one extended attribute.
	MaxXattrValueBytes = 64 << 10
	// MaxXattrListBytes of all names of one inode, each ending in a NUL.
	MaxXattrListBytes = 64 << 10
	// MaxXattrsBytes of all values of one inode. EROFS can keep a quarter of it.
	MaxXattrsBytes = 1 << 20

	maxMode = 0o7777
)

// Listed says whether an extended attribute belongs to a layer, and so to a listing. All do, in every name space, but
// the labels of SELinux and Smack: the kernel of a node with such a policy answers with its own label for every file,
// whatever the disk says, so the value read describes the node and not the layer. A layer may carry them, as those
// built on such a node do; encoding and comparing pass over them.
func Listed(xattr string) bool {
	return xattr != "security.selinux" && !strings.HasPrefix(xattr, "security.SMACK64")
}

// check refuses what no file system can hold, and what would give one tree two listings.
func (e *Entry) check() error {
	if err := checkPath(e.Path); err != nil {
		return err
	}
	if e.Mode&^uint32(maxMode) != 0 {
		return fmt.Errorf("mode %#o has bits other than %#o", e.Mode, maxMode)
	}
	if e.MtimeNsec >= 1e9 {
		return fmt.Errorf("mtime has %d nanoseconds", e.MtimeNsec)
	}
	if e.HardLink != "" {
		if e.Type == Directory {
			return errors.New("directory is a hard link")
		}
		if err := checkPath(e.HardLink); err != nil {
			return fmt.Errorf("hard link: %w", err)
		}
		if e.HardLink >= e.Path {
			return fmt.Errorf("hard link to %q, which does not stand before it", Escape(e.HardLink))
		}
	}
	if err := e.checkType(); err != nil {
		return err
	}
	return checkXattrs(e.Xattrs)
}

// checkType refuses attributes that the entry's type does not have.
func (e *Entry) checkType() error {
	isDevice := e.Type == CharDev || e.Type == BlockDev
	if !isDevice && (e.DevMajor != 0 || e.DevMinor != 0) {
		return fmt.Errorf("device numbers on type %q", string(e.Type))
	}
	if e.Type != Symlink && e.Target != "" {
		return fmt.Errorf("target on type %q", string(e.Type))
	}
	if e.Content != [32]byte{} && (e.Type != Regular || e.HardLink != "") {
		return errors.New("content on an entry that has none of its own")
	}
	switch e.Type {
	case Regular:
		if e.Size < 0 {
			return fmt.Errorf("size %d is negative", e.Size)
		}
		return nil
	case Symlink:
		if e.Target == "" || len(e.Target) > MaxPathBytes || strings.ContainsRune(e.Target, 0) {
			return fmt.Errorf("target of %d bytes is empty, longer than %d or holds a NUL", len(e.Target), MaxPathBytes)
		}
		if e.Size != int64(len(e.Target)) {
			return fmt.Errorf("size is %d, the target has %d bytes", e.Size, len(e.Target))
		}
		return nil
	case Directory, CharDev, BlockDev, FIFO, Socket:
		if e.Size != 0 {
			return fmt.Errorf("size %d on type %q", e.Size, string(e.Type))
		}
		return nil
	}
	return fmt.Errorf("unknown type %q", string(e.Type))
}

// checkPath wants the one spelling of a path below the root.
func checkPath(p string) error {
	if len(p) > MaxPathBytes {
		return fmt.Errorf("path of %d bytes is longer than %d", len(p), MaxPathBytes)
	}
	if p == "" || p[0] == '/' || p == ".." || strings.HasPrefix(p, "../") || path.Clean(p) != p || strings.ContainsRune(p, 0) {
		return fmt.Errorf("path %q is not a clean path below the root", Escape(p))
	}
	for name := range strings.SplitSeq(p, "/") {
		if len(name) > MaxNameBytes {
			return fmt.Errorf("path has an element of %d bytes, longer than %d", len(name), MaxNameBytes)
		}
	}
	return nil
}

func checkXattrs(xattrs map[string][]byte) error {
	listBytes, valueBytes := 0, 0
	for name, value := range xattrs {
		listBytes += len(name) + 1
		valueBytes += len(value)
		if name == "" || len(name) > MaxXattrNameBytes || strings.ContainsRune(name, 0) {
			return fmt.Errorf("xattr name of %d bytes is empty, longer than %d or holds a NUL", len(name), MaxXattrNameBytes)
		}
		if len(value) > MaxXattrValueBytes {
			return fmt.Errorf("xattr %s has %d bytes, more than %d", Escape(name), len(value), MaxXattrValueBytes)
		}
	}
	if listBytes > MaxXattrListBytes {
		return fmt.Errorf("names of xattrs have %d bytes, more than %d", listBytes, MaxXattrListBytes)
	}
	if valueBytes > MaxXattrsBytes {
		return fmt.Errorf("values of xattrs have %d bytes, more than %d", valueBytes, MaxXattrsBytes)
	}
	return nil
}
