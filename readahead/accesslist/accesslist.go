// Package accesslist says what the start of an image reads from a layer disk, in the order of first access, so that
// another node can read it ahead (package readahead) and the builder can place it together.
//
// A list names parts of files by layer and path, which are the same on every disk that has the layer, and parts of the
// block device, where the file system's own data lies, which belong to one disk. Package recorder makes lists.
//
// A list decides what is read early and nothing else: a wrong one wastes reads. It is hostile input all the same, so
// Decode bounds and checks all of it, and whoever opens its paths must not leave the layer's directory.
package accesslist

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// Limits of a list. The recorded start of a Python program with scientific libraries has 2,000 files and 100 MB.
const (
	// MaxRanges of each kind.
	MaxRanges = 1 << 18
	// MaxBytes is the sum of all lengths of each kind: no start that is worth reading ahead reads more.
	MaxBytes = 64 << 30
	// MaxLayers that the files are in: those of some images.
	MaxLayers = 1 << 12

	maxPathBytes = 4095 // PATH_MAX without its NUL, linux/limits.h
	maxNameBytes = 255  // NAME_MAX
	maxTextBytes = 1 << 10
)

// List is what starts of an image read first from a layer disk, in the order of first access.
type List struct {
	// Image is the normalised reference that was started.
	Image string
	// Platform as os/architecture[/variant].
	Platform string
	// Recorded is when, in seconds.
	Recorded time.Time
	// Disk is the index digest of the disk that Metadata belongs to, empty if there is none.
	Disk digest.Digest
	// Metadata are parts of the block device: inodes and directories of the file system.
	Metadata []Range
	// Files are parts of layers, valid on any disk that has the layer. A file may appear several times, with other
	// parts.
	Files []FileRange
}

// Range is a part of a block device, in bytes.
type Range struct{ Offset, Length int64 }

// FileRange is a part of a regular file of a layer, in bytes. It may end behind the end of the file.
type FileRange struct {
	// DiffID of the layer.
	DiffID digest.Digest
	// Path below the layer's directory, any bytes but NUL: relative and clean, no "." and no "..".
	Path           string
	Offset, Length int64
}

// Check refuses what no recorder makes with errdefs.ErrInvalidArgument.
func (l *List) Check() error {
	if err := l.check(); err != nil {
		return fmt.Errorf("access list: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return nil
}

func (l *List) check() error {
	for _, t := range []struct{ name, value string }{{"image", l.Image}, {"platform", l.Platform}} {
		if t.value == "" || len(t.value) > maxTextBytes || !utf8.ValidString(t.value) || strings.ContainsFunc(t.value, unprintable) {
			return fmt.Errorf("%s %.80q: want 1 to %d bytes without spaces and control characters", t.name, t.value, maxTextBytes)
		}
	}
	if year := l.Recorded.UTC().Year(); year < 1 || year > 9999 {
		return fmt.Errorf("recorded in the year %d", year)
	}
	if l.Disk != "" || len(l.Metadata) > 0 {
		if err := l.Disk.Validate(); err != nil {
			return fmt.Errorf("index digest of the disk %.80q: %w", l.Disk, err)
		}
	}
	if len(l.Metadata) > MaxRanges || len(l.Files) > MaxRanges {
		return fmt.Errorf("%d parts of the device and %d of files, at most %d of each are allowed", len(l.Metadata), len(l.Files), MaxRanges)
	}
	sum := int64(0)
	for _, r := range l.Metadata {
		if err := checkRange(r.Offset, r.Length, &sum); err != nil {
			return fmt.Errorf("metadata: %w", err)
		}
	}
	return l.checkFiles()
}

func (l *List) checkFiles() error {
	sum := int64(0)
	layers := make(map[digest.Digest]bool)
	var last string // most parts follow one of the same file
	for i := range l.Files {
		f := &l.Files[i]
		if !layers[f.DiffID] {
			if err := f.DiffID.Validate(); err != nil {
				return fmt.Errorf("diff ID %.80q: %w", f.DiffID, err)
			}
			if layers[f.DiffID] = true; len(layers) > MaxLayers {
				return fmt.Errorf("more than %d layers", MaxLayers)
			}
		}
		if f.Path != last || last == "" {
			if err := checkPath(f.Path); err != nil {
				return err
			}
			last = f.Path
		}
		if err := checkRange(f.Offset, f.Length, &sum); err != nil {
			return fmt.Errorf("%.80q: %w", f.Path, err)
		}
	}
	return nil
}

func unprintable(r rune) bool { return r <= ' ' || r == 0x7f }

func checkRange(offset, length int64, sum *int64) error {
	if offset < 0 || length <= 0 || offset > layerdisk.MaxContentBytes || length > layerdisk.MaxContentBytes-offset {
		return fmt.Errorf("%d bytes from %d: want a part of what a disk can hold", length, offset)
	}
	if *sum += length; *sum > MaxBytes {
		return fmt.Errorf("more than %d bytes together", int64(MaxBytes))
	}
	return nil
}

// checkPath is fs.ValidPath for names of any bytes, and with the bounds of the kernel.
func checkPath(path string) error {
	if path == "" || len(path) > maxPathBytes || strings.ContainsRune(path, 0) {
		return fmt.Errorf("path %.80q: want 1 to %d bytes without NUL", path, maxPathBytes)
	}
	for name := range strings.SplitSeq(path, "/") {
		if name == "" || name == "." || name == ".." || len(name) > maxNameBytes {
			return fmt.Errorf("path %.80q: want a clean relative path with names of at most %d bytes", path, maxNameBytes)
		}
	}
	return nil
}

// Size is the sum of all lengths, in bytes.
func (l *List) Size() (metadata, files int64) {
	for _, r := range l.Metadata {
		metadata += r.Length
	}
	for _, f := range l.Files {
		files += f.Length
	}
	return metadata, files
}

// FileCount is how many different files the list has.
func (l *List) FileCount() int {
	type file struct {
		diffID digest.Digest
		path   string
	}
	seen := make(map[file]struct{})
	for _, f := range l.Files {
		seen[file{f.DiffID, f.Path}] = struct{}{}
	}
	return len(seen)
}

// For gives the part of the list that is valid on a disk: files of layers that it has, and metadata if it is the very
// disk that the list was recorded on. What lies behind the end of the device of diskBytes is cut off. The list itself
// does not change. A list with nothing left is errdefs.ErrNotFound.
func (l *List) For(ix *layerdisk.Index, identity layerdisk.Identity, diskBytes int64) (*List, error) {
	there := make(map[digest.Digest]bool, len(ix.Layers))
	for i := range ix.Layers {
		there[ix.Layers[i].DiffID] = true
	}
	part := &List{Image: l.Image, Platform: l.Platform, Recorded: l.Recorded}
	for _, f := range l.Files {
		if there[f.DiffID] {
			part.Files = append(part.Files, f)
		}
	}
	if l.Disk == identity.IndexDigest {
		part.Disk = l.Disk
		for _, r := range l.Metadata {
			if r.Offset < diskBytes {
				part.Metadata = append(part.Metadata, Range{r.Offset, min(r.Length, diskBytes-r.Offset)})
			}
		}
	}
	if len(part.Files) == 0 && len(part.Metadata) == 0 {
		return nil, fmt.Errorf("access list of %s has nothing of disk %s: record the image again: %w", l.Image, identity.UUID, errdefs.ErrNotFound)
	}
	return part, nil
}
