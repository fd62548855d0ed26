// Package recorder finds out what is read from a mounted layer disk, page by page and in order, and makes an access
// list of it.
//
// Pages that are in the page cache already are read by nobody, so a disk has to be cold: mounted just now, by a mount
// that nobody else has used. ColdMount makes one of any disk, also of one that is mounted and warm elsewhere: a loop
// device over its device or file is another block device, whose file system is another one to the kernel and shares no
// cache.
//
// Two ways lead there. MethodTrace has the kernel write down every page that comes into the page cache (tracepoint
// filemap:mm_filemap_add_to_page_cache in a tracefs instance of its own): everything, in order, at no cost that could
// be measured. Where tracing is locked down, MethodOpen notes which files are opened (fanotify on the whole file
// system) and looks afterwards which of their pages are cached (mincore): the same files in order of their opening, but
// no order within and among the metadata.
package recorder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/readahead/accesslist"
)

// Method of recording.
type Method string

// Methods of recording.
const (
	// MethodAny is MethodTrace, or MethodOpen where the kernel refuses it.
	MethodAny   Method = ""
	MethodTrace Method = "trace"
	MethodOpen  Method = "open"
)

// Target is a mounted layer disk.
type Target struct {
	// Device that is mounted, and the directory it is mounted on.
	Device, MountPoint string
	// Disk is the index digest.
	Disk digest.Digest
	// Layers whose files are of interest, the others' are left out.
	Layers []Layer
	// NotSelf leaves out what this process reads itself, such as ahead of others. MethodOpen cannot tell it apart.
	NotSelf bool
}

// Layer of a disk.
type Layer struct {
	DiffID digest.Digest
	// Path of its directory below the mount point, such as l/1a.
	Path string
}

// Summary of a recording.
type Summary struct {
	Method Method
	// Lost counts pages that came faster than they could be noted down.
	Lost int64
	// Unknown counts inodes that are in none of the layers, such as the disk's own files.
	Unknown int
	// Duration of the recording.
	Duration time.Duration
}

// source notes down what is read.
type source interface {
	// stop ends it and gives what was read, in order.
	stop(ctx context.Context) (observed, error)
	// close ends it without a result. It may be called after stop.
	close() error
}

// observed is what was read.
type observed struct {
	// parts of files by inode, in the order of first access.
	parts []part
	// metadata of the block device.
	metadata []accesslist.Range
	// opened are inodes whose cached pages have to be looked up.
	opened []uint64
	lost   int64
}

// part of a file. Offsets and lengths are in bytes, and whole pages.
type part struct {
	inode          uint64
	offset, length int64
}

// Recording is one that runs. It is not safe for concurrent use.
type Recording struct {
	target  Target
	method  Method
	source  source
	started time.Time
}

// Start notes down all that is read from the disk from now on. The caller stops or closes the recording. A kernel that
// offers none of the methods is errdefs.ErrNotImplemented, missing privileges errdefs.ErrPermissionDenied.
func Start(ctx context.Context, t Target, method Method) (*Recording, error) {
	r := &Recording{target: t, method: method}
	var errs []error
	if method == MethodAny || method == MethodTrace {
		src, err := startTrace(ctx, t)
		if err == nil {
			r.source, r.method = src, MethodTrace
		}
		errs = append(errs, err)
	}
	if r.source == nil && (method == MethodAny || method == MethodOpen) && ctx.Err() == nil {
		src, err := startOpens(ctx, t)
		if err == nil {
			r.source, r.method = src, MethodOpen
		}
		errs = append(errs, err)
	}
	if r.source == nil {
		return nil, fmt.Errorf("record what is read from %s: %w", t.Device, classify(errors.Join(errs...)))
	}
	r.started = time.Now()
	return r, nil
}

// classify adds the class of what the kernel said.
func classify(err error) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: run as root, on a kernel that is not locked down: %w", err, errdefs.ErrPermissionDenied)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENODEV), errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: the kernel has no tracing and no fanotify for it: %w", err, errdefs.ErrNotImplemented)
	}
	return err
}

// Method that is in use.
func (r *Recording) Method() Method { return r.method }

// Stop ends the recording and makes the list, whose Image and Platform the caller sets. The disk has to be still
// mounted: the files are looked up by inode, which reads the directories of the layers. Stop closes the recording, also
// if it fails.
func (r *Recording) Stop(ctx context.Context) (*accesslist.List, Summary, error) {
	sum := Summary{Method: r.method, Duration: time.Since(r.started)}
	list := &accesslist.List{Recorded: r.started.UTC().Truncate(time.Second), Disk: r.target.Disk}
	seen, err := r.source.stop(ctx)
	if err = errors.Join(err, r.source.close()); err != nil {
		return nil, sum, fmt.Errorf("end recording of %s: %w", r.target.Device, err)
	}
	names, err := r.target.find(ctx, seen)
	if err != nil {
		return nil, sum, fmt.Errorf("find the files that were read from %s: %w", r.target.Device, err)
	}
	sum.Lost = seen.lost
	if len(seen.opened) > 0 {
		if seen.parts, err = cachedParts(ctx, r.target.MountPoint, seen.opened, names); err != nil {
			return nil, sum, fmt.Errorf("find cached pages: %w", err)
		}
	}
	list.Metadata = seen.metadata
	unknown := make(map[uint64]bool)
	for _, p := range seen.parts {
		n, ok := names[p.inode]
		switch {
		case !ok:
			unknown[p.inode] = true
		case n.dir:
			list.Metadata = append(list.Metadata, n.blocks(p)...)
		default:
			list.Files = append(list.Files, accesslist.FileRange{DiffID: n.diffID, Path: n.path, Offset: p.offset, Length: p.length})
		}
	}
	sum.Unknown = len(unknown)
	list.Metadata = list.Metadata[:min(len(list.Metadata), accesslist.MaxRanges)]
	list.Files = list.Files[:min(len(list.Files), accesslist.MaxRanges)]
	return list, sum, nil
}

// Close ends the recording without a result. After Stop it does nothing.
func (r *Recording) Close() error { return r.source.close() }

// numberOf is the number of the target's device as the kernel itself writes it (include/linux/kdev_t.h, MKDEV).
func (t Target) numberOf() (uint64, error) {
	number, err := device.Number(t.Device)
	if err != nil {
		return 0, err
	}
	var st unix.Stat_t
	if err := unix.Stat(t.MountPoint, &st); err != nil {
		return 0, fmt.Errorf("look at mount %s: %w", t.MountPoint, err)
	}
	if st.Dev != number {
		return 0, fmt.Errorf("device %s is not what is mounted on %s: %w", t.Device, t.MountPoint, errdefs.ErrInvalidArgument)
	}
	return uint64(unix.Major(number))<<20 | uint64(unix.Minor(number)), nil
}
