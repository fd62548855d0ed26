//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/leak"
	"berth.dev/berth/test/harness/wait"
)

// trialRun is a node with an image of which a start reads some files.
type trialRun struct {
	*node
	image pushed
	disk  string
	// busybox and data are the diff IDs of its layers.
	busybox, data digest.Digest
}

func newTrialRun(t *testing.T) *trialRun {
	n := newNode(t)
	busybox, err := image.Busybox()
	require.NoError(t, err)
	data := image.Layer{Entries: []image.Entry{
		image.Dir("data"), image.File("data/one", strings.Repeat("1", 100_000)), image.File("data/two", strings.Repeat("2", 10)),
		image.File("data/never", strings.Repeat("n", 100_000)),
	}}
	tr := &trialRun{node: n}
	img, err := image.New(image.Spec{Layers: []image.Layer{busybox, data}, Command: []string{"/bin/cat", "/data/two", "/data/one"}})
	require.NoError(t, err)
	ref, err := n.registry.Push(t.Context(), "recorded:1", img)
	require.NoError(t, err)
	tr.image = pushed{ref: ref, img: img}
	config, err := img.ConfigFile()
	require.NoError(t, err)
	tr.busybox, tr.data = digest.Digest(config.RootFS.DiffIDs[0].String()), digest.Digest(config.RootFS.DiffIDs[1].String())
	tr.disk = n.build("recorded", tr.image)
	n.start()
	return tr
}

// record runs "berth record" on the node's containerd.
func (tr *trialRun) record(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "berth"), append([]string{
		"record", "--containerd", tr.containerd.Socket(), "--dir", filepath.Join(tr.dir, "tr"), "--socket", filepath.Join(tr.dir, "b", "b.sock"),
	}, args...)...)
	cmd.Env = append(os.Environ(), tr.env()...)
	return cmd
}

func (tr *trialRun) mustRecord(args ...string) string {
	tr.Helper()
	out, err := tr.record(tr.Context(), args...).CombinedOutput()
	require.NoError(tr, err, "%s", out)
	tr.requireUndone()
	return string(out)
}

// requireUndone wants nothing left of any run: mounts, loop devices, processes, containers, files.
func (tr *trialRun) requireUndone() {
	tr.Helper()
	require.NoError(tr, leak.WaitNone(context.Background(), filepath.Join(tr.dir, "tr")))
	left, err := os.ReadDir(filepath.Join(tr.dir, "tr"))
	require.NoError(tr, err)
	require.Empty(tr, left)
	c, err := tr.containerd.Client()
	require.NoError(tr, err)
	defer func() { require.NoError(tr, c.Close()) }()
	all, err := c.NamespaceService().List(context.Background())
	require.NoError(tr, err)
	require.NotContains(tr, all, "berth-record")
}

func (tr *trialRun) containers() int {
	tr.Helper()
	c, err := tr.containerd.Client()
	require.NoError(tr, err)
	defer func() { require.NoError(tr, c.Close()) }()
	list, err := c.Containers(namespaces.WithNamespace(tr.Context(), "berth-record"))
	if errdefs.IsNotFound(err) {
		return 0
	}
	require.NoError(tr, err)
	return len(list)
}

func readList(t *testing.T, path string) *accesslist.List {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	l, err := accesslist.Decode(data)
	require.NoError(t, err)
	return l
}

// names of the files of a list, in order.
func (tr *trialRun) names(l *accesslist.List) (names []string) {
	tr.Helper()
	layers := map[digest.Digest]string{tr.busybox: "busybox", tr.data: "data"}
	for _, f := range l.Files {
		name := layers[f.DiffID] + ":" + f.Path
		if len(names) == 0 || names[len(names)-1] != name {
			names = append(names, name)
		}
	}
	return names
}

// The list has exactly the files that a start reads, in the order of their first access.
func TestRecordSeesWhatAStartReads(t *testing.T) {
	tr := newTrialRun(t)
	list := filepath.Join(tr.dir, "list")
	out := tr.mustRecord(tr.image.ref, "--disk", tr.disk, "--output", list)
	require.Contains(t, out, "2222222222")
	require.Contains(t, out, "kept by   "+list)
	l := readList(t, list)
	require.Equal(t, tr.image.ref, l.Image)
	// The runtime looks up the user before the program starts, in files of the image.
	require.Equal(t, []string{"busybox:etc/group", "busybox:etc/passwd", "busybox:bin/busybox", "data:data/two", "data:data/one"}, withoutRepeats(tr.names(l)))
	require.NotEmpty(t, l.Metadata)
	var one int64
	for _, f := range l.Files {
		if f.Path == "data/one" {
			one += f.Length
		}
	}
	require.GreaterOrEqual(t, one, int64(100_000))

	// Another command, on a disk that a node has warm by now, and the same list for a build.
	tr.mustRecord(tr.image.ref, "--disk", tr.disk, "--output", list, "--", "/bin/cat", "/data/one")
	require.Equal(t, "data:data/one", last(tr.names(readList(t, list))))
	require.NotContains(t, tr.names(readList(t, list)), "data:data/two")
	tr.mustRecord(tr.image.ref, "--disk", tr.disk, "--output", list, "--merge", "--", "/bin/cat", "/data/two")
	require.Subset(t, tr.names(readList(t, list)), []string{"data:data/one", "data:data/two"}, "half of two lists")
	tr.mustRecord(tr.image.ref, "--disk", tr.disk, "--output", filepath.Join(tr.dir, "open"), "--method", "open", "--", "/bin/cat", "/data/two", "/data/one")
	require.Equal(t, withoutRepeats(tr.names(l)), withoutRepeats(tr.names(readList(t, filepath.Join(tr.dir, "open")))))

	placed := filepath.Join(tr.dir, "placed.img")
	build := []string{filepath.Join(bin, "berth"), "build", "-o", placed, "--access-list", list, tr.image.ref}
	if tr.registry.PlainHTTP() {
		build = append(build, "--plain-http", tr.registry.Host())
	}
	run(t, tr.env(), build...)
	require.Contains(t, run(t, nil, filepath.Join(bin, "berth"), "inspect", placed), "that images read first lie together")
	run(t, nil, filepath.Join(bin, "berth"), "verify", placed)
	tr.mustRecord(tr.image.ref, "--disk", placed, "--output", list)
	require.Equal(t, withoutRepeats(tr.names(l)), withoutRepeats(tr.names(readList(t, list))))
}

// A server's recording ends when it is ready, or with the time.
func TestRecordingOfAServer(t *testing.T) {
	tr := newTrialRun(t)
	list := filepath.Join(tr.dir, "list")
	server := []string{"--", "/bin/sh", "-c", "cat /data/two; echo; echo ready to serve; sleep 3600 & wait"}
	var summary struct {
		End  string
		Lost int64 `json:"lostPages"`
	}
	cmd := tr.record(t.Context(), append([]string{tr.image.ref, "--disk", tr.disk, "--output", list, "--json", "--ready", "^ready to serve$", "--timeout", "0"}, server...)...)
	out, err := cmd.Output()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(out, &summary))
	require.Equal(t, "ready", summary.End)
	require.Zero(t, summary.Lost)
	require.Equal(t, "data:data/two", last(tr.names(readList(t, list))))
	tr.requireUndone()

	out, err = tr.record(t.Context(), append([]string{tr.image.ref, "--disk", tr.disk, "--output", list, "--json", "--timeout", "3s"}, server...)...).Output()
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(out, &summary))
	require.Equal(t, "timeout", summary.End)
	tr.requireUndone()
}

func TestRecordingThatFailsKeepsNothing(t *testing.T) {
	tr := newTrialRun(t)
	list := filepath.Join(tr.dir, "list")
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"status":           {[]string{"--disk", tr.disk, "--output", list, "--", "/bin/sh", "-c", "exit 7"}, "status 7"},
		"never ready":      {[]string{"--disk", tr.disk, "--output", list, "--ready", "never", "--", "/bin/true"}, "before a line matched"},
		"no such program":  {[]string{"--disk", tr.disk, "--output", list, "--", "/bin/none"}, "no such file"},
		"no such disk":     {[]string{"--disk", tr.disk + ".none", "--output", list}, "no such file"},
		"no disk":          {[]string{"--disk", filepath.Join(bin, "berth"), "--output", list}, "not a berth layer disk"},
		"other platform":   {[]string{"--disk", tr.disk, "--output", list, "--platform", "linux/s390x"}, "berth inspect"},
		"no output":        {[]string{"--disk", tr.disk}, "--output"},
		"no containerd":    {[]string{"--disk", tr.disk, "--output", list, "--containerd", filepath.Join(tr.dir, "none.sock")}, "connect to containerd"},
		"no directory":     {[]string{"--disk", tr.disk, "--output", list, "--dir", list + "/x"}, "directory"},
		"no place to keep": {[]string{"--disk", tr.disk, "--output", filepath.Join(tr.dir, "none", "list"), "--", "/bin/true"}, "write list"},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "no directory" {
				require.NoError(t, os.WriteFile(list, nil, 0o600))
				defer os.Remove(list)
			}
			out, err := tr.record(t.Context(), append([]string{tr.image.ref}, c.args...)...).CombinedOutput()
			require.Error(t, err)
			require.Contains(t, string(out), c.want)
			if name != "no directory" {
				require.NoFileExists(t, list)
			}
		})
	}
	tr.requireUndone()
}

// Ctrl-C, the end of the terminal and a polite kill undo everything; after kill -9 the next run does.
func TestRecordingIsUndone(t *testing.T) {
	tr := newTrialRun(t)
	list := filepath.Join(tr.dir, "list")
	serve := []string{tr.image.ref, "--disk", tr.disk, "--output", list, "--timeout", "0", "--", "/bin/sh", "-c", "echo started; sleep 3600 & wait"}
	for _, sig := range []os.Signal{os.Interrupt, unix.SIGTERM, unix.SIGHUP, os.Kill} {
		t.Run(sig.String(), func(t *testing.T) {
			cmd := tr.record(t.Context(), serve...)
			var out lockedBuffer
			cmd.Stdout, cmd.Stderr = &out, &out
			require.NoError(t, cmd.Start())
			require.NoError(t, wait.Until(t.Context(), time.Minute, "the container to run", func(context.Context) error {
				if !strings.Contains(out.String(), "started") {
					return fmt.Errorf("output so far: %s", out.String())
				}
				return nil
			}))
			require.Equal(t, 1, tr.containers())
			require.NoError(t, cmd.Process.Signal(sig))
			require.Error(t, cmd.Wait())
			require.NoFileExists(t, list)
			if sig == os.Kill {
				require.Equal(t, 1, tr.containers(), "left behind")
				tr.mustRecord(tr.image.ref, "--disk", tr.disk, "--output", filepath.Join(tr.dir, "next"), "--", "/bin/true")
				return
			}
			require.Contains(t, out.String(), "interrupted, nothing was kept")
			tr.requireUndone()
		})
	}
}

// lockedBuffer is written to and read at the same time.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// The list of an image snapshot is kept with it, recorded from a disk that no other node or container uses, and its
// next build places files by it.
func TestRecordingOfAnImageSnapshot(t *testing.T) {
	tr := newTrialRun(t)
	flags := tr.registryFlags(tr.image.ref)
	tr.cli(append([]string{"image-snapshot", "create", "nightly", "--image", tr.image.ref, "--wait"}, flags...)...)
	require.NotContains(t, tr.cli("image-snapshot", "get", "nightly"), "TRACED IMAGE")
	_, err := tr.berthd.CLI(t.Context(), "image-snapshot", "access-list", "nightly")
	require.ErrorContains(t, err, "berth record IMAGE --image-snapshot nightly")

	// Nobody has attached it yet.
	out := tr.mustRecord(tr.image.ref, "--image-snapshot", "nightly")
	require.Contains(t, out, "kept by   image snapshot nightly")
	tr.eventually("the disk that was attached for it to be gone", func() error {
		if n := len(tr.status().Disks); n > 0 {
			return fmt.Errorf("%d disks", n)
		}
		return nil
	})
	require.Contains(t, tr.cli("image-snapshot", "get", "nightly"), "TRACED IMAGE")
	require.Contains(t, tr.cli("image-snapshot", "access-list", "nightly", "--image", tr.image.ref), "\"data/two\"")

	// It is attached and has been read by now: what is recorded is the same.
	tr.pull(tr.image)
	tr.runOnce("warm")
	first := tr.cli("image-snapshot", "access-list", "nightly", "--encoded")
	tr.mustRecord(tr.image.ref)
	second := tr.cli("image-snapshot", "access-list", "nightly", "--encoded")
	require.Equal(t, withoutRepeats(tr.names(decodeList(t, first))), withoutRepeats(tr.names(decodeList(t, second))))
	tr.mustRecord(tr.image.ref, "--merge", "--", "/bin/cat", "/data/one")
	require.Contains(t, tr.cli("image-snapshot", "access-list", "nightly"), "\"data/two\"", "half of them have it")

	list := filepath.Join(tr.dir, "list")
	require.NoError(t, os.WriteFile(list, []byte(first), 0o600))
	require.Contains(t, tr.cli("image-snapshot", "access-list", "nightly", "--put", list), "keeps the access list")
	require.Equal(t, first, tr.cli("image-snapshot", "access-list", "nightly", "--encoded"))

	require.Nil(t, tr.placedOnDisk())
	tr.cli("image-snapshot", "update", "nightly", "--rebuild", "--wait")
	placed := tr.placedOnDisk()
	require.NotNil(t, placed)
	require.EqualValues(t, 5, placed["files"])
	require.Contains(t, tr.cli("image-snapshot", "get", "nightly"), "TRACED IMAGE", "it stays over an update")
}

// runOnce runs the image's program from berth's snapshotter.
func (tr *trialRun) runOnce(name string) {
	tr.Helper()
	tr.run(tr.image, filepath.Base(tr.dir)+name, "/bin/cat", "/data/two")
}

// placedOnDisk is what the newest volume snapshot of the embedded driver says of files that lie together.
func (tr *trialRun) placedOnDisk() map[string]any {
	tr.Helper()
	v, err := tr.snapshot("nightly")
	require.NoError(tr, err)
	var disk struct {
		Placed map[string]any `json:"placed"`
	}
	path := filepath.Join(tr.berthd.Root(), "volumes", "snapshots", v.Status.VolumeSnapshotID, "disk")
	require.NoError(tr, json.Unmarshal([]byte(run(tr.T, nil, filepath.Join(bin, "berth"), "inspect", "--json", path)), &disk))
	return disk.Placed
}

func decodeList(t *testing.T, encoded string) *accesslist.List {
	t.Helper()
	l, err := accesslist.Decode([]byte(encoded))
	require.NoError(t, err)
	return l
}

// A node records the first start of an image that has no list, and keeps it with the image snapshot or in its own
// directory.
func TestFirstStartIsRecorded(t *testing.T) {
	for name, kept := range map[string]bool{"of an image snapshot": true, "of a disk": false} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.configure = func(c *berth.Config) { c.RecordTime = 5 * time.Second }
			busybox, err := image.Busybox()
			require.NoError(t, err)
			img := n.push("app", busybox, image.Layer{Entries: []image.Entry{image.File("one", "1"), image.File("two", "2"), image.File("never", "n")}})
			if !kept {
				n.attachAtStart("app", n.build("app", img))
			}
			n.start()
			if kept {
				n.cli(append([]string{"image-snapshot", "create", "nightly", "--image", img.ref, "--wait"}, n.registryFlags(img.ref)...)...)
			}
			n.registry.Reset()
			n.pull(img)
			require.Zero(t, n.fetched(img))
			require.Equal(t, "21", strings.TrimSpace(n.run(img, filepath.Base(n.dir)+"a", "/bin/cat", "/two", "/one")))
			var l *accesslist.List
			n.eventually("the list to be kept", func() error {
				files, err := filepath.Glob(filepath.Join(n.berthd.Root(), "access-lists", "recorded-*"))
				if err == nil && len(files) == 1 && !kept {
					l = readList(t, files[0])
					return nil
				}
				if !kept {
					return fmt.Errorf("%d lists, %w", len(files), err)
				}
				out, err := n.berthd.CLI(n.Context(), "image-snapshot", "access-list", "nightly", "--encoded")
				if err == nil {
					l = decodeList(t, out)
				}
				return err
			})
			require.Equal(t, img.ref, l.Image)
			var files []string
			for _, f := range l.Files {
				files = append(files, f.Path)
			}
			require.Subset(t, files, []string{"bin/busybox", "one", "two"})
			require.NotContains(t, files, "never")
			require.Less(t, slices.Index(files, "two"), slices.Index(files, "one"))
		})
	}
}

func withoutRepeats(names []string) (once []string) {
	seen := map[string]bool{}
	for _, n := range names {
		if !seen[n] {
			seen[n] = true
			once = append(once, n)
		}
	}
	return once
}

func last(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return names[len(names)-1]
}

func run(t *testing.T, env []string, args ...string) string {
	t.Helper()
	var out bytes.Buffer
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr = append(os.Environ(), env...), &out, &out
	require.NoError(t, cmd.Run(), "%v: %s", args, &out)
	return out.String()
}
