package readahead

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/readahead/accesslist"
)

// errNotThere is what a list names that cannot be read ahead: it is missing, no regular file, or reached by a link or
// another mount.
var errNotThere = errors.New("no such file")

// layers are the open directories of the layers of a disk, by diff ID.
type layers map[digest.Digest]int

// openLayers opens those directories that the list has files of.
func openLayers(d *Disk, list *accesslist.List) (layers, error) {
	dirs := d.layerDirs(list.Image)
	open := make(layers)
	missing := make(map[digest.Digest]bool)
	for i := range list.Files {
		diffID := list.Files[i].DiffID
		if _, ok := open[diffID]; ok || missing[diffID] {
			continue
		}
		dir, ok := dirs[diffID]
		if !ok {
			missing[diffID] = true
			continue
		}
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("open layer directory %s: %w", dir, err), open.close())
		}
		open[diffID] = fd
	}
	return open, nil
}

func (l layers) close() error {
	var errs []error
	for _, fd := range l {
		errs = append(errs, unix.Close(fd))
	}
	return errors.Join(errs...)
}

// file opens a regular file of a layer and returns its size; anything else is errNotThere, and is not even opened: to
// open a FIFO may wait for ever, and a device may do anything.
func (l layers) file(diffID digest.Digest, path string) (fd int, size int64, err error) {
	dir, ok := l[diffID]
	if !ok {
		return -1, 0, errNotThere
	}
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
	}
	at, err := unix.Openat2(dir, path, &how)
	switch {
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV),
		errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSYS):
		return -1, 0, fmt.Errorf("open %q of layer %s: %w", path, diffID, err)
	case err != nil:
		return -1, 0, errNotThere
	}
	defer unix.Close(at) //nolint:errcheck // nothing can be written through it
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return -1, 0, fmt.Errorf("look at %q of layer %s: %w", path, diffID, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return -1, 0, errNotThere
	}
	fd, err = unix.Open("/proc/self/fd/"+strconv.Itoa(at), unix.O_RDONLY|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, 0, fmt.Errorf("open %q of layer %s for reading: %w", path, diffID, err)
	}
	return fd, st.Size, nil
}

// openDevice opens the block device, if it still is the one that was proved.
func openDevice(d *Disk) (*os.File, error) {
	f, err := os.Open(d.Device)
	if err != nil {
		return nil, fmt.Errorf("open device: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(fmt.Errorf("look at device %s: %w", d.Device, err), f.Close())
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != d.DeviceNumber {
		return nil, errors.Join(fmt.Errorf("device %s is another one by now", d.Device), f.Close())
	}
	return f, nil
}
