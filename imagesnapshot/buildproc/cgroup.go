package buildproc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// daemonGroup is the sub-group that the daemon itself is in, beside those of its builds: a cgroup that gives controllers to groups below
// it has no processes of its own (cgroups(7), "no internal processes").
const daemonGroup = "daemon"

// MoveToSubgroup makes the cgroup that systemd has left to this process's service (Delegate=) a place for cgroups of builds, and returns
// it: the process, with all its threads, moves to a group of its own in it, and the controllers that limit builds are enabled for
// groups below it, as far as the service has them. Doing it again changes nothing. It is for the beginning of a process, which has
// no children yet. NotFound says that there is no such cgroup: not this version of cgroups, no systemd, or no delegation.
func MoveToSubgroup() (dir string, err error) {
	own, err := ownCgroup()
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	switch {
	case delegated(own):
		dir = own
	case delegated(filepath.Dir(own)): // systemd's DelegateSubgroup=, or we have moved already
		dir = filepath.Dir(own)
	default:
		return "", fmt.Errorf("cgroup %s is not left to this service: %w", own, errdefs.ErrNotFound)
	}
	if dir == own {
		group := filepath.Join(dir, daemonGroup)
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return "", fmt.Errorf("make own cgroup: %w", err)
		}
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0); err != nil { // 0 is this process
			return "", fmt.Errorf("move to cgroup %s: %w", group, err)
		}
	}
	return dir, enableControllers(dir)
}

// enableControllers has groups below dir bounded, as far as dir itself has the controllers.
func enableControllers(dir string) error {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("enable controllers for builds: %w", err)
	}
	for _, controller := range []string{"cpu", "memory"} {
		if !slices.Contains(strings.Fields(string(have)), controller) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return fmt.Errorf("enable controller %s for builds in %s: %w", controller, dir, err)
		}
	}
	return nil
}

// ownCgroup is the directory of this process's cgroup of version 2.
func ownCgroup() (string, error) {
	lines, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	// A machine with both versions mounts this one somewhere else than a machine that has only this one.
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		return "", err
	}
	if len(mounts) == 0 {
		return "", fmt.Errorf("no file system of cgroups of version 2 is mounted: %w", errdefs.ErrNotFound)
	}
	for l := range strings.Lines(string(lines)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(l), "0::"); ok {
			return filepath.Join(mounts[0].Mountpoint, path), nil
		}
	}
	return "", fmt.Errorf("this process has no cgroup of version 2: %w", errdefs.ErrNotFound)
}

// delegated says whether systemd has marked the cgroup as left to the service: since v236 with the first attribute, and since v251 with
// the second.
func delegated(dir string) bool {
	value := make([]byte, 1)
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		if n, err := unix.Getxattr(dir, name, value); err == nil && n == 1 && value[0] == '1' {
			return true
		}
	}
	return false
}
