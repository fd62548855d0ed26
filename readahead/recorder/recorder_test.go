package recorder_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/builder"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/recorder"
	"berth.dev/berth/test/harness/image"
)

// disk is a real layer disk, built from two layers, with a directory of many names that does not fit behind its inode.
type disk struct {
	file     string
	index    *layerdisk.Index
	identity layerdisk.Identity
}

// random keeps the builder from making holes.
func random(t *testing.T, size int) string {
	t.Helper()
	b := make([]byte, size)
	_, err := rand.Read(b)
	require.NoError(t, err)
	return string(b)
}

func newDisk(t *testing.T, fileSystem string) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	lower := image.Layer{Entries: []image.Entry{
		image.Dir("bin"), image.File("bin/tool", random(t, 200_000)), image.File("bin/never", random(t, 50_000)), image.Dir("many"),
	}}
	for i := range 500 {
		lower.Entries = append(lower.Entries, image.File(fmt.Sprintf("many/a-rather-long-name-of-a-file-%03d", i), "content"))
	}
	upper := image.Layer{Entries: []image.Entry{
		image.Dir("data"), image.File("data/big", random(t, 3<<20)), image.File("data/small", "small"), image.File("data/unread", random(t, 9000)),
		image.HardLink("data/xlink", "data/small"),
	}}
	img, err := image.New(image.Spec{Layers: []image.Layer{lower, upper}})
	require.NoError(t, err)
	// The directory's name is in mount options and lists of loop devices.
	dir := t.TempDir()
	_, err = layout.Write(filepath.Join(dir, "layout"), mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img}))
	require.NoError(t, err)
	d := &disk{file: filepath.Join(dir, "disk.img")}
	_, err = builder.Build(t.Context(), builder.Options{
		Images: []string{"app:1=oci:" + filepath.Join(dir, "layout")}, Output: builder.Output{Path: d.file, FileSystem: fileSystem},
	})
	require.NoError(t, err)
	f, err := os.Open(d.file)
	require.NoError(t, err)
	defer f.Close()
	d.index, d.identity, err = layerdisk.ReadIndex(f)
	require.NoError(t, err)
	return d
}

// mount is cold whatever was done to the disk before.
func (d *disk) mount(t *testing.T) recorder.Target {
	t.Helper()
	target := recorder.Target{MountPoint: t.TempDir(), Disk: d.identity.IndexDigest}
	for _, l := range d.index.Layers {
		target.Layers = append(target.Layers, recorder.Layer{DiffID: l.DiffID, Path: layerdisk.LayerDir(l.Number)})
	}
	var err error
	target.Device, err = recorder.ColdMount(t.Context(), d.file, target.MountPoint, fsmount.FileSystem(d.index.FileSystem))
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, fsmount.Unmount(target.MountPoint))
		instances(t, 0)
	})
	return target
}

func (d *disk) fileOf(layer int, path string) string {
	return d.index.Layers[layer].DiffID.String() + " " + path
}

// files of a list, each once, in order.
func files(l *accesslist.List) (names []string) {
	seen := map[string]bool{}
	for _, f := range l.Files {
		name := f.DiffID.String() + " " + f.Path
		if !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}

// read runs a program on a file of a mounted layer.
func read(t *testing.T, target recorder.Target, layer int, path string, args ...string) {
	t.Helper()
	path = filepath.Join(target.MountPoint, target.Layers[layer].Path, path)
	args = append([]string{"if=" + path, "of=/dev/null", "status=none"}, args...)
	out, err := exec.CommandContext(t.Context(), "dd", args...).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

// instances checks how many trace instances of ours there are. Other tests of this package do not run at the same time,
// and recordings of other processes are locked.
func instances(t *testing.T, want int) {
	t.Helper()
	root, err := fsmount.Tracefs()
	require.NoError(t, err)
	defer root.Close()
	dir, err := root.Open("instances")
	require.NoError(t, err)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	require.NoError(t, err)
	var ours []string
	for _, name := range names {
		if strings.HasPrefix(name, fmt.Sprintf("berth-%d-", os.Getpid())) {
			ours = append(ours, name)
		}
	}
	require.Len(t, ours, want)
}

// eachMethod runs the test with both ways to record and on both file systems.
func eachMethod(t *testing.T, test func(t *testing.T, d *disk, method recorder.Method)) {
	for _, fileSystem := range []string{layerdisk.FileSystemEROFS, layerdisk.FileSystemExt4} {
		t.Run(fileSystem, func(t *testing.T) {
			d := newDisk(t, fileSystem)
			for _, method := range []recorder.Method{recorder.MethodTrace, recorder.MethodOpen} {
				t.Run(string(method), func(t *testing.T) { test(t, d, method) })
			}
		})
	}
}

func TestListHasExactlyWhatWasRead(t *testing.T) {
	eachMethod(t, func(t *testing.T, d *disk, method recorder.Method) {
		// The first mount is warm, as that of a node that has run the image before; recording goes on another one.
		warm := d.mount(t)
		read(t, warm, 1, "data/unread")
		read(t, warm, 1, "data/small")
		target := d.mount(t)
		read(t, target, 0, "bin/tool") // before the recording
		r, err := recorder.Start(t.Context(), target, method)
		require.NoError(t, err)
		require.Equal(t, method, r.Method())
		read(t, target, 1, "data/small")
		read(t, target, 1, "data/big", "bs=4096", "skip=512", "count=1")
		read(t, target, 0, "many/a-rather-long-name-of-a-file-250")
		read(t, warm, 0, "bin/never") // of the same disk, on another mount
		l, sum, err := r.Stop(t.Context())
		require.NoError(t, err)
		l.Image, l.Platform = "app:1", "linux/amd64"
		require.NoError(t, l.Check())
		require.Zero(t, sum.Lost)
		require.Zero(t, sum.Unknown)
		require.Equal(t, d.identity.IndexDigest, l.Disk)
		require.Equal(t, []string{d.fileOf(1, "data/small"), d.fileOf(1, "data/big"), d.fileOf(0, "many/a-rather-long-name-of-a-file-250")}, files(l))

		for _, f := range l.Files {
			if f.Path == "data/big" {
				require.LessOrEqual(t, f.Offset, int64(512*4096))
				require.Greater(t, f.Offset+f.Length, int64(512*4096))
				require.Less(t, f.Length, int64(2<<20), "one page and what the kernel reads ahead")
			}
		}
		require.NotEmpty(t, l.Metadata)
	})
}

// What the list says is enough: a mount for which it was all read ahead reads nothing more for the same work.
func TestListIsAllThatIsNeeded(t *testing.T) {
	d := newDisk(t, layerdisk.FileSystemEROFS)
	work := func(target recorder.Target) {
		read(t, target, 0, "many/a-rather-long-name-of-a-file-250")
		read(t, target, 1, "data/big", "bs=65536", "count=20", "skip=3")
		read(t, target, 0, "bin/tool")
	}
	target := d.mount(t)
	r, err := recorder.Start(t.Context(), target, recorder.MethodTrace)
	require.NoError(t, err)
	work(target)
	list, _, err := r.Stop(t.Context())
	require.NoError(t, err)

	// Somebody else on the machine may have all caches dropped in between, as benchmarks do.
	const attempts = 5
	for i := range attempts {
		missed, sectors := d.readAheadThen(t, list, work)
		if len(missed.Files) == 0 && sectors <= 20*4096/512 {
			return
		}
		require.Less(t, i, attempts-1, "%d sectors were read besides what the list says: %v", sectors, missed.Files)
	}
}

// readAheadThen does the work on a mount for which everything of the list was read, and tells what it read besides. A
// directory's block is read once more: it was brought to the volume, not into the directory's own cache.
func (d *disk) readAheadThen(t *testing.T, list *accesslist.List, work func(recorder.Target)) (missed *accesslist.List, sectors int64) {
	t.Helper()
	target := d.mount(t)
	dev, err := os.Open(target.Device)
	require.NoError(t, err)
	defer dev.Close()
	for _, m := range list.Metadata {
		_, err := dev.ReadAt(make([]byte, m.Length), m.Offset)
		require.NoError(t, err)
	}
	layers := map[string]string{}
	for _, l := range target.Layers {
		layers[l.DiffID.String()] = l.Path
	}
	for _, part := range list.Files {
		f, err := os.Open(filepath.Join(target.MountPoint, layers[part.DiffID.String()], part.Path))
		require.NoError(t, err)
		_, err = f.ReadAt(make([]byte, part.Length), part.Offset)
		require.True(t, err == nil || errors.Is(err, io.EOF))
		require.NoError(t, f.Close())
	}
	r, err := recorder.Start(t.Context(), target, recorder.MethodTrace)
	require.NoError(t, err)
	before := sectorsRead(t, target.Device)
	work(target)
	missed, _, err = r.Stop(t.Context())
	require.NoError(t, err)
	return missed, sectorsRead(t, target.Device) - before
}

// sectorsRead of a block device, from its statistics (Documentation/block/stat.rst of the kernel, third field).
func sectorsRead(t *testing.T, dev string) int64 {
	t.Helper()
	data, err := os.ReadFile("/sys/block/" + filepath.Base(dev) + "/stat")
	require.NoError(t, err)
	var ios, merges, sectors int64
	_, err = fmt.Sscan(string(data), &ios, &merges, &sectors)
	require.NoError(t, err)
	return sectors
}

func TestFallsBackAndRefuses(t *testing.T) {
	d := newDisk(t, layerdisk.FileSystemEROFS)
	target := d.mount(t)
	r, err := recorder.Start(t.Context(), target, recorder.MethodAny)
	require.NoError(t, err)
	require.Equal(t, recorder.MethodTrace, r.Method())
	require.NoError(t, r.Close())
	require.NoError(t, r.Close(), "closing twice does nothing")

	other := d.mount(t)
	other.Device = target.Device
	_, err = recorder.Start(t.Context(), other, recorder.MethodAny)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument, "the device is not what is mounted there")
	other.Device = "/dev/null"
	_, err = recorder.Start(t.Context(), other, recorder.MethodAny)
	require.Error(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, err = recorder.Start(t.Context(), target, recorder.MethodTrace)
	require.NoError(t, err)
	_, _, err = r.Stop(ctx)
	require.ErrorIs(t, err, context.Canceled)
	instances(t, 0)
}

// A recorder that is killed leaves a trace instance; the next one removes it.
func TestStaleInstanceIsRemoved(t *testing.T) {
	if victim := os.Getenv("RECORD_AND_WAIT"); victim != "" {
		device, mountPoint, _ := strings.Cut(victim, " ")
		_, err := recorder.Start(t.Context(), recorder.Target{Device: device, MountPoint: mountPoint}, recorder.MethodTrace)
		require.NoError(t, err)
		fmt.Println("recording")
		_, _ = os.Stdin.Read(make([]byte, 1))
		return
	}
	d := newDisk(t, layerdisk.FileSystemEROFS)
	target := d.mount(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestStaleInstanceIsRemoved$")
	cmd.Env = append(os.Environ(), "RECORD_AND_WAIT="+target.Device+" "+target.MountPoint)
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	var out bytes.Buffer
	for !strings.Contains(out.String(), "recording") {
		n, err := io.CopyN(&out, stdout, 1)
		require.NoError(t, err, "%d %s", n, out.String())
	}
	count := func() (n int) {
		root, err := fsmount.Tracefs()
		require.NoError(t, err)
		defer root.Close()
		dir, err := root.Open("instances")
		require.NoError(t, err)
		defer dir.Close()
		names, err := dir.Readdirnames(-1)
		require.NoError(t, err)
		for _, name := range names {
			if strings.HasPrefix(name, fmt.Sprintf("berth-%d-", cmd.Process.Pid)) {
				n++
			}
		}
		return n
	}
	require.Equal(t, 1, count())
	require.NoError(t, recorder.RemoveStale())
	require.Equal(t, 1, count(), "one in use stays")
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	require.Equal(t, 1, count(), "left behind")
	require.NoError(t, recorder.RemoveStale())
	require.Equal(t, 0, count())
}

// A loop device over a block device is how a disk that a node has mounted is recorded: it shares nothing with it.
func TestColdMountOfADevice(t *testing.T) {
	d := newDisk(t, layerdisk.FileSystemEROFS)
	loop, open, err := device.AttachLoopWhileUsed(t.Context(), d.file, device.LoopOptions{ReadOnly: true})
	require.NoError(t, err)
	defer open.Close()
	onDevice := *d
	onDevice.file = loop.Path
	first, second := onDevice.mount(t), onDevice.mount(t)
	require.NotEqual(t, first.Device, second.Device)
	read(t, first, 1, "data/small")
	r, err := recorder.Start(t.Context(), second, recorder.MethodTrace)
	require.NoError(t, err)
	read(t, second, 1, "data/small")
	l, _, err := r.Stop(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{d.fileOf(1, "data/small")}, files(l))

	_, err = recorder.ColdMount(t.Context(), d.file+".none", t.TempDir(), fsmount.EROFS)
	require.Error(t, err)
	_, err = recorder.ColdMount(t.Context(), os.Args[0], t.TempDir(), fsmount.EROFS)
	require.ErrorIs(t, err, unix.EINVAL)
	loops, err := device.FindLoops(os.Args[0])
	require.NoError(t, err)
	require.Empty(t, loops)
}
