//go:build integration

package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/leak"
	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/mounts"
	"berth.dev/berth/test/harness/registry"
	"berth.dev/berth/test/harness/tools"
	"berth.dev/berth/test/harness/wait"
)

// soon bounds every wait for something that should happen at once.
const soon = 30 * time.Second

// bin has berth and berthd; TestMain builds them.
var bin string

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Println("integration tests need root")
		return 0
	}
	dir, err := os.MkdirTemp("", "bt-bin")
	if err == nil {
		defer os.RemoveAll(dir)
		bin, err = tools.BuildBerth(context.Background(), dir)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return m.Run()
}

func containerdVersion() string {
	if v := os.Getenv("BERTH_CONTAINERD"); v != "" {
		return v
	}
	return tools.DefaultContainerd
}

// node is a machine in small: a registry, berthd and containerd with everything in one directory.
type node struct {
	*testing.T
	dir        string
	registry   *registry.Registry
	berthd     *berth.Daemon
	containerd *containerd.Daemon
	disks      []berth.Disk
	csi        map[string]string
	idle       time.Duration
	unpacks    int
	pauseImage string
	// slowDisk says that a file system below dir ends by itself.
	slowDisk bool
	// configure changes berthd's configuration further; nil changes nothing.
	configure func(*berth.Config)
}

// newNode starts the registry; start runs the rest.
func newNode(t *testing.T) *node {
	t.Helper()
	t.Parallel()
	// Not t.TempDir: paths of unix sockets and of mounts have to be short.
	dir, err := os.MkdirTemp("", "bt")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o711)) // user namespaces have to pass through
	n := &node{T: t, dir: dir, unpacks: 1}
	t.Cleanup(n.checkNothingLeft)
	n.registry, err = registry.Start(t.Context(), registry.Config{
		Dir: filepath.Join(dir, "r"), TLS: containerd.Config{Version: containerdVersion()}.Legacy(),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.registry.Close()) })
	return n
}

// another node of the same registry; start runs it.
func (n *node) another() *node {
	n.Helper()
	dir, err := os.MkdirTemp("", "bt")
	require.NoError(n, err)
	require.NoError(n, os.Chmod(dir, 0o711))
	other := &node{T: n.T, dir: dir, registry: n.registry, unpacks: 1}
	n.Cleanup(other.checkNothingLeft)
	return other
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

// env is what programs need to trust the registry.
func (n *node) env() []string {
	if n.registry.PlainHTTP() {
		return nil
	}
	return []string{"SSL_CERT_FILE=" + n.registry.CAFile()}
}

// push an image of layers and forget what that counted.
func (n *node) push(name string, layers ...image.Layer) pushed {
	n.Helper()
	img, err := image.New(image.Spec{Layers: layers, Command: image.Pause()})
	require.NoError(n, err)
	ref, err := n.registry.Push(n.Context(), name+":1", img)
	require.NoError(n, err)
	blobs, err := image.BlobDigests(img)
	require.NoError(n, err)
	n.registry.Reset()
	return pushed{ref: ref, blobs: blobs, img: img}
}

// pushed is an image in the registry.
type pushed struct {
	ref string
	// blobs of the layers, lowest first.
	blobs []digest.Digest
	img   v1.Image
}

// build a layer disk of images.
func (n *node) build(name string, images ...pushed) string {
	n.Helper()
	disk := filepath.Join(n.dir, name+".img")
	args := []string{"build", "-o", disk}
	if n.registry.PlainHTTP() {
		args = append(args, "--plain-http", n.registry.Host())
	}
	for _, i := range images {
		args = append(args, i.ref)
	}
	_, err := berth.Run(n.Context(), bin, n.env(), args...)
	require.NoError(n, err)
	n.registry.Reset()
	return disk
}

// attachAtStart has berthd's configuration name the disk.
func (n *node) attachAtStart(name, path string) {
	n.disks = append(n.disks, berth.Disk{Name: name, Path: path, Keep: n.idle == 0})
}

// start berthd, then containerd with the configuration that berth prints for it.
func (n *node) start() {
	n.Helper()
	var err error
	cfg := berth.Config{Dir: filepath.Join(n.dir, "b"), Bin: bin, Disks: n.disks, CSI: n.csi, IdleTimeout: n.idle, Env: n.env(),
		Containerd: filepath.Join(n.dir, "c", "c.sock")}
	if n.configure != nil {
		n.configure(&cfg)
	}
	n.berthd, err = berth.New(cfg)
	require.NoError(n, err)
	n.startBerthd()
	n.Cleanup(n.stopBerthd)
	snippet, err := n.berthd.Snippet(n.Context(), containerdVersion())
	require.NoError(n, err)
	n.containerd, err = containerd.New(n.Context(), containerd.Config{
		Version: containerdVersion(), Dir: filepath.Join(n.dir, "c"), Namespace: filepath.Base(n.dir),
		MaxConcurrentUnpacks: n.unpacks, SandboxImage: n.pauseImage, CAFile: n.registry.CAFile(), Snippet: snippet,
	})
	require.NoError(n, err)
	require.NoError(n, n.containerd.UseRegistry(n.registry.Host(), n.registry.PlainHTTP()))
	n.Cleanup(n.logOnFailure)
	require.NoError(n, n.containerd.Start(n.Context()))
	n.Cleanup(func() { require.NoError(n, n.containerd.Close()) })
}

// startBerthd and wait until the disks of its configuration serve; those that cannot are named by serving=false.
func (n *node) startBerthd() {
	n.Helper()
	require.NoError(n, n.berthd.Start(n.Context()))
	n.eventually("configured disks to serve or to say why not", func() error {
		status, err := n.berthd.Status(n.Context())
		if err != nil {
			return err
		}
		for _, want := range n.disks {
			if d, err := status.Disk(want.Name); err != nil || !d.Serving && d.LastError == "" {
				return fmt.Errorf("disk %s: %+v, %w", want.Name, d, err)
			}
		}
		return nil
	})
}

// stopBerthd as an administrator who takes berth away: images first, disks next. Nothing may be left then.
func (n *node) stopBerthd() {
	require.NoError(n, n.berthd.Stop())
	require.NoError(n, mounts.UnmountBelow(filepath.Join(n.dir, "b")))
	require.NoError(n, loop.DetachBelow(n.dir))
	// A slow disk is unmounted by itself: before that no loop device on it may be left, which nobody could find by its
	// path.
	if !n.slowDisk {
		require.NoError(n, mounts.UnmountBelow(n.dir))
	}
}

func (n *node) logOnFailure() {
	if n.Failed() {
		n.Logf("containerd's log:\n%s", n.containerd.LogTail(30))
		n.Logf("berthd's log:\n%s", n.berthd.LogTail(60))
	}
}

func (n *node) eventually(what string, met func() error) {
	n.Helper()
	require.NoError(n, wait.Until(n.Context(), soon, what, func(context.Context) error { return met() }))
}

// pull with berth's snapshotter, by ctr and the transfer service.
func (n *node) pull(p pushed) {
	n.Helper()
	require.NoError(n, n.tryPull(p, ""))
}

func (n *node) tryPull(p pushed, namespace string) error {
	return n.containerd.Pull(n.Context(), p.ref, containerd.PullOptions{
		Namespace: namespace, Snapshotter: berth.PluginName, PlainHTTP: n.registry.PlainHTTP(),
	})
}

// pullOverlay pulls the same with the built-in snapshotter, to compare.
func (n *node) pullOverlay(p pushed) {
	n.Helper()
	require.NoError(n, n.containerd.Pull(n.Context(), p.ref, containerd.PullOptions{
		Snapshotter: "overlayfs", PlainHTTP: n.registry.PlainHTTP(),
	}))
}

// container names are unique on the machine, see containerd.Config.Namespace.
func (n *node) run(p pushed, name string, command ...string) string {
	n.Helper()
	out, err := n.containerd.Run(n.Context(), p.ref, name, containerd.RunOptions{Snapshotter: berth.PluginName}, command...)
	require.NoError(n, err)
	return out
}

// runDetached starts a container that stays until the node ends or it is removed.
func (n *node) runDetached(p pushed, name string) {
	n.Helper()
	_, err := n.containerd.Run(n.Context(), p.ref, name, containerd.RunOptions{Snapshotter: berth.PluginName, Detach: true}, "sleep", "3600")
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

func (n *node) status() berth.Status {
	n.Helper()
	status, err := n.berthd.Status(n.Context())
	require.NoError(n, err)
	return status
}

// legacy is 1.7: no diff IDs, no id-mapped mounts.
func legacy() bool { return containerd.Config{Version: containerdVersion()}.Legacy() }
