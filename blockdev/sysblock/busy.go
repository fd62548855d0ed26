package sysblock

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Written are the numbers of the devices that file systems mounted for writing, or swap areas, lie on. Those of other
// mount namespaces are not known.
func Written(roots Roots) (map[uint64]bool, error) {
	roots = roots.Filled()
	f, err := os.Open(filepath.Join(roots.Proc, "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("list devices in use: %w", err)
	}
	defer f.Close()
	infos, err := mountinfo.GetMountsFromReader(f, nil)
	if err != nil {
		return nil, fmt.Errorf("list devices in use: %w", err)
	}
	written := make(map[uint64]bool)
	for _, m := range infos {
		if readOnly(m.VFSOptions) {
			continue
		}
		written[unix.Mkdev(uint32(m.Major), uint32(m.Minor))] = true //nolint:gosec // the kernel's numbers are 32 bits
		// btrfs and others have a number of their own, their source is the device.
		if n, ok := deviceNumber(m.Source); ok {
			written[n] = true
		}
	}
	swaps, err := os.ReadFile(filepath.Join(filepath.Dir(roots.Proc), "swaps"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without swap
		return nil, fmt.Errorf("list devices in use: %w", err)
	}
	for line := range bytes.Lines(swaps) {
		if fields := strings.Fields(string(line)); len(fields) > 0 {
			if n, ok := deviceNumber(fields[0]); ok {
				written[n] = true
			}
		}
	}
	return written, nil
}

func readOnly(options string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == "ro" {
			return true
		}
	}
	return false
}

// deviceNumber of a block device; what is none has none. The path is only looked at if it can be one, because looking
// at others, such as a dead network file system, may hang.
func deviceNumber(path string) (uint64, bool) {
	var st unix.Stat_t
	if !strings.HasPrefix(path, "/dev/") || unix.Stat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, false
	}
	return st.Rdev, true
}
