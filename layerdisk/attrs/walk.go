package attrs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/zeebo/blake3"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	// hashWorkers at most read file contents at once: enough to keep a disk busy that answers each read late.
	hashWorkers = 16
	hashBuffer  = 1 << 20
)

// FromDir lists the tree below dir, the root included, sorted. It follows no symbolic link below dir and refuses a
// directory on which another file system is mounted (errdefs.ErrFailedPrecondition), because that is not the layer's.
// So it is for layers and not for overlay mounts, whose files show the device numbers of their layers. The tree must
// not change meanwhile; a file that does is errdefs.ErrUnavailable. It needs the privileges to read every file and the
// trusted xattrs. Memory is that of the entries, about 200 bytes and the path each.
func FromDir(ctx context.Context, dir string) ([]Entry, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("list tree: %w", &os.PathError{Op: "open", Path: dir, Err: err})
	}
	var st unix.Stat_t
	if err := unix.Fstat(root, &st); err != nil {
		return nil, errors.Join(fmt.Errorf("list tree: stat %s: %w", dir, err), unix.Close(root))
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(min(hashWorkers, 2*runtime.GOMAXPROCS(0)))
	w := &walker{ctx: groupCtx, group: group, device: st.Dev, contents: make(map[inode][32]byte), links: make(map[inode][]int)}
	w.buffers.New = func() any { b := make([]byte, hashBuffer); return &b }
	walkErr := w.root(root)
	// Errors of the workers come first: they are what cancelled the walk.
	if err := errors.Join(group.Wait(), walkErr); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("list tree %s: %w", dir, err)
	}
	return w.finish(), nil
}

// inode of a tree, all of whose inodes are on one device.
type inode uint64

// walker goes through the directories in one goroutine and hashes the files in others.
type walker struct {
	ctx     context.Context //nolint:containedctx // lives as long as one call of FromDir
	group   *errgroup.Group
	device  uint64
	entries []Entry
	inodes  []inode // of entries, by index
	links   map[inode][]int
	buffers sync.Pool

	mu       sync.Mutex // guards contents
	contents map[inode][32]byte
}

func (w *walker) root(fd int) error {
	if err := w.add(fd, ".", "."); err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	return w.directory(fd, "")
}

// directory lists what is in the open directory, which it closes. Its path is empty for the root.
func (w *walker) directory(fd int, dirPath string) (err error) {
	f := os.NewFile(uintptr(fd), dirPath)
	defer func() { err = errors.Join(err, f.Close()) }()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("read directory %q: %w", Escape(dirPath), err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if err := w.add(fd, name, path.Join(dirPath, name)); err != nil {
			return err
		}
		e := &w.entries[len(w.entries)-1]
		switch e.Type {
		case Directory:
			child, err := w.open(fd, name, e.Path, unix.O_DIRECTORY)
			if err != nil {
				return err
			}
			if err := w.directory(child, e.Path); err != nil {
				return err
			}
		case Regular:
			if err := w.content(fd, name); err != nil {
				return err
			}
		case Symlink, CharDev, BlockDev, FIFO, Socket:
		}
	}
	return nil
}

// open opens the file that add has examined, and refuses a replacement.
func (w *walker) open(dirFD int, name, fullPath string, flags int) (int, error) {
	fd, err := unix.Openat(dirFD, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return -1, fmt.Errorf("open %q: %w", Escape(fullPath), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Dev != w.device || inode(st.Ino) != w.inodes[len(w.inodes)-1] {
		return -1, errors.Join(changed(fullPath, err), unix.Close(fd))
	}
	return fd, nil
}

func changed(fullPath string, err error) error {
	return errors.Join(fmt.Errorf("%q changed while it was read: %w", Escape(fullPath), errdefs.ErrUnavailable), err)
}

// content queues the file of the last entry for hashing, once for all its names.
func (w *walker) content(dirFD int, name string) error {
	e := w.entries[len(w.entries)-1]
	ino := w.inodes[len(w.inodes)-1]
	if len(w.links[ino]) > 1 {
		return nil
	}
	fd, err := w.open(dirFD, name, e.Path, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	w.group.Go(func() (err error) {
		defer func() { err = errors.Join(err, f.Close()) }()
		sum, size, err := w.hash(f)
		if err != nil {
			return fmt.Errorf("read %q: %w", Escape(e.Path), err)
		}
		if size != e.Size {
			return changed(e.Path, nil)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.contents[ino] = sum
		return nil
	})
	return nil
}

func (w *walker) hash(f *os.File) (sum [32]byte, size int64, err error) {
	buf, ok := w.buffers.Get().(*[]byte)
	if !ok {
		return sum, 0, errors.New("no buffer")
	}
	defer w.buffers.Put(buf)
	h := blake3.New()
	for {
		if err := w.ctx.Err(); err != nil {
			return sum, size, err
		}
		n, err := f.Read(*buf)
		size += int64(n)
		_, _ = h.Write((*buf)[:n]) // a hash never fails to write
		if errors.Is(err, io.EOF) {
			h.Sum(sum[:0])
			return sum, size, nil
		}
		if err != nil {
			return sum, size, err
		}
	}
}

// add appends the entry of a name in an open directory.
func (w *walker) add(dirFD int, name, fullPath string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dirFD, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat %q: %w", Escape(fullPath), err)
	}
	if st.Dev != w.device {
		return fmt.Errorf("another file system is mounted on %q: unmount it first: %w", Escape(fullPath), errdefs.ErrFailedPrecondition)
	}
	e := Entry{
		Path: fullPath, Mode: st.Mode & maxMode, UID: st.Uid, GID: st.Gid,
		MtimeSec: st.Mtim.Sec, MtimeNsec: uint32(st.Mtim.Nsec), //nolint:gosec // less than 1e9
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = Regular, st.Size
	case unix.S_IFDIR:
		e.Type = Directory
	case unix.S_IFLNK:
		target, err := readLink(dirFD, name)
		if err != nil {
			return fmt.Errorf("read symbolic link %q: %w", Escape(fullPath), err)
		}
		e.Type, e.Target, e.Size = Symlink, target, int64(len(target))
	case unix.S_IFCHR, unix.S_IFBLK:
		e.Type, e.DevMajor, e.DevMinor = CharDev, unix.Major(st.Rdev), unix.Minor(st.Rdev)
		if st.Mode&unix.S_IFMT == unix.S_IFBLK {
			e.Type = BlockDev
		}
	case unix.S_IFIFO:
		e.Type = FIFO
	case unix.S_IFSOCK:
		e.Type = Socket
	}
	var err error
	// The directory is open, so this path leads straight into it; only its last element could be a link, which the
	// calls for it do not follow. Unlike getxattrat(2) it works on every kernel.
	if e.Xattrs, err = readXattrs("/proc/self/fd/" + strconv.Itoa(dirFD) + "/" + name); err != nil {
		return fmt.Errorf("read xattrs of %q: %w", Escape(fullPath), err)
	}
	if err := e.check(); err != nil {
		return fmt.Errorf("list %q: %w: %w", Escape(fullPath), err, errdefs.ErrInvalidArgument)
	}
	ino := inode(st.Ino)
	if st.Nlink > 1 && e.Type != Directory {
		w.links[ino] = append(w.links[ino], len(w.entries))
	}
	w.entries, w.inodes = append(w.entries, e), append(w.inodes, ino)
	return nil
}

// finish joins contents and hard links to the entries and sorts them.
func (w *walker) finish() []Entry {
	for i := range w.entries {
		if w.entries[i].Type == Regular {
			w.entries[i].Content = w.contents[w.inodes[i]]
		}
	}
	for _, group := range w.links {
		first := slices.MinFunc(group, func(a, b int) int { return Compare(w.entries[a], w.entries[b]) })
		for _, i := range group {
			if i != first {
				w.entries[i].HardLink, w.entries[i].Content = w.entries[first].Path, [32]byte{}
			}
		}
	}
	slices.SortFunc(w.entries, Compare)
	return w.entries
}
