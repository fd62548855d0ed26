package buildproc

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// daemonGroup is the sub-group that the daemon itself is in, beside those of its builds: a cgroup that gives
// controllers to groups below it has no processes of its own (cgroups(7), "no internal processes").
const daemonGroup = "daemon"

// MoveToSubgroup makes a cgroup that is left to this process a place for cgroups of builds, and returns it: the
// process, with all its threads, moves to a group of its own in it, and the controllers that limit builds are enabled
// for groups below it. Doing it again changes nothing. It is for the beginning of a process, which has no children yet.
//
// dir is that cgroup, made if it is missing; empty is the one that systemd has left to the service (Delegate=).
// NotFound says that there is none: not this version of cgroups, no systemd, or no delegation.
func MoveToSubgroup(dir string) (string, error) {
	own, err := ownCgroup()
	if err != nil {
		return "", fmt.Errorf("find own cgroup: %w", err)
	}
	given := dir != ""
	if dir, err = place(dir, own); err != nil {
		return "", err
	}
	// If systemd has put us beside where builds go (DelegateSubgroup=), or we are there already, we stay.
	if filepath.Dir(own) != dir {
		group := filepath.Join(dir, daemonGroup)
		if err := os.MkdirAll(group, 0o755); err != nil {
			return "", fmt.Errorf("make own cgroup: %w", err)
		}
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte("0"), 0); err != nil { // 0 is this process
			return "", fmt.Errorf("move to cgroup %s: %w", group, err)
		}
	}
	missing, err := enableControllers(dir)
	if err == nil && given && len(missing) > 0 {
		err = fmt.Errorf("cgroup %s has no controllers %s, enable them in cgroup.subtree_control of the one above: %w",
			dir, strings.Join(missing, ", "), errdefs.ErrFailedPrecondition)
	}
	return dir, err
}

// place is where builds get their groups.
func place(dir, own string) (string, error) {
	switch {
	case dir != "":
		return dir, nil
	case delegated(own):
		return own, nil
	case delegated(filepath.Dir(own)):
		return filepath.Dir(own), nil
	}
	return "", fmt.Errorf("cgroup %s is not left to this service: %w", own, errdefs.ErrNotFound)
}

// enableControllers has groups below dir bounded, as far as dir itself has the controllers; others are missing.
func enableControllers(dir string) (missing []string, err error) {
	have, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("enable controllers for builds: %w", err)
	}
	for _, controller := range []string{"cpu", "memory"} {
		if !slices.Contains(strings.Fields(string(have)), controller) {
			missing = append(missing, controller)
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+controller), 0); err != nil {
			return nil, fmt.Errorf("enable controller %s for builds in %s: %w", controller, dir, err)
		}
	}
	return missing, nil
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

// delegated says whether systemd has marked the cgroup as left to the service: since v236 with the first attribute, and
// since v251 with the second.
func delegated(dir string) bool {
	value := make([]byte, 1)
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		if n, err := unix.Getxattr(dir, name, value); err == nil && n == 1 && value[0] == '1' {
			return true
		}
	}
	return false
}
