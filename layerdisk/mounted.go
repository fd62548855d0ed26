package layerdisk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Mounted is a layer disk whose file system is mounted, and whose every layer directory has been found to be one. It
// holds no file open, so it does not keep the disk from being unmounted.
type Mounted struct {
	// Dir is where the file system is mounted, as given to OpenMounted.
	Dir      string
	Index    *Index
	Identity Identity
}

// layerChecks at once: a disk that is fetched lazily answers each first touch in some ten milliseconds, and looking at
// all layers' roots together makes the first overlay mount as fast as on a local disk.
const layerChecks = 16

// OpenMounted checks that the file system mounted at dir is the wanted disk (a zero Identity takes any) and that its
// layers are real directories of that same file system: no symbolic link is followed and no other mount is crossed, so
// that no path from LayerDir leads off the disk as long as the file system stays read-only. Errors are ErrOtherDisk,
// ErrNotLayerDisk, ErrVersion, ErrCorrupt, and those of the file system.
func OpenMounted(ctx context.Context, dir string, want Identity) (*Mounted, error) {
	root, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // opened for reading
	ix, id, err := root.readIndex()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	if err := id.Check(want); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(layerChecks)
	for i := range ix.Layers {
		group.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return root.checkDir(LayerDir(ix.Layers[i].Number))
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	return &Mounted{Dir: dir, Index: ix, Identity: id}, nil
}

// LayerDir is the path of the tree of a layer of the index.
func (m *Mounted) LayerDir(number int) string {
	return filepath.Join(m.Dir, filepath.FromSlash(LayerDir(number)))
}

// ReadMountedIndex reads and checks the index of the file system mounted at dir, and nothing else of it. Errors are as
// those of OpenMounted.
func ReadMountedIndex(dir string) (*Index, Identity, error) {
	root, err := openRoot(dir)
	if err != nil {
		return nil, Identity{}, err
	}
	defer root.Close() //nolint:errcheck // opened for reading
	ix, id, err := root.readIndex()
	if err != nil {
		return nil, Identity{}, fmt.Errorf("%s: %w", dir, err)
	}
	return ix, id, nil
}

// ReadMountedFile reads a regular file of the disk mounted at dir by its path below the root, with slashes, following
// no symbolic link and crossing no mount. More than maxBytes is ErrCorrupt, a missing file fs.ErrNotExist.
func ReadMountedFile(dir, name string, maxBytes int64) ([]byte, error) {
	root, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // opened for reading
	return root.readFile(name, maxBytes)
}

// ReadMountedDir gives the names in a directory of the disk mounted at dir, sorted, on the same terms as
// ReadMountedFile.
func ReadMountedDir(dir, name string) ([]string, error) {
	root, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close() //nolint:errcheck // opened for reading
	if err := root.checkDir(name); err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(root.FS(), name)
	if err != nil {
		return nil, fmt.Errorf("read directory %s: %w", name, err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// CheckLayerDir checks one layer directory of the disk mounted at dir as OpenMounted does with all of them.
func CheckLayerDir(dir string, number int) error {
	root, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // opened for reading
	return root.checkDir(LayerDir(number))
}

// diskRoot walks a mounted disk without ever leaving it.
type diskRoot struct {
	*os.Root
	device uint64
}

func openRoot(dir string) (*diskRoot, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open mounted layer disk: %w", err)
	}
	info, err := root.Stat(".")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open mounted layer disk: %w", err), root.Close())
	}
	return &diskRoot{root, deviceOf(info)}, nil
}

func deviceOf(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return st.Dev
	}
	return 0
}

func (r *diskRoot) readIndex() (*Index, Identity, error) {
	data, err := r.readFile(IndexPath, MaxIndexBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, Identity{}, fmt.Errorf("%w: it has no %s", ErrNotLayerDisk, IndexPath)
	}
	if err != nil {
		return nil, Identity{}, err
	}
	return ParseIdentified(data)
}

// checkDir wants every element of the path to be a directory of the disk's own file system. os.Root alone would follow
// symbolic links that stay below the root, but a lower directory of an overlay must not be reached through one: an
// id-mapped clone of the disk does not contain the link's target.
func (r *diskRoot) checkDir(name string) error {
	at := ""
	for element := range strings.SplitSeq(name, "/") {
		at = path.Join(at, element)
		info, err := r.Lstat(filepath.FromSlash(at))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: directory %s is missing: %w", ErrCorrupt, at, err)
		}
		if err != nil {
			return fmt.Errorf("look at directory %s: %w", at, err)
		}
		if !info.IsDir() {
			return fmt.Errorf("%w: %s is not a directory but has mode %s", ErrCorrupt, at, info.Mode())
		}
		if deviceOf(info) != r.device {
			return fmt.Errorf("%w: %s is on another file system than the disk's root: something is mounted there", ErrCorrupt, at)
		}
	}
	return nil
}

// readFile looks at the name before it opens it, because os.Root follows symbolic links that stay below the root even
// when told not to, and makes sure that it has opened what it has looked at.
func (r *diskRoot) readFile(name string, maxBytes int64) ([]byte, error) {
	if err := r.checkDir(path.Dir(name)); err != nil {
		return nil, err
	}
	seen, err := r.Lstat(filepath.FromSlash(name))
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", name, err)
	}
	if !seen.Mode().IsRegular() || deviceOf(seen) != r.device {
		return nil, fmt.Errorf("%w: %s is not a regular file of the disk's file system but has mode %s", ErrCorrupt, name, seen.Mode())
	}
	if seen.Size() > maxBytes {
		return nil, fmt.Errorf("%w: %s has %d bytes, at most %d are allowed", ErrCorrupt, name, seen.Size(), maxBytes)
	}
	f, err := r.OpenFile(filepath.FromSlash(name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	if opened, err := f.Stat(); err != nil || !os.SameFile(seen, opened) {
		return nil, fmt.Errorf("open %s: it was replaced meanwhile: %w", name, errors.Join(ErrCorrupt, err))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxBytes))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return data, nil
}
