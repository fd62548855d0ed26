package buildproc_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/builder/verify"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/buildproc"
	"berth.dev/berth/imagesnapshot/imagesnapshottest"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store/boltstore"
	"berth.dev/berth/layerdisk"
)

// machine is one with loop devices and nothing else: store, storage, builds.
type machine struct {
	store  *boltstore.Store
	driver *loopdev.Driver
	engine *lifecycle.Engine
}

// openMachine opens everything below dir. Processes are those of program.
func openMachine(dir, program string) (_ *machine, err error) {
	m := &machine{}
	if m.store, err = boltstore.Open(filepath.Join(dir, "store.db")); err != nil {
		return nil, err
	}
	if m.driver, err = loopdev.Open(filepath.Join(dir, "volumes")); err != nil {
		return nil, err
	}
	b, err := buildproc.Open(buildproc.Config{Command: []string{program}, TempDir: filepath.Join(dir, "tmp")})
	if err != nil {
		return nil, err
	}
	m.engine, err = lifecycle.New(lifecycle.Config{
		Store: m.store, Watcher: m.store, Indexes: m.store,
		Backends: map[string]lifecycle.Backend{"": {Provisioner: m.driver, Attacher: m.driver, Snapshotter: m.driver}},
		Builder:  b, Installation: m.store.Installation(), Limits: imagesnapshottest.Limits(),
	})
	return m, err
}

// startMachine runs the engine until the test ends.
func startMachine(t *testing.T, dir string) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	berth, err := program()
	require.NoError(t, err)
	m, err := openMachine(dir, berth)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.engine.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
		attached, err := m.driver.Attached(context.WithoutCancel(t.Context()))
		require.NoError(t, err)
		for id := range attached {
			require.NoError(t, m.driver.Detach(context.WithoutCancel(t.Context()), id))
		}
		require.NoError(t, errors.Join(m.store.Close(), m.driver.Close()))
	})
	return m
}

func (m *machine) await(t *testing.T, what string, condition func(*imagesnapshot.ImageSnapshot) bool) (s *imagesnapshot.ImageSnapshot) {
	t.Helper()
	ok := false
	deadline := time.Now().Add(60 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; !ok && time.Now().Before(deadline); <-tick.C {
		list, err := m.store.Get(t.Context(), "one")
		require.True(t, err == nil || errdefs.IsNotFound(err), "%v", err)
		s = list
		ok = condition(s)
	}
	require.True(t, ok, "not %s: %+v", what, s)
	return s
}

func ready(s *imagesnapshot.ImageSnapshot) bool {
	return s != nil && s.Status.Phase == imagesnapshot.PhaseAvailable && s.Status.Work == nil
}

func gone(s *imagesnapshot.ImageSnapshot) bool { return s == nil }

// requireStorage wants nothing but these volume snapshots, and that the disk on each of them is sound in every file.
func (m *machine) requireStorage(t *testing.T, snapshots ...string) {
	t.Helper()
	volumes, err := m.driver.ListVolumes(t.Context())
	require.NoError(t, err)
	require.Empty(t, volumes)
	list, err := m.driver.ListVolumeSnapshots(t.Context())
	require.NoError(t, err)
	require.Len(t, list, len(snapshots))
	attached, err := m.driver.Attached(t.Context())
	require.NoError(t, err)
	require.Empty(t, attached)
	for _, id := range snapshots {
		v, err := m.driver.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "look", SourceVolumeSnapshotID: id})
		require.NoError(t, err)
		dev, err := m.driver.Attach(t.Context(), v.ID, blockdev.AttachOptions{ReadOnly: true})
		require.NoError(t, err)
		dir := t.TempDir()
		require.NoError(t, fsmount.Mount(dev.Path, dir, fsmount.FileSystem(layerdisk.FileSystemEROFS)))
		report, err := verify.Dir(t.Context(), dir, verify.Options{})
		require.NoError(t, fsmount.Unmount(dir))
		require.NoError(t, err)
		require.Zero(t, report.Findings(), "%+v", report)
		require.NoError(t, m.driver.Detach(t.Context(), v.ID))
		require.NoError(t, m.driver.DeleteVolume(t.Context(), v.ID))
	}
}

// TestMachine is a whole life on one machine: created, updated with layers taken over (E-22), deleted.
func TestMachine(t *testing.T) {
	h := newHub(t, "")
	base, app := layer(t, "base", 3<<20), layer(t, "app", 1<<20)
	first, second := h.push(t, "app:1", base), h.push(t, "app:2", base, app)
	m := startMachine(t, t.TempDir())
	sp := h.spec(first)
	sp.ReuseLayers = true
	_, err := m.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "one", Spec: sp})
	require.NoError(t, err)
	s := m.await(t, "available", ready)
	m.requireStorage(t, s.Status.VolumeSnapshotID)
	require.EqualValues(t, 3<<20, s.Status.Images[0].SizeBytes)

	sp.Images = []string{second}
	_, err = m.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: sp})
	require.NoError(t, err)
	s = m.await(t, "updated", func(s *imagesnapshot.ImageSnapshot) bool { return ready(s) && s.Status.ObservedGeneration == 2 })
	require.Equal(t, "one", s.Status.BaseName)
	require.EqualValues(t, 3<<20, s.Status.ReusedBytes)
	size, err := app.Size()
	require.NoError(t, err)
	require.Equal(t, size, s.Status.FetchedBytes)
	d, err := base.Digest()
	require.NoError(t, err)
	require.Equal(t, 1, h.gets[d.String()], "the registry was asked once for what both have")
	m.requireStorage(t, s.Status.VolumeSnapshotID)

	_, err = m.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "one"})
	require.NoError(t, err)
	m.await(t, "gone", gone)
	m.requireStorage(t)
}

// TestTagMovesWhileBuilding is C-53: whatever a tag means during and after the build, the status has the digest that is
// on the disk.
func TestTagMovesWhileBuilding(t *testing.T) {
	h := newHub(t, "")
	ref := h.push(t, "app:1", layer(t, "first", 1<<20))
	manifest := func() digest.Digest {
		parsed, err := name.ParseReference(ref, name.Insecure)
		require.NoError(t, err)
		d, err := remote.Head(parsed)
		require.NoError(t, err)
		return digest.Digest(d.Digest.String())
	}
	first := manifest()
	stuck := make(chan struct{})
	h.stuck = stuck
	m := startMachine(t, t.TempDir())
	_, err := m.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "one", Spec: h.spec(ref)})
	require.NoError(t, err)
	<-h.asked
	h.push(t, "app:1", layer(t, "second", 1<<20))
	second := manifest()
	require.NotEqual(t, first, second)
	h.mu.Lock()
	h.stuck = nil
	h.mu.Unlock()
	close(stuck)

	onDisk := func(s *imagesnapshot.ImageSnapshot) digest.Digest {
		encoded, err := m.store.GetIndex(t.Context(), s.Status.Identity.IndexDigest)
		require.NoError(t, err)
		ix, err := layerdisk.Parse(encoded)
		require.NoError(t, err)
		return ix.Images[0].Manifest.Digest
	}
	s := m.await(t, "available", ready)
	require.Equal(t, first, s.Status.Images[0].Digest)
	require.Equal(t, first, onDisk(s))
	m.requireStorage(t, s.Status.VolumeSnapshotID)
	_, err = m.engine.Update(t.Context(), lifecycle.UpdateRequest{NameOrID: "one", Spec: h.spec(ref), Rebuild: true})
	require.NoError(t, err)
	s = m.await(t, "built anew", func(s *imagesnapshot.ImageSnapshot) bool { return ready(s) && s.Status.Builds == 2 })
	require.Equal(t, second, s.Status.Images[0].Digest)
	require.Equal(t, second, onDisk(s))
}

// TestDeleteWhileBuilding is C-25 with a real process. The process is stopped, so that it cannot end by itself: only an
// abort ends it. Fails when the end of the context does not kill the process.
func TestDeleteWhileBuilding(t *testing.T) {
	h := newHub(t, "")
	ref := h.push(t, "app:1", layer(t, "base", 1<<20))
	h.stuck = make(chan struct{})
	dir := t.TempDir()
	m := startMachine(t, dir)
	_, err := m.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "one", Spec: h.spec(ref)})
	require.NoError(t, err)
	<-h.asked
	pid := child(t, filepath.Join(dir, "tmp"))
	process, err := os.FindProcess(pid)
	require.NoError(t, err)
	t.Cleanup(func() { _ = process.Kill() }) // it is left only where the test has failed
	require.NoError(t, process.Signal(syscall.SIGSTOP))
	_, err = m.engine.Delete(t.Context(), lifecycle.DeleteRequest{NameOrID: "one"})
	require.NoError(t, err)
	m.await(t, "gone", gone)
	require.NoDirExists(t, fmt.Sprintf("/proc/%d", pid))
	m.requireStorage(t)
}

const (
	envDir     = "BERTH_TEST_MACHINE"
	envProgram = "BERTH_TEST_PROGRAM"
)

// TestMachineProcess is the process that TestSIGKILL kills.
func TestMachineProcess(t *testing.T) {
	if os.Getenv(envDir) == "" {
		t.Skip("is run by TestSIGKILL")
	}
	m, err := openMachine(os.Getenv(envDir), os.Getenv(envProgram))
	require.NoError(t, err)
	ctx, stop := signal.NotifyContext(t.Context(), syscall.SIGTERM)
	defer stop()
	require.NoError(t, m.engine.Run(ctx))
}

// TestSIGKILL kills a whole daemon at different moments of a build; the next one ends it well, and nothing is left of
// the first.
func TestSIGKILL(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	berth, err := program()
	require.NoError(t, err)
	h := newHub(t, "")
	ref := h.push(t, "app:1", layer(t, "base", 1<<20), layer(t, "app", 1<<20))
	for _, moment := range []struct {
		name  string
		asked bool
		after time.Duration
	}{{"in the midst of a layer", true, 0}, {"early", false, 120 * time.Millisecond}, {"late", false, 350 * time.Millisecond}} {
		t.Run(moment.name, func(t *testing.T) {
			dir := t.TempDir()
			m, err := openMachine(dir, berth)
			require.NoError(t, err)
			_, err = m.engine.Create(t.Context(), lifecycle.CreateRequest{Name: "one", Spec: h.spec(ref)})
			require.NoError(t, err)
			require.NoError(t, errors.Join(m.store.Close(), m.driver.Close()))
			stuck := make(chan struct{})
			h.mu.Lock()
			if moment.asked {
				h.stuck = stuck
			}
			h.mu.Unlock()
			daemon := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestMachineProcess$")
			daemon.Env = append(os.Environ(), envDir+"="+dir, envProgram+"="+berth)
			require.NoError(t, daemon.Start())
			if moment.asked {
				<-h.asked
			} else {
				<-time.After(moment.after)
			}
			require.NoError(t, daemon.Process.Kill())
			require.Error(t, daemon.Wait())
			h.mu.Lock()
			h.stuck = nil
			h.mu.Unlock()
			close(stuck)
			require.Eventually(t, func() bool { return !works(t, filepath.Join(dir, "tmp")) }, 10*time.Second, 10*time.Millisecond,
				"the build goes on without its daemon")

			m = startMachine(t, dir)
			s := m.await(t, "available", ready)
			m.requireStorage(t, s.Status.VolumeSnapshotID)
			left, err := os.ReadDir(filepath.Join(dir, "tmp"))
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// works says whether a process works below dir.
func works(t *testing.T, dir string) bool {
	procs, err := filepath.Glob("/proc/[0-9]*/cwd")
	require.NoError(t, err)
	for _, p := range procs {
		if cwd, err := os.Readlink(p); err == nil && strings.HasPrefix(cwd, dir+"/") {
			return true
		}
	}
	return false
}
