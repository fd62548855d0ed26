// Package loopdev is the embedded block storage driver, for machines without a cloud: volumes and volume snapshots are
// sparse files below one directory, attached as loop devices. Besides its own volumes it attaches, read-only, disks
// that the user brought: a volume ID that is an absolute path is a file or a block device, which the driver never
// makes, changes, snapshots or deletes.
//
// Below the directory:
//
//	lock                       held by the one process that uses the directory
//	volumes/<name>/disk        the bytes of a volume; the ID is the name. The file may be that of a volume snapshot
//	                           and of other volumes too (a hard link): only a volume that has the file for
//	                           itself is written to
//	volumes/<name>/meta.json   what else is to be known of it
//	snapshots/<name>/…         the same for volume snapshots
//	attachments/<hash>.json    what is attached, written before it is attached
//
// Volumes and snapshots are made in a directory with a temporary name that gets its name when all is on the disk, and
// are deleted the other way round; Open deletes what a crash left under temporary names. Nothing here can survive if
// the file system below loses what was synced.
package loopdev

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

// Name of the driver in configurations and wherever volumes are named.
const Name = "loop"

// Driver plays all roles of package blockdev. It is safe for concurrent use; of one volume or snapshot, one operation
// runs at a time.
type Driver struct {
	blockdev.Attacher
	blockdev.Provisioner
	blockdev.VolumeSnapshotter
	files *files
	lock  *os.File
}

var (
	_ blockdev.Attacher          = (*Driver)(nil)
	_ blockdev.Provisioner       = (*Driver)(nil)
	_ blockdev.VolumeSnapshotter = (*Driver)(nil)
)

const (
	volumesDir     = "volumes"
	snapshotsDir   = "snapshots"
	attachmentsDir = "attachments"
	diskFile       = "disk"
	metaFile       = "meta.json"
	recordSuffix   = ".json"
	lockFile       = "lock"
	// tempPrefix is of names that no volume can have.
	tempPrefix = "."
)

// Open uses the directory dir, made if it is missing, and clears what a crash left there. Another process that has it
// open is blockdev.ErrInUse. What is attached stays attached.
func Open(dir string) (*Driver, error) {
	d, err := open(dir)
	if err != nil {
		return nil, fmt.Errorf("open loop driver: %w", err)
	}
	return d, nil
}

func open(dir string) (*Driver, error) {
	for _, name := range []string{volumesDir, snapshotsDir, attachmentsDir} {
		// 0700: the disks hold files of images, setuid ones among them.
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			return nil, err
		}
	}
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(dir))
	all := &files{dir: dir, crash: func(string) {}}
	held := &attachments{dir: filepath.Join(dir, attachmentsDir), tag: "berth:" + hex.EncodeToString(sum[:8])}
	if err := all.sweep(); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	d := &Driver{
		Attacher: &attacher{all, held}, Provisioner: &provisioner{all, held}, VolumeSnapshotter: &snapshotter{all, held},
		files: all, lock: lock,
	}
	return d, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("directory %s is used by another process: %w", dir, blockdev.ErrInUse)
		}
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Close lets other processes use the directory. What is attached stays attached. No operation may be running.
func (d *Driver) Close() error { return d.lock.Close() }

const maxNameBytes = 128

// checkName keeps names fit for a directory.
func checkName(kind, name string) error {
	ok := name != "" && len(name) <= maxNameBytes && !strings.HasPrefix(name, ".")
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("%s name %q: want 1 to %d of a-z, A-Z, 0-9, '.', '_' and '-', not beginning with '.': %w", kind, name, maxNameBytes, blockdev.ErrInvalid)
	}
	return nil
}
