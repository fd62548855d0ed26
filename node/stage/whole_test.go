package stage_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/blockdev/retry"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/catalog/storelister"
	"berth.dev/berth/imagesnapshot/imagesnapshottest"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/imagesnapshot/store/boltstore"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/matcher"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/test/harness/walk"
)

// whole is a cloud, an engine that makes image snapshots in it, a catalog of them, and a node that attaches them for
// pulls.
type whole struct {
	*walk.Walk
	fake  *blockdevtest.Fake
	disks map[string]stage.Disk // by label
	node  *stage.Node

	path    string
	store   *boltstore.Store
	engine  *lifecycle.Engine
	stop    func()
	chooser *ondemand.Chooser
	unchoos func()
}

// TestWalkOfAll has image snapshots come and go while a node pulls: the disks that pulls need are chosen from the
// catalog, attached, held, let go to make room, and their image snapshots deleted under them, on a cloud that
// misbehaves, with crashes and reboots of the node. What must hold at all times is that of TestWalk. In the end, when
// all image snapshots are deleted, nothing is left anywhere.
func TestWalkOfAll(t *testing.T) {
	walk.Run(t, 10000, 500, func(w *walk.Walk) {
		a := newWhole(w)
		defer a.end()
		choices := a.choices()
		for range w.Steps {
			w.Step(choices)
			a.look()
		}
		a.giveUp()
		w.Logf("%d layers were had from disks", a.node.Had())
		require.Greater(w, a.node.Had(), w.Steps/100, "a walk on which nothing is had from disks shows nothing")
	})
}

// images that there are, and their layers.
var images = map[string][]string{"a": {"base", "a"}, "b": {"base", "a", "b"}, "c": {"c"}, "d": {"base", "d"}}

func reference(image string) string { return "registry.example/" + image + ":1" }

// label of the disk of a set of images.
func label(references []string) string {
	var names []string
	for image := range images {
		if slices.Contains(references, reference(image)) {
			names = append(names, image)
		}
	}
	slices.Sort(names)
	return "disk-" + strings.Join(names, "")
}

// allDisks is one for each set of images.
func allDisks(t *testing.T) map[string]stage.Disk {
	t.Helper()
	all := make(map[string]stage.Disk)
	names := []string{"a", "b", "c", "d"}
	for set := 1; set < 1<<len(names); set++ {
		var list []layerdisktest.Image
		var refs []string
		for i, image := range names {
			if set>>i&1 == 1 {
				list = append(list, layerdisktest.Image{Reference: reference(image), Layers: images[image]})
				refs = append(refs, reference(image))
			}
		}
		ix := layerdisktest.Index(layerdisk.FileSystemEROFS, list...)
		encoded, err := layerdisk.Seal(ix)
		require.NoError(t, err)
		_, id, err := layerdisk.ParseIdentified(encoded)
		require.NoError(t, err)
		all[label(refs)] = stage.Disk{Index: ix, Identity: id}
	}
	return all
}

func newWhole(w *walk.Walk) *whole {
	dir, err := os.MkdirTemp("/dev/shm", "berth-walk-")
	if err != nil {
		dir = w.TempDir()
	}
	w.Cleanup(func() { _ = os.RemoveAll(dir) })
	a := &whole{Walk: w, fake: blockdevtest.NewFake(8), disks: allDisks(w.T), path: filepath.Join(dir, "store.db")}
	a.store, err = boltstore.Open(a.path)
	require.NoError(w, err)
	builds := "berth-" + strings.ReplaceAll(a.store.Installation(), "-", "")[:12] + "-"
	a.node = stage.NewNode(w, "cloud", a.fake, a.disks, builds)
	a.startEngine()
	a.follow()
	return a
}

func (a *whole) startEngine() {
	s, ok := retry.Around(scaled{a.fake}).(interface {
		blockdev.Attacher
		blockdev.Provisioner
		blockdev.VolumeSnapshotter
	})
	require.True(a, ok)
	limits := imagesnapshottest.Limits()
	limits.MinSizeGiB, limits.DefaultSizeGiB, limits.MaxPerOwner = 1, 1, 6
	var err error
	a.engine, err = lifecycle.New(lifecycle.Config{
		Store: a.store, Watcher: a.store, Indexes: a.store, Installation: a.store.Installation(), Limits: limits, MaxBuilds: 2,
		Backends: map[string]lifecycle.Backend{"cloud": {Provisioner: s, Attacher: s, Snapshotter: s}}, Driver: "cloud", Builder: a,
	})
	require.NoError(a, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- a.engine.Run(ctx) }()
	a.stop = func() {
		cancel()
		require.NoError(a, <-ended)
	}
}

// follow has the node's process know the catalog.
func (a *whole) follow() {
	var err error
	a.chooser, err = ondemand.New(context.Background(), ondemand.Config{
		Stage: a.node.Stager(), Drivers: []string{"cloud"}, Wait: 10 * time.Second, MaxDisks: 4, Platform: matcher.Platform{OS: "linux", Architecture: "amd64"},
	})
	require.NoError(a, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	chooser := a.chooser
	go func() {
		ended <- chooser.Follow(ctx, storelister.New(storelister.Config{Store: a.store, Watcher: a.store, Indexes: a.store, LegacyDriver: "cloud"}), func() {})
	}()
	a.unchoos = func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			a.Errorf("follow catalog: %v", err)
		}
		require.NoError(a, chooser.Close())
	}
}

func (a *whole) restartNode(reboot bool) {
	a.unchoos()
	a.node.Restart(reboot)
	a.follow()
}

func (a *whole) end() {
	a.fake.Misbehave(blockdevtest.Misbehaviour{})
	a.node.Behave()
	a.unchoos()
	a.node.End()
	a.stop()
	require.NoError(a, a.store.Close())
}

// scaled makes a GiB of a spec 64 KiB of the fake.
type scaled struct{ *blockdevtest.Fake }

const scale = 1 << 14

func (s scaled) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	req.SizeBytes /= scale
	v, err := s.Fake.CreateVolume(ctx, req)
	v.SizeBytes *= scale
	return v, err
}

func (s scaled) CreateVolumeSnapshot(ctx context.Context, name, volume string) (blockdev.VolumeSnapshot, error) {
	v, err := s.Fake.CreateVolumeSnapshot(ctx, name, volume)
	v.SizeBytes *= scale
	return v, err
}

func (s scaled) GetVolumeSnapshot(ctx context.Context, id string) (blockdev.VolumeSnapshot, error) {
	v, err := s.Fake.GetVolumeSnapshot(ctx, id)
	v.SizeBytes *= scale
	return v, err
}

// Plan implements lifecycle.Builder.
func (a *whole) Plan(_ context.Context, req lifecycle.PlanRequest) (lifecycle.Plan, error) {
	var p lifecycle.Plan
	ix := a.disks[label(req.Spec.Images)].Index
	for _, l := range ix.Layers {
		p.Layers = append(p.Layers, lifecycle.PlannedLayer{DiffID: l.DiffID, BlobBytes: 1 << 20})
	}
	for _, c := range ix.Chains {
		p.Chains = append(p.Chains, c.ChainID)
	}
	return p, nil
}

// Build implements lifecycle.Builder: it writes the label of the disk, last of all.
func (a *whole) Build(ctx context.Context, req lifecycle.BuildRequest) (lifecycle.BuildResult, error) {
	dev, err := a.fake.OpenDevice(req.Device, true)
	if err != nil {
		return lifecycle.BuildResult{}, err
	}
	text := make([]byte, stage.LabelBytes)
	if _, err := dev.WriteAt(text, 0); err != nil {
		return lifecycle.BuildResult{}, err
	}
	select {
	case <-time.After(time.Minute):
	case <-ctx.Done():
		return lifecycle.BuildResult{}, ctx.Err()
	}
	l := label(req.Spec.Images)
	copy(text, l)
	if _, err := dev.WriteAt(text, 0); err != nil {
		return lifecycle.BuildResult{}, fmt.Errorf("write: %w: %w", errdefs.ErrDataLoss, err)
	}
	ix := *a.disks[l].Index
	encoded, err := layerdisk.Seal(&ix)
	return lifecycle.BuildResult{Index: encoded, DiskBytes: stage.DiskBytes}, err
}

func (a *whole) choices() []walk.Choice {
	return []walk.Choice{
		{Weight: 10, Do: a.create},
		{Weight: 4, Do: a.update},
		{Weight: 5, Do: a.remove},
		{Weight: 30, Do: a.pull},
		{Weight: 20, Do: func() { a.node.Release(a.holder()) }},
		{Weight: 12, Do: func() { a.sleep(5 * time.Second) }},
		{Weight: 12, Do: func() { a.sleep(3 * time.Minute) }},
		{Weight: 2, Do: func() { a.sleep(3 * time.Hour) }},
		{Weight: 4, Do: a.misbehave},
		{Weight: 2, Do: a.node.ChangeDevice},
		{Weight: 1, Do: a.node.RemoveDevice},
		{Weight: 4, Do: a.node.ArmCrash},
		{Weight: 1, Do: func() { a.Note("crash"); a.restartNode(false) }},
		{Weight: 1, Do: func() { a.Note("reboot"); a.restartNode(true) }},
		{Weight: 1, Do: func() { a.Note("the engine starts anew"); a.stop(); a.startEngine() }},
	}
}

func (a *whole) holder() string { return fmt.Sprint("h", a.IntN(10)) }

func (a *whole) spec() (s imagesnapshot.Spec) {
	for _, image := range []string{"a", "b", "c", "d"} {
		if a.Chance(0.4) {
			s.Images = append(s.Images, reference(image))
		}
	}
	if len(s.Images) == 0 {
		s.Images = []string{reference("a")}
	}
	s.Flash, s.ReuseLayers = a.Chance(0.3), a.Chance(0.3)
	if a.Chance(0.3) {
		s.RetentionDays = 1
	}
	s.Elimination = imagesnapshot.EliminationLRU
	return s
}

func (a *whole) create() {
	name, spec := fmt.Sprint("n", a.IntN(8)), a.spec()
	_, err := a.engine.Create(a.Context(), lifecycle.CreateRequest{Name: name, Spec: spec})
	a.Note("create %s of %v, flash=%t: %v", name, spec.Images, spec.Flash, err)
}

func (a *whole) update() {
	name, spec := fmt.Sprint("n", a.IntN(8)), a.spec()
	_, err := a.engine.Update(a.Context(), lifecycle.UpdateRequest{NameOrID: name, Spec: spec})
	a.Note("update %s to %v: %v", name, spec.Images, err)
}

func (a *whole) remove() {
	name := fmt.Sprint("n", a.IntN(8))
	_, err := a.engine.Delete(a.Context(), lifecycle.DeleteRequest{NameOrID: name})
	a.Note("delete %s: %v", name, err)
}

func (a *whole) pull() {
	image := walk.Pick(a.Walk, []string{"a", "b", "c", "d"})
	layers := images[image]
	q := layerdisk.LayerName{ChainID: layerdisktest.ChainID(layers...)}
	want := ondemand.Wanted{LayerName: q, ImageRef: reference(image)}
	chooser := a.chooser
	a.node.Pull(a.holder(), image, q, func(ctx context.Context) { chooser.Ready(ctx, want) })
}

func (a *whole) sleep(most time.Duration) {
	d := time.Duration(a.Int64N(int64(most)))
	a.Note("sleep %s", d)
	time.Sleep(d)
}

func (a *whole) misbehave() {
	var names []string
	if a.Chance(0.8) {
		names = slices.DeleteFunc(blockdevtest.FaultNames(), func(name string) bool {
			return a.Chance(0.75) || name == "devices stall" // builds write to devices of this cloud, and would never end
		})
	}
	a.Note("the cloud does wrong: %q", names)
	a.fake.Misbehave(blockdevtest.Faults(a.Uint64(), names...))
}

func (a *whole) look() {
	a.Helper()
	synctest.Wait()
	if a.node.Dead() {
		a.Note("died")
		a.restartNode(a.Chance(0.2))
		synctest.Wait()
	}
	a.node.Check()
	a.Stand()
}

// giveUp has the cloud behave and all image snapshots deleted, and wants nothing to be left.
func (a *whole) giveUp() {
	a.Helper()
	a.Note("the cloud behaves again, and all is given up")
	a.node.Behave()
	for range 4 {
		time.Sleep(time.Hour)
		a.node.Behave()
		a.look()
	}
	list, err := a.store.List(a.Context(), store.Filter{})
	require.NoError(a, err)
	for _, s := range list {
		_, err := a.engine.Delete(a.Context(), lifecycle.DeleteRequest{NameOrID: s.Name})
		require.NoError(a, err)
	}
	if left := a.node.GiveUp(); len(left) > 0 {
		a.Errorf("left on the node: %v", left)
	}
	list, err = a.store.List(a.Context(), store.Filter{})
	require.NoError(a, err)
	for _, s := range list {
		a.Errorf("image snapshot %s is left: %s, %s", s.Name, s.Status.Phase, s.Status.Message)
	}
	require.Equal(a, blockdevtest.Inventory{}, a.fake.Inventory(), "left in the cloud")
}
