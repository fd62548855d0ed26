package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/test/harness/mounts"
	"berth.dev/berth/test/harness/wait"
)

const reapTimeout = 20 * time.Second

// Close stops containerd and takes away all that its containers left: shims with their containers, mounts below the
// directory. The directory itself stays, for its logs.
func (d *Daemon) Close() error {
	errs := []error{d.Stop()}
	sockets, err := d.shimSockets()
	errs = append(errs, err, d.KillShims(), mounts.UnmountBelow(d.cfg.Dir), d.forgetNamespace())
	for _, s := range sockets {
		if err := os.Remove(s); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove socket of shim: %w", err))
		}
	}
	return errors.Join(errs...)
}

// shimSockets are the sockets of shims, all in one directory of the host, which those that are killed leave. Their
// names are in each container's bundle, in a file that is named by version.
func (d *Daemon) shimSockets() ([]string, error) {
	var sockets []string
	for _, name := range []string{"address", "bootstrap.json"} {
		files, err := filepath.Glob(filepath.Join(d.cfg.state(), "io.containerd.runtime.v2.task/*/*", name))
		if err != nil {
			return nil, fmt.Errorf("list bundles: %w", err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				return nil, fmt.Errorf("read address of shim: %w", err)
			}
			if m := regexp.MustCompile(`unix://(/run/containerd/s/[0-9a-f]+)`).FindSubmatch(b); m != nil {
				sockets = append(sockets, string(m[1]))
			}
		}
	}
	return sockets, nil
}

// forgetNamespace removes what runc and the kernel keep of the configured namespace: state of containers that were
// killed, and cgroups, which are empty by now.
func (d *Daemon) forgetNamespace() error {
	name := d.cfg.Namespace
	if name == "" {
		return nil
	}
	errs := []error{os.RemoveAll(filepath.Join("/run/containerd/runc", name))}
	groups, err := filepath.Glob(filepath.Join("/sys/fs/cgroup/*", name))
	errs = append(errs, err)
	if one := filepath.Join("/sys/fs/cgroup", name); len(groups) == 0 {
		groups = []string{one}
	}
	for _, group := range groups {
		errs = append(errs, RemoveCgroup(group))
	}
	return errors.Join(errs...)
}

// RemoveCgroup removes a cgroup and those below it, which must have no processes. One that does not exist is no error.
func RemoveCgroup(group string) error {
	var groups []string
	err := filepath.WalkDir(group, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && e.IsDir() {
			groups = append(groups, path)
		}
		return err
	})
	errs := []error{err}
	for _, g := range slices.Backward(groups) {
		// The last process may still be on its way out.
		err := wait.Until(context.Background(), reapTimeout, "cgroup "+g+" to be empty", func(context.Context) error {
			if err := unix.Rmdir(g); err != nil && !errors.Is(err, unix.ENOENT) {
				return err
			}
			return nil
		})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// KillShims ends every shim of this containerd and the containers below it, as the death of a machine would.
func (d *Daemon) KillShims() error {
	ctx, cancel := context.WithTimeout(context.Background(), reapTimeout)
	defer cancel()
	return wait.Until(ctx, reapTimeout, "shims and containers to end", func(context.Context) error {
		pids, err := d.processes()
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d: %w", pid, err)
			}
		}
		return fmt.Errorf("processes %v still run", pids)
	})
}

// processes are the shims, known by the address of our containerd on their command line, and their children, which the
// shim adopts as a subreaper.
func (d *Daemon) processes() ([]int, error) {
	children := map[int][]int{}
	var queue, found []int
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		parent, zombie := status(pid)
		if zombie {
			continue
		}
		children[parent] = append(children[parent], pid)
		// A process that has ended meanwhile has no command line.
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && strings.Contains(string(cmdline), "containerd-shim") &&
			strings.Contains(string(cmdline), "\x00"+d.cfg.socket()+"\x00") {
			queue = append(queue, pid)
		}
	}
	for len(queue) > 0 {
		pid := queue[0]
		queue = append(queue[1:], children[pid]...)
		found = append(found, pid)
	}
	return found, nil
}

// status reads parent and state from /proc/PID/stat, whose second field is the name in parentheses (proc(5)).
func status(pid int) (parent int, zombie bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, true
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 2 {
		return 0, true
	}
	parent, err = strconv.Atoi(fields[1])
	return parent, err != nil || fields[0] == "Z"
}
