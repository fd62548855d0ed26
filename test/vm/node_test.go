//go:build vm

package vm

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"berth.dev/berth/layerdisk"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/leak"
	"berth.dev/berth/test/harness/registry"
	"berth.dev/berth/test/harness/tools"
	"berth.dev/berth/test/harness/vm"
	"berth.dev/berth/test/harness/wait"
)

// soon bounds every wait for something that should happen at once, on an emulated processor of a busy machine.
const soon = 3 * time.Minute

// Files and sockets of the guest, which has everything where the documentation says.
const (
	berthdConfig     = "/etc/berth/config.toml"
	berthdSocket     = "/run/berth/berthd.sock"
	berthdLog        = "/var/log/berthd.log"
	containerdLog    = "/var/log/containerd.log"
	containerdDropIn = "/etc/containerd/conf.d/berth.toml"
)

// bin has berth and berthd, system what guests boot from; TestMain makes both.
var (
	bin    string
	system vm.System
)

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Println("tests with virtual machines need root, to make their file systems")
		return 0
	}
	if runtime.GOARCH != "amd64" {
		fmt.Println("the virtual machines run programs of amd64, and this machine builds others")
		return 0
	}
	dir, err := os.MkdirTemp("", "bv-sys")
	if err == nil {
		defer os.RemoveAll(dir)
		bin, err = tools.BuildBerth(context.Background(), filepath.Join(dir, "bin"))
	}
	if err == nil {
		system, err = vm.Prepare(context.Background(), dir, bin)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return m.Run()
}

// node is a virtual machine with containerd and berthd, and a registry on the host.
type node struct {
	*testing.T
	dir      string
	registry *registry.Registry
	guest    *vm.Guest
	// berthdPID is 0 while it does not run.
	berthdPID int
	conn      *grpc.ClientConn
	control   controlv1.ControlServiceClient
}

// newNode boots a machine; start runs the daemons in it.
func newNode(t *testing.T) *node {
	t.Helper()
	t.Parallel()
	// Not t.TempDir: paths of unix sockets have to be short.
	dir, err := os.MkdirTemp("", "bv")
	require.NoError(t, err)
	n := &node{T: t, dir: dir}
	t.Cleanup(n.checkNothingLeft)
	n.registry, err = registry.Start(t.Context(), registry.Config{Dir: filepath.Join(dir, "r")})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.registry.Close()) })
	start := time.Now()
	n.guest, err = system.Start(t.Context(), filepath.Join(dir, "g"))
	t.Cleanup(func() { require.NoError(t, n.guest.Close()) })
	require.NoError(t, err)
	t.Logf("booted in %s", time.Since(start))
	t.Cleanup(n.logOnFailure)
	return n
}

func (n *node) checkNothingLeft() {
	err := leak.WaitNone(context.Background(), n.dir)
	if n.Failed() {
		n.Logf("directory kept: %s, %v", n.dir, err)
		return
	}
	require.NoError(n, err)
	require.NoError(n, os.RemoveAll(n.dir))
}

func (n *node) logOnFailure() {
	if !n.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	// Whatever hangs says where, and berthd ends with it.
	const stacks = "kill -QUIT $(pidof berthd); kill -USR1 $(pidof containerd); sleep 1; :"
	for _, command := range []string{stacks, "tail -n 300 " + berthdLog, "tail -n 200 " + containerdLog, "dmesg | tail -n 25", "lsblk -o NAME,SIZE,RO,SERIAL,MOUNTPOINT; ls -l /dev/disk/by-id"} {
		out, err := n.guest.Shell(ctx, command)
		n.Logf("%s: %v\n%s", command, err, out)
	}
}

// shell runs a script in the guest.
func (n *node) shell(script string) string {
	n.Helper()
	out, err := n.guest.Shell(n.Context(), script)
	require.NoError(n, err)
	return out
}

func (n *node) eventually(what string, met func() error) {
	n.Helper()
	require.NoError(n, wait.Until(n.Context(), soon, what, func(context.Context) error { return met() }))
}

// start berthd with a configuration, and containerd with what berth prints for it.
func (n *node) start(config string) {
	n.Helper()
	n.startBerthd(config)
	require.NoError(n, n.guest.WriteFile(n.Context(), "/etc/containerd/config.toml", "version = 4\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n"))
	n.shell("mkdir -p /etc/containerd/conf.d; berth config containerd > " + containerdDropIn)
	n.startContainerd()
	n.shell("sync") // what the test itself wrote survives a reset
}

func (n *node) startContainerd() {
	n.Helper()
	_, err := n.guest.Begin(n.Context(), containerdLog, "containerd")
	require.NoError(n, err)
	n.eventually("containerd to answer", func() error {
		_, err := n.guest.Run(n.Context(), "ctr", "version")
		return err
	})
}

// startBerthd with a configuration; empty is that of before.
func (n *node) startBerthd(config string) {
	n.Helper()
	if config != "" {
		require.NoError(n, n.guest.WriteFile(n.Context(), berthdConfig, "[log]\nlevel = \"debug\"\n[metrics]\naddress = \"\"\n"+config))
	}
	var err error
	n.berthdPID, err = n.guest.Begin(n.Context(), berthdLog, "berthd", "--config", berthdConfig)
	require.NoError(n, err)
	if n.conn != nil {
		require.NoError(n, n.conn.Close())
	}
	n.conn, err = grpc.NewClient("passthrough:///guest", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return n.guest.Dial(ctx, berthdSocket) }))
	require.NoError(n, err)
	conn := n.conn
	n.Cleanup(func() { conn.Close() })
	n.control = controlv1.NewControlServiceClient(conn)
	n.eventually("berthd to answer", func() error {
		conn.ResetConnectBackoff()
		_, err := n.control.Status(n.Context(), &controlv1.StatusRequest{})
		return err
	})
}

// killBerthd as a crash does.
func (n *node) killBerthd() {
	n.Helper()
	n.shell(fmt.Sprintf("kill -9 %d; while [ -e /proc/%d ]; do sleep 0.05; done", n.berthdPID, n.berthdPID))
	n.berthdPID = 0
}

// pushed is an image in the registry.
type pushed struct {
	// ref is the guest's, hostRef that of this machine.
	ref, hostRef string
	// blobs of the layers, lowest first.
	blobs []digest.Digest
}

// push an image of layers.
func (n *node) push(name string, layers ...image.Layer) pushed {
	n.Helper()
	img, err := image.New(image.Spec{Layers: layers, Command: image.Pause()})
	require.NoError(n, err)
	hostRef, err := n.registry.Push(n.Context(), name+":1", img)
	require.NoError(n, err)
	blobs, err := image.BlobDigests(img)
	require.NoError(n, err)
	n.registry.Reset()
	_, port, err := net.SplitHostPort(n.registry.Host())
	require.NoError(n, err)
	ref := strings.Replace(hostRef, n.registry.Host(), net.JoinHostPort(vm.HostAddress, port), 1)
	return pushed{ref: ref, hostRef: hostRef, blobs: blobs}
}

// app is a small image that runs, with a file s/NAME, and s/MORE each for more layers.
func (n *node) app(name string, more ...string) pushed {
	n.Helper()
	busybox, err := image.Busybox()
	require.NoError(n, err)
	layers := []image.Layer{busybox}
	for _, file := range append([]string{name}, more...) {
		layers = append(layers, small(file))
	}
	return n.push(strings.Join(append([]string{name}, more...), "-"), layers...)
}

// small is a layer with one file of its own.
func small(name string) image.Layer {
	return image.Layer{Entries: []image.Entry{image.Dir("s"), image.File("s/"+name, "content of "+name)}}
}

// layerDisk is a file with a layer disk.
type layerDisk struct {
	file string
	layerdisk.Identity
}

// found is the name of the disk once it is discovered.
func (d layerDisk) found() string { return "found-" + strings.ReplaceAll(d.UUID, "-", "")[:12] }

// build a layer disk of images.
func (n *node) build(name string, images ...pushed) layerDisk {
	n.Helper()
	d := layerDisk{file: filepath.Join(n.dir, name+".img")}
	args := []string{"build", "-o", d.file, "--plain-http", n.registry.Host()}
	for _, i := range images {
		args = append(args, i.hostRef)
	}
	_, err := berth.Run(n.Context(), bin, nil, args...)
	require.NoError(n, err)
	n.registry.Reset()
	f, err := os.Open(d.file)
	require.NoError(n, err)
	defer f.Close()
	header, err := layerdisk.ReadHeader(f)
	require.NoError(n, err)
	d.Identity = header.Identity()
	return d
}

// plug in the disk until the test pulls it out or ends.
func (n *node) plug(d layerDisk, spec vm.DiskSpec) *vm.Disk {
	n.Helper()
	spec.File = d.file
	return n.plugFile(spec)
}

func (n *node) plugFile(spec vm.DiskSpec) *vm.Disk {
	n.Helper()
	disk, err := n.guest.Plug(n.Context(), spec)
	require.NoError(n, err)
	return disk
}

func (n *node) pullOut(disk *vm.Disk) {
	n.Helper()
	require.NoError(n, n.guest.Pull(n.Context(), disk))
}

// disk of that name in the status; nil if berthd has none.
func (n *node) disk(name string) *controlv1.Disk {
	n.Helper()
	for _, d := range n.status().GetDisks() {
		if d.GetName() == name {
			return d
		}
	}
	return nil
}

// serves waits until the disk serves.
func (n *node) serves(name string) *controlv1.Disk {
	n.Helper()
	start := time.Now()
	var disk *controlv1.Disk
	n.eventually("disk "+name+" to serve", func() error {
		if disk = n.disk(name); !disk.GetServing() {
			return fmt.Errorf("it is %v", disk)
		}
		return nil
	})
	n.Logf("%s serves from %s after %s", name, disk.GetDevice(), time.Since(start))
	return disk
}

// gone waits until berthd has forgotten the disk.
func (n *node) gone(name string) {
	n.Helper()
	n.eventually("disk "+name+" to be gone", func() error {
		if disk := n.disk(name); disk != nil {
			return fmt.Errorf("it is %v", disk)
		}
		return nil
	})
}

// failed waits until the disk is out of service and returns it.
func (n *node) failed(name string) *controlv1.Disk {
	n.Helper()
	var disk *controlv1.Disk
	n.eventually("disk "+name+" to be out of service", func() error {
		if disk = n.disk(name); disk == nil || disk.GetServing() || disk.GetLastError() == "" {
			return fmt.Errorf("it is %v", disk)
		}
		return nil
	})
	return disk
}

func (n *node) pull(p pushed) {
	n.Helper()
	start := time.Now()
	_, err := n.guest.Run(n.Context(), "ctr", "images", "pull", "--plain-http", "--snapshotter", berth.PluginName, p.ref)
	require.NoError(n, err)
	n.Logf("pulled %s in %s", p.ref, time.Since(start))
}

// run a command in a container that is gone afterwards.
func (n *node) run(p pushed, name string, command ...string) string {
	n.Helper()
	out, err := n.tryRun(p, name, command...)
	require.NoError(n, err)
	return out
}

func (n *node) tryRun(p pushed, name string, command ...string) (string, error) {
	return n.guest.Run(n.Context(), append([]string{"ctr", "run", "--rm", "--snapshotter", berth.PluginName, p.ref, name}, command...)...)
}

// runDetached starts a container that stays until it is removed.
func (n *node) runDetached(p pushed, name string) {
	n.Helper()
	n.detached("ctr", "run", "--detach", "--snapshotter", berth.PluginName, p.ref, name)
}

// detached runs a command that leaves a process with its output behind.
func (n *node) detached(command ...string) {
	n.Helper()
	_, err := n.guest.Run(n.Context(), append([]string{"sh", "-euc", `"$@" > /tmp/detached 2>&1 || { cat /tmp/detached >&2; exit 1; }`, "sh"}, command...)...)
	require.NoError(n, err)
}

func (n *node) exec(name string, command ...string) (string, error) {
	id := fmt.Sprintf("e%d", time.Now().UnixNano())
	return n.guest.Run(n.Context(), append([]string{"ctr", "tasks", "exec", "--exec-id", id, name}, command...)...)
}

func (n *node) removeContainer(name string) {
	n.Helper()
	n.shell("ctr tasks delete --force " + name + " >/dev/null 2>&1 || :; ctr containers delete " + name)
}

func (n *node) removeImage(p pushed) {
	n.Helper()
	_, err := n.guest.Run(n.Context(), "ctr", "images", "rm", "--sync", p.ref)
	require.NoError(n, err)
}

// fetched is the number of layer blobs of the image that the registry was asked for.
func (n *node) fetched(p pushed) int {
	blobs, count := n.registry.Blobs(), 0
	for _, b := range p.blobs {
		if blobs[b].Requests > 0 {
			count++
		}
	}
	return count
}

// detach the disk by hand.
func (n *node) detach(name string) {
	n.Helper()
	_, err := n.guest.Run(n.Context(), "berth", "detach", name)
	require.NoError(n, err)
}

// nothingLeft of disks: neither mounts, nor records, nor devices that are still claimed.
func (n *node) nothingLeft() {
	n.Helper()
	require.Empty(n, n.shell("grep ' /var/lib/berth/d/' /proc/self/mountinfo || :"))
	require.Empty(n, n.shell("find /var/lib/berth/attached /var/lib/berth/d -mindepth 1"), "records and mount points")
	require.Empty(n, n.status().GetDisks())
}

func (n *node) status() *controlv1.StatusResponse {
	n.Helper()
	st, err := n.control.Status(n.Context(), &controlv1.StatusRequest{})
	require.NoError(n, err)
	return st
}

// eventuallyLogged waits for words of berthd.
func (n *node) eventuallyLogged(words string) {
	n.Helper()
	n.eventually("berthd to say "+words, func() error {
		_, err := n.guest.Run(n.Context(), "grep", "-q", "--", words, berthdLog)
		return err
	})
}
