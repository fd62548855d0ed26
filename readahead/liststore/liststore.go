// Package liststore has access lists as files of a directory, one list in each, under any name: those that an
// administrator recorded for the disks of a node, or copied there.
package liststore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/readahead/accesslist"
)

// MaxFiles that are looked at; a node starts far fewer images.
const MaxFiles = 10_000

// Dir is safe for concurrent use. It looks at the directory again each time it is asked, and keeps no list in memory.
type Dir struct {
	path string

	mu sync.Mutex // guards seen
	// seen are the files by name, as they were when they were read last.
	seen map[string]file
}

// file that was read; image is empty if it has no list.
type file struct {
	size     int64
	modified time.Time
	image    string
}

// Open a directory, which need not be there.
func Open(path string) *Dir { return &Dir{path: path, seen: make(map[string]file)} }

// Lists of an image by its normalised reference, the one recorded last first. None is errdefs.ErrNotFound. Files that
// have no list are told in problems, each time anew.
func (d *Dir) Lists(ctx context.Context, image string) (lists []*accesslist.List, problems, err error) {
	entries, err := os.ReadDir(d.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("look for access lists: %w", err)
	}
	if len(entries) > MaxFiles {
		problems = fmt.Errorf("%s has %d files, only the first %d are looked at", d.path, len(entries), MaxFiles)
		entries = entries[:MaxFiles]
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := make(map[string]file, len(entries))
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, problems, err
		}
		if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), hidden) {
			continue
		}
		f, list, err := d.look(e, image)
		if err != nil {
			problems = errors.Join(problems, err)
			continue
		}
		now[e.Name()] = f
		if list != nil {
			lists = append(lists, list)
		}
	}
	d.seen = now
	if len(lists) == 0 {
		return nil, problems, fmt.Errorf("%s has no access list of %s: %w", d.path, image, errdefs.ErrNotFound)
	}
	slices.SortStableFunc(lists, func(a, b *accesslist.List) int { return b.Recorded.Compare(a.Recorded) })
	return lists, problems, nil
}

// Put writes a list to a file of its own, in place of the one that was put of the same image and platform. A crash
// leaves the old one or the new one.
func (d *Dir) Put(l *accesslist.List) error {
	data, err := l.Encode()
	if err == nil {
		err = d.write(putPrefix+digest.FromString(l.Image+" "+l.Platform).Encoded(), data)
	}
	if err != nil {
		return fmt.Errorf("keep access list: %w", err)
	}
	return nil
}

// putPrefix is of files that Put writes, hidden of those that are not complete.
const (
	putPrefix = "recorded-"
	hidden    = "."
)

func (d *Dir) write(name string, data []byte) error {
	if err := os.MkdirAll(d.path, 0o755); err != nil { //nolint:gosec // nothing in a list is secret
		return err
	}
	f, err := os.CreateTemp(d.path, hidden+name+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), filepath.Join(d.path, name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// look at a file, and read it if it is new or has the list that is wanted.
func (d *Dir) look(e fs.DirEntry, image string) (file, *accesslist.List, error) {
	info, err := e.Info()
	if err != nil {
		return file{}, nil, fmt.Errorf("look at access list: %w", err)
	}
	f := file{size: info.Size(), modified: info.ModTime()}
	old, known := d.seen[e.Name()]
	if known && old.size == f.size && old.modified.Equal(f.modified) && old.image != image {
		return old, nil, nil
	}
	list, err := read(filepath.Join(d.path, e.Name()))
	if err != nil {
		return file{}, nil, err
	}
	f.image = list.Image
	if list.Image != image {
		list = nil
	}
	return f, list, nil
}

// read a list from a regular file: whoever can write to the directory must not make us wait at a FIFO.
func read(path string) (*accesslist.List, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read access list: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("read access list %s: not a regular file", path), err)
	}
	data, err := io.ReadAll(io.LimitReader(f, accesslist.MaxEncodedBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read access list %s: %w", path, err)
	}
	list, err := accesslist.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("read access list %s: %w", path, err)
	}
	return list, nil
}
