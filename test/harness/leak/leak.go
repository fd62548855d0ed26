// Package leak finds what a test left on the machine: only what belongs to it, known by the directory everything of it
// lies in. Tests of other packages and other people may run at the same time.
package leak

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"

	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/wait"
)

// Below lists what still refers to the directory: mounts on it or of files in it, loop devices with backing files in
// it, processes with it on their command line or as working directory or root. This process is left out. The directory
// may be gone already.
func Below(dir string) ([]string, error) {
	if dir == "" || !filepath.IsAbs(dir) || dir == "/" {
		return nil, fmt.Errorf("look for leaks below %q: want an absolute directory of the test's own", dir)
	}
	var found []string
	var errs []error
	for _, look := range []func(string) ([]string, error){mounts, loops, processes} {
		f, err := look(dir)
		found = append(found, f...)
		errs = append(errs, err)
	}
	return found, errors.Join(errs...)
}

// settle is how long something may take to go away: a loop device is detached when its last user closes it, and whoever
// lists devices is one for a moment.
const settle = 30 * time.Second

// WaitNone is an error with what is still there below dir after a while.
func WaitNone(ctx context.Context, dir string) error {
	return wait.Until(ctx, settle, "everything to be gone", func(context.Context) error {
		found, err := Below(dir)
		if len(found) > 0 {
			return errors.Join(err, fmt.Errorf("left behind: %s", strings.Join(found, "; ")))
		}
		return err
	})
}

func mounts(dir string) ([]string, error) {
	infos, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var found []string
	for _, m := range infos {
		if within(dir, m.Mountpoint) || within(dir, m.Source) || strings.Contains(m.VFSOptions, dir+"/") {
			found = append(found, "mount "+m.Mountpoint)
		}
	}
	return found, nil
}

// within says that path is dir or below it. A deleted file's name has a suffix, which does not matter here.
func within(dir, path string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

func loops(dir string) ([]string, error) {
	devices, err := loop.Below(dir)
	if err != nil {
		return nil, err
	}
	var found []string
	for _, device := range slices.Sorted(maps.Keys(devices)) {
		found = append(found, "loop device "+filepath.Base(device)+" of "+devices[device])
	}
	return found, nil
}

func processes(dir string) ([]string, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []string
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		proc := filepath.Join("/proc", e.Name())
		// A process that ends while we look, and a kernel thread, have none of these.
		cmdline, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
		cwd, _ := os.Readlink(filepath.Join(proc, "cwd"))
		root, _ := os.Readlink(filepath.Join(proc, "root"))
		command := strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " ")
		if strings.Contains(command, dir+"/") || within(dir, cwd) || within(dir, root) {
			found = append(found, fmt.Sprintf("process %d: %s", pid, command))
		}
	}
	return found, nil
}
