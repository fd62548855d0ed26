package buildproc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// group is all that a build consists of, as the kernel sees it.
type group struct {
	cfg Config
	// dir is its cgroup, or empty if it has no cgroup; fd is that directory.
	dir string
	fd  *os.File
	// mu guards reaped, which says that the process's number may be another's.
	mu     sync.Mutex
	reaped bool
	// weighed and bounded say that the cgroup has the controllers.
	weighed, bounded bool
}

// newGroup makes the cgroup, if there is a place for it.
func newGroup(cfg Config, name string) (*group, error) {
	g := &group{cfg: cfg}
	if cfg.Cgroup == "" {
		return g, nil
	}
	dir := filepath.Join(cfg.Cgroup, "berth-"+name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup: %w", err)
	}
	g.dir = dir
	// A controller that is not enabled for the directory has no files in it.
	g.weighed = os.WriteFile(filepath.Join(dir, "cpu.weight"), []byte(strconv.Itoa(cfg.CPUWeight)), 0) == nil
	g.bounded = os.WriteFile(filepath.Join(dir, "memory.max"), []byte(strconv.FormatInt(cfg.MemoryBytes, 10)), 0) == nil
	if g.bounded {
		// All of the build or nothing: half a build is of no use.
		_ = os.WriteFile(filepath.Join(dir, "memory.oom.group"), []byte("1"), 0) //nolint:errcheck // Linux before 4.19
		// Or the build would push the machine's memory out instead of meeting its limit.
		_ = os.WriteFile(filepath.Join(dir, "memory.swap.max"), []byte("0"), 0) //nolint:errcheck // no swap accounting
	}
	var err error
	if g.fd, err = os.Open(dir); err != nil {
		return nil, errors.Join(fmt.Errorf("open cgroup: %w", err), os.Remove(dir))
	}
	return g, nil
}

// attributes to start the process with.
func (g *group) attributes() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Setpgid: true, Pdeathsig: deathSignal}
	if g.fd != nil {
		a.UseCgroupFD, a.CgroupFD = true, int(g.fd.Fd())
	}
	return a
}

// restrict puts limits on a process that has just been started, as far as its cgroup does not.
func (g *group) restrict(pid int) error {
	if !g.weighed {
		const nice = 10
		if err := unix.Setpriority(unix.PRIO_PGRP, pid, nice); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("lower priority of the build process: %w", err)
		}
	}
	if !g.bounded {
		limit := &unix.Rlimit{Cur: uint64(g.cfg.MemoryBytes), Max: uint64(g.cfg.MemoryBytes)} //nolint:gosec // checked by Open
		if err := unix.Prlimit(pid, unix.RLIMIT_DATA, limit, nil); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("limit memory of the build process: %w", err)
		}
	}
	return nil
}

// kill ends everything in the group. The process's own end is waited for elsewhere.
func (g *group) kill(pid int) {
	if g.dir != "" {
		_ = os.WriteFile(filepath.Join(g.dir, "cgroup.kill"), []byte("1"), 0) //nolint:errcheck // Linux before 5.14: the process group follows
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.reaped {
		return
	}
	_ = unix.Kill(-pid, unix.SIGKILL) //nolint:errcheck // it may be gone
}

// reap waits for the process, which has ended.
func (g *group) reap(wait func() error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.reaped = true
	return wait()
}

// outOfMemory says that the kernel ended the build for want of memory.
func (g *group) outOfMemory() bool {
	if !g.bounded {
		return false
	}
	events, err := os.ReadFile(filepath.Join(g.dir, "memory.events"))
	if err != nil {
		return false
	}
	for l := range strings.Lines(string(events)) {
		if count, ok := strings.CutPrefix(strings.TrimSpace(l), "oom_kill "); ok && count != "0" {
			return true
		}
	}
	return false
}

// remove waits until the cgroup is empty, and deletes it.
func (g *group) remove() error {
	if g.fd == nil {
		return nil
	}
	err := g.fd.Close()
	wait := time.Millisecond
	for deadline := time.Now().Add(killWait); ; wait *= 2 {
		rmErr := os.Remove(g.dir)
		if rmErr == nil || errors.Is(rmErr, os.ErrNotExist) {
			return err
		}
		if !errors.Is(rmErr, unix.EBUSY) || time.Now().After(deadline) {
			return errors.Join(err, fmt.Errorf("delete cgroup: %w", rmErr))
		}
		<-time.After(wait)
	}
}
