// Package mkfs makes file systems with the programs of e2fsprogs.
package mkfs

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
)

// Ext4Options of a file system for a layer disk.
type Ext4Options struct {
	// Blocks of 4 KiB that the file system gets of the device.
	Blocks int64
	// Inodes there will be room for.
	Inodes int64
	// UUID of the file system, and seed of its directory hashes.
	UUID string
}

// ext4Features are those of Linux 4.4 and later, listed because each version of mke2fs has other defaults. Without a
// journal a reader never has anything to replay.
const ext4Features = "none,dir_index,dir_nlink,extent,extra_isize,filetype,flex_bg,huge_file,large_file,metadata_csum,sparse_super"

// Ext4 makes an ext4 file system on the device. All inode tables are written at once (no lazy initialisation, which a
// read-only mount would never finish), and all metadata lies together, so that a node reads it in few large requests.
func Ext4(ctx context.Context, device string, o Ext4Options) error {
	path, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		return fmt.Errorf("make ext4: mkfs.ext4 is not installed, it is in the package e2fsprogs: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	cmd := exec.CommandContext(ctx, path, "-F", "-q", "-b", "4096", "-m", "0", "-I", "256",
		"-O", ext4Features, "-E", "packed_meta_blocks=1,lazy_itable_init=0,nodiscard,hash_seed="+o.UUID,
		"-U", o.UUID, "-N", strconv.FormatInt(o.Inodes, 10), device, strconv.FormatInt(o.Blocks, 10))
	out, err := cmd.CombinedOutput()
	if err != nil {
		return errors.Join(fmt.Errorf("make ext4: %w: %s", err, strings.TrimSpace(string(out))), ctx.Err())
	}
	return nil
}
