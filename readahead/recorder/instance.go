package recorder

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/fsmount"
)

const (
	instancesDir = "instances"
	// instancePrefix is of instances that are ours. Each is locked as long as somebody uses it.
	instancePrefix = "berth-"
)

// instance is a tracing buffer of our own, so that nobody else's tracing is disturbed.
type instance struct {
	root *os.Root // of tracefs
	name string
	// lock is the instance's directory, locked (flock): a process that is killed lets go of it, and the next recording
	// removes what it left.
	lock *os.File
	pipe *os.File
}

// newInstance makes an instance that records the events of the device with that number, and removes those of processes
// that are gone.
func newInstance(dev uint64) (_ *instance, err error) {
	root, err := fsmount.Tracefs()
	if err != nil {
		return nil, err
	}
	in := &instance{root: root, name: instancesDir + "/" + instancePrefix + strconv.Itoa(os.Getpid()) + "-" + uuid.NewString()}
	defer func() {
		if err != nil {
			err = errors.Join(err, in.close())
		}
	}()
	if err := in.make(); err != nil {
		return nil, err
	}
	event := "events/filemap/" + eventName
	for _, setting := range [][2]string{
		{"trace_clock", "mono"}, // the same on all CPUs
		{"options/overwrite", "0"},
		{"buffer_size_kb", strconv.Itoa(bufferKiB())},
		{event + "/filter", fmt.Sprintf("s_dev == %d || i_ino == %d", dev, dev)},
		{event + "/enable", "1"},
	} {
		if err := in.write(setting[0], setting[1]); err != nil {
			return nil, err
		}
	}
	fd, err := in.open("trace_pipe", unix.O_RDONLY|unix.O_NONBLOCK)
	in.pipe = fd
	return in, err
}

// bufferKiB for each CPU. It is emptied several times a second, and a page takes about 50 bytes in it; all together it
// should not be felt.
func bufferKiB() int {
	const total, least, most = 64 << 10, 256, 8 << 10
	return min(most, max(least, total/runtime.NumCPU()))
}

// make the instance's directory and lock it. The lock of the directory above keeps others from removing it in between.
func (in *instance) make() error {
	dir, err := in.root.Open(instancesDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock trace instances: %w", err)
	}
	removeStale(in.root, dir)
	if err := in.root.Mkdir(in.name, 0o700); err != nil {
		return fmt.Errorf("make trace instance: %w", err)
	}
	in.lock, err = in.root.Open(in.name)
	if err != nil {
		return errors.Join(err, in.root.Remove(in.name))
	}
	if err := unix.Flock(int(in.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock trace instance: %w", err)
	}
	return nil
}

// removeStale removes instances of ours that nobody uses. One that cannot be removed stays for the next time.
func removeStale(root *os.Root, dir *os.File) {
	names, _ := dir.Readdirnames(-1)
	for _, name := range names {
		if !strings.HasPrefix(name, instancePrefix) {
			continue
		}
		path := instancesDir + "/" + name
		f, err := root.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = root.Remove(path)
		}
		f.Close()
	}
}

// RemoveStale removes what recordings of processes that were killed have left in the kernel. Start does so too.
func RemoveStale() error {
	root, err := fsmount.Tracefs()
	if err != nil {
		return err
	}
	defer root.Close() //nolint:errcheck // nothing was written
	dir, err := root.Open(instancesDir)
	if err != nil {
		return fmt.Errorf("open trace instances: %w", err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock trace instances: %w", err)
	}
	removeStale(root, dir)
	return nil
}

// close removes the instance. It may be called twice.
func (in *instance) close() error {
	var errs []error
	if in.pipe != nil {
		errs = append(errs, in.pipe.Close())
		in.pipe = nil
	}
	if in.lock != nil {
		errs = append(errs, in.root.Remove(in.name), in.lock.Close())
		in.lock = nil
	}
	if in.root != nil {
		errs = append(errs, in.root.Close())
		in.root = nil
	}
	return errors.Join(errs...)
}

func (in *instance) open(name string, flags int) (*os.File, error) {
	f, err := in.root.OpenFile(in.name+"/"+name, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("set up tracing: %w", err)
	}
	return f, nil
}

func (in *instance) write(name, value string) error {
	f, err := in.open(name, unix.O_WRONLY|unix.O_TRUNC)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("set %s of trace instance to %q: %w", name, value, err)
	}
	return nil
}
