// Package vm runs virtual machines with disks that are plugged in and pulled out as a cloud does it, and that misbehave
// as real devices do. The machines run Debian's kernel and udev, and berth, containerd and runc as built here; QEMU
// emulates the processor, so that no right and no device of the host is needed.
package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"berth.dev/berth/test/harness/process"
	"berth.dev/berth/test/harness/tools"
	"berth.dev/berth/test/harness/vm/wire"
	"berth.dev/berth/test/harness/wait"
)

// HostAddress is what the guest calls the host: also what listens on the host's loopback address only.
const HostAddress = "10.0.2.2"

const (
	// bootTimeout is many times what a boot takes on a quiet machine, about ten seconds.
	bootTimeout = 3 * time.Minute
	// Ports of the machine that disks can be plugged into; SCSI disks need none.
	ports = 20
	// memory has room for containerd, berthd and the containers of tests.
	memory = "1024"
)

// System is what guests boot from. Many guests can use it at a time.
type System struct {
	root root
	// programs is a file system with the programs under test.
	programs string
}

// Prepare makes a system in dir. berth and berthd are taken from bin.
func Prepare(ctx context.Context, dir, bin string) (System, error) {
	for _, program := range []string{qemu, "mmdebstrap", "mkfs.ext4"} {
		if _, err := exec.LookPath(program); err != nil {
			return System{}, fmt.Errorf("run virtual machines: %w: scripts/bootstrap vm installs it", err)
		}
	}
	r, err := makeRoot(ctx)
	if err != nil {
		return System{}, err
	}
	tree := filepath.Join(dir, "programs")
	if err := os.MkdirAll(tree, 0o755); err != nil {
		return System{}, fmt.Errorf("collect programs: %w", err)
	}
	defer os.RemoveAll(tree)
	dirs := []string{bin}
	for _, tool := range []string{"containerd", "runc"} {
		d, err := tools.Dir(ctx, tool)
		if err != nil {
			return System{}, err
		}
		dirs = append(dirs, d)
	}
	for _, d := range dirs {
		if err := os.CopyFS(tree, os.DirFS(d)); err != nil {
			return System{}, fmt.Errorf("collect programs: %w", err)
		}
	}
	top, err := tools.Root()
	if err != nil {
		return System{}, err
	}
	build := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(tree, "agent"), "./test/harness/vm/agent")
	build.Dir, build.Env = top, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return System{}, fmt.Errorf("build agent: %w\n%s", err, out)
	}
	s := System{root: r, programs: filepath.Join(dir, "programs.img")}
	size, err := treeBytes(tree)
	if err != nil {
		return System{}, err
	}
	return s, command(ctx, "mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-d", tree, s.programs,
		fmt.Sprintf("%dk", (size+size/8)>>10+8<<10))
}

func treeBytes(dir string) (sum int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}

const qemu = "qemu-system-x86_64"

// Guest is a virtual machine that runs. Its methods may be used from several goroutines, but for Close and those that
// restart it.
type Guest struct {
	dir      string
	proc     *process.Process
	monitor  *monitor
	listener net.Listener
	// waiting connections of the agent; the agent keeps one at a time.
	waiting chan agentConn
	accept  sync.WaitGroup
	bootID  string

	// mu guards what follows.
	mu sync.Mutex
	// free ports, by number; disks that are plugged in.
	free  []int
	disks map[string]*Disk
	count int
}

// Start boots a machine in dir, which must be new and short. Close it, also after an error.
func (s System) Start(ctx context.Context, dir string) (*Guest, error) {
	g := &Guest{dir: dir, waiting: make(chan agentConn, 1), disks: make(map[string]*Disk)}
	for port := range ports {
		g.free = append(g.free, port)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return g, fmt.Errorf("make directory of virtual machine: %w", err)
	}
	var err error
	if g.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
		return g, fmt.Errorf("listen for agent: %w", err)
	}
	g.accept.Go(g.acceptAgents)
	g.proc, err = process.Start(ctx, process.Spec{
		Name: "qemu", Args: s.arguments(dir, g.listener.Addr()), LogDir: dir,
		// Where QEMU keeps what the guest writes to its root disk.
		Env: []string{"TMPDIR=" + dir},
	})
	if err != nil {
		return g, err
	}
	err = wait.Until(ctx, bootTimeout, "QEMU to listen", func(ctx context.Context) (err error) {
		if err := g.proc.Err(); err != nil {
			return err
		}
		g.monitor, err = dialMonitor(ctx, g.monitorSocket())
		return err
	})
	if err != nil {
		return g, err
	}
	return g, g.awaitBoot(ctx)
}

func (g *Guest) monitorSocket() string { return filepath.Join(g.dir, "qmp.sock") }
func (g *Guest) consoleFile() string   { return filepath.Join(g.dir, "console.log") }

// arguments of QEMU. KVM is not used, though it may be there: nested, it starts and then fails on some hosts.
func (s System) arguments(dir string, agent net.Addr) []string {
	_, port, _ := net.SplitHostPort(agent.String())
	args := []string{
		qemu, "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", memory,
		"-nodefaults", "-no-user-config", "-display", "none",
		"-serial", "file:" + filepath.Join(dir, "console.log"),
		"-qmp", "unix:" + filepath.Join(dir, "qmp.sock") + ",server=on,wait=off",
		"-kernel", s.root.kernel,
		// Network interfaces keep their old names, and the kernel's words their place on the console.
		"-append", fmt.Sprintf("root=PARTUUID=%08x-01 rootwait rw console=ttyS0 loglevel=5 net.ifnames=0 panic=-1 ", rootSignature) +
			wire.HostParameter + "=" + HostAddress + ":" + port,
		"-drive", "if=none,id=root,format=raw,snapshot=on,cache=unsafe,file=" + s.root.image,
		"-device", "nvme,drive=root,serial=root",
		"-drive", "if=none,id=programs,format=raw,read-only=on,file=" + s.programs,
		"-device", "nvme,drive=programs,serial=programs",
		"-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
		"-device", "virtio-rng-pci",
		"-device", "virtio-scsi-pci,id=scsi",
	}
	for port := range ports {
		// A disk that comes while the machine runs needs a port that was free at its start.
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=port%d,chassis=%d,slot=%d", port, port+1, port+1))
	}
	return args
}

// Close ends the machine as pulling the plug does.
func (g *Guest) Close() error {
	var errs []error
	if g.monitor != nil {
		errs = append(errs, g.monitor.close())
	}
	if g.proc != nil {
		errs = append(errs, g.proc.Kill())
	}
	if g.listener != nil {
		errs = append(errs, g.listener.Close())
		g.accept.Wait()
		select {
		case c := <-g.waiting:
			errs = append(errs, c.Close())
		default:
		}
	}
	return errors.Join(errs...)
}

// Reboot resets the machine, which has no time to write anything, and waits until it is up again. Disks stay plugged
// in; the kernel finds them in the order of their ports.
func (g *Guest) Reboot(ctx context.Context) error {
	if err := g.monitor.execute(ctx, "system_reset", nil); err != nil {
		return fmt.Errorf("reset virtual machine: %w", err)
	}
	return g.awaitBoot(ctx)
}

// awaitBoot waits for an agent of another boot than before.
func (g *Guest) awaitBoot(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	for {
		select {
		case c := <-g.waiting:
			if c.hello.BootID == g.bootID {
				_ = c.Close() // of a system that is no more
				continue
			}
			g.bootID = c.hello.BootID
			g.waiting <- c
			return nil
		case <-g.proc.Done():
			return fmt.Errorf("boot virtual machine: %w", g.proc.Err())
		case <-ctx.Done():
			return fmt.Errorf("boot virtual machine: %w; its console:\n%s", ctx.Err(), g.Console(30))
		}
	}
}

// Console has the last lines, at most n, of what the kernel and its init have written.
func (g *Guest) Console(n int) string { return tail(g.consoleFile(), n) }
