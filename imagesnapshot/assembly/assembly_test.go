package assembly_test

import (
	"context"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/assembly"
	"berth.dev/berth/imagesnapshot/automatic"
	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/catalogtest"
	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/imagesnapshot/imagesnapshottest"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/readahead/accesslist"
)

const nginx = "docker.io/library/nginx:1"

// builder knows each image by one layer of its name. It writes nothing: nobody attaches what these tests make.
type builder struct{}

func index(spec imagesnapshot.Spec) *layerdisk.Index {
	var images []layerdisktest.Image
	for _, ref := range spec.Images {
		images = append(images, layerdisktest.Image{Reference: ref, Layers: []string{ref}})
	}
	return layerdisktest.Index(layerdisk.FileSystemEROFS, images...)
}

func (builder) Plan(_ context.Context, req lifecycle.PlanRequest) (lifecycle.Plan, error) {
	return lifecycle.Plan{Layers: []lifecycle.PlannedLayer{{DiffID: index(req.Spec).Layers[0].DiffID, BlobBytes: 1 << 30}}}, nil
}

func (builder) Build(_ context.Context, req lifecycle.BuildRequest) (lifecycle.BuildResult, error) {
	encoded, err := layerdisk.Seal(index(req.Spec))
	return lifecycle.BuildResult{Index: encoded, DiskBytes: 1, FetchedBytes: 1000}, err
}

// scaled storage makes a GiB of the specs 64 KiB.
type scaled struct{ *blockdevtest.Fake }

func (s scaled) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	req.SizeBytes >>= 14
	return s.Fake.CreateVolume(ctx, req)
}

// program is one that keeps image snapshots and has no node.
type program struct {
	t *testing.T
	*assembly.ImageSnapshots
	registry  *prometheus.Registry
	directory string
	stop      func()
}

func start(t *testing.T, dir string, fake *blockdevtest.Fake, change func(*assembly.Options)) *program {
	t.Helper()
	stores, err := assembly.OpenFile(filepath.Join(dir, "store.db"))
	require.NoError(t, err)
	cloud := scaled{fake}
	backend := lifecycle.Backend{Provisioner: cloud, Attacher: cloud, Snapshotter: cloud}
	p := &program{t: t, registry: prometheus.NewRegistry(), directory: filepath.Join(dir, "published")}
	o := assembly.Options{
		Stores: stores, Builder: builder{}, Limits: imagesnapshottest.Limits(), Registry: p.registry,
		Storage:    assembly.Storage{Backends: map[string]lifecycle.Backend{"cloud": backend, "local": backend}, Driver: "cloud"},
		Publishing: assembly.Publishing{Directory: p.directory, Records: filepath.Join(dir, "records"), LocalDrivers: []string{"local"}},
	}
	if change != nil {
		change(&o)
	}
	p.ImageSnapshots, err = assembly.Open(t.Context(), o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.Run(ctx)
	}()
	p.stop = func() {
		cancel()
		<-ended
		require.NoError(t, p.Close())
	}
	return p
}

func (p *program) create(name string) *imagesnapshot.ImageSnapshot {
	p.t.Helper()
	_, err := p.Engine().Create(p.t.Context(), lifecycle.CreateRequest{Name: name, Spec: imagesnapshot.Spec{Images: []string{nginx}}})
	require.NoError(p.t, err)
	return p.available(name)
}

func (p *program) available(name string) *imagesnapshot.ImageSnapshot {
	p.t.Helper()
	time.Sleep(time.Hour) // of the bubble
	synctest.Wait()
	s, err := p.Engine().Find(p.t.Context(), name)
	require.NoError(p.t, err)
	require.Equal(p.t, imagesnapshot.PhaseAvailable, s.Status.Phase, s.Status.Message)
	return s
}

// elsewhere is what another node reads in a directory.
func elsewhere(t *testing.T, path string) map[string]catalog.Entry {
	t.Helper()
	d, err := directory.Open(path, time.Second)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := d.Watch(ctx)
	require.NoError(t, err)
	entries, problems := catalogtest.Until(t, changes)
	require.Empty(t, problems)
	return entries
}

func (p *program) value(name string) (sum float64) {
	p.t.Helper()
	families, err := p.registry.Gather()
	require.NoError(p.t, err)
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}

// A program without a node makes an image snapshot, offers it to its own nodes and in a directory to others, and counts
// what becomes of it. What others cannot attach is not for them, and a directory that is given up is left empty.
func TestProgramWithoutANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		fake := blockdevtest.NewFake(0)
		p := start(t, dir, fake, nil)
		s := p.create("nightly")
		list, err := p.List(t.Context(), store.Filter{})
		require.NoError(t, err)
		require.Len(t, list, 1)
		entries := elsewhere(t, p.directory)
		require.Len(t, entries, 1)
		require.Equal(t, catalog.Source{Driver: "cloud", VolumeSnapshotID: s.Status.VolumeSnapshotID}, entries[s.ID].Source)
		require.Equal(t, s.Status.Identity.IndexDigest, digest.FromBytes(entries[s.ID].Index))

		p.RecordMatch("nightly", s.ID)
		require.NoError(t, p.NoteDiskFailure(t.Context(), "nightly", s.ID, "it is out of service"))
		require.NoError(t, p.NoteDiskFailure(t.Context(), "of another catalog", "x", "it is out of service"))
		s = p.available("nightly")
		require.EqualValues(t, 1, s.Status.MatchCount)
		require.Equal(t, imagesnapshot.ReasonDiskFailed, s.Status.Events[len(s.Status.Events)-1].Reason)
		require.EqualValues(t, 1, p.value("berth_image_snapshot_builds_started_total"))
		require.EqualValues(t, 1000, p.value("berth_image_snapshot_fetched_bytes_total"))
		require.EqualValues(t, 1, p.value("berth_image_snapshot_matches_total"))
		old := p.directory
		p.stop()

		p = start(t, dir, fake, func(o *assembly.Options) {
			o.Storage.Driver, o.Publishing.Directory = "local", filepath.Join(dir, "another")
		})
		local := p.create("local")
		require.Equal(t, "local", local.Status.Driver)
		require.Empty(t, elsewhere(t, old))
		require.Len(t, elsewhere(t, filepath.Join(dir, "another")), 1)
		own, err := p.Catalog().Watch(t.Context())
		require.NoError(t, err)
		all, _ := catalogtest.Until(t, own)
		require.Len(t, all, 2, "its own nodes can attach both")
		p.stop()
	})
}

// An access list that is kept is published with its image snapshot.
func TestAccessListIsPublished(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(t, t.TempDir(), blockdevtest.NewFake(0), nil)
		defer func() { p.stop() }()
		s := p.create("nightly")
		image := s.Status.Images[0]
		l := &accesslist.List{Image: image.Reference, Platform: image.Platform}
		require.NoError(t, p.PutAccessList(t.Context(), s.ID, l))
		synctest.Wait()
		kept, ids, err := p.AccessListsOn(t.Context(), s.Status.Identity.IndexDigest, image.Reference)
		require.NoError(t, err)
		require.Equal(t, []string{s.ID}, ids)
		require.Len(t, kept, 1)
		found, err := filepath.Glob(filepath.Join(directory.AccessLists(p.directory), "*"))
		require.NoError(t, err)
		require.Len(t, found, 1)
	})
}

// An image that a pull wants gets an image snapshot if that is switched on, and a program without it takes the note and
// does nothing.
func TestWantedImages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, on := range []bool{false, true} {
			p := start(t, t.TempDir(), blockdevtest.NewFake(0), func(o *assembly.Options) {
				if on {
					o.Automatic = &automatic.Config{Owner: "auto", MinBytes: 1 << 20, Delay: time.Minute, Retry: time.Hour}
				}
			})
			p.Wanted(nginx, digest.FromString("manifest"))
			time.Sleep(time.Hour)
			synctest.Wait()
			list, err := p.List(t.Context(), store.Filter{})
			require.NoError(t, err)
			require.Equal(t, on, len(list) == 1)
			require.Equal(t, on, p.value("berth_automatic_image_snapshots_total") > 0)
			p.stop()
		}
	})
}

// What cannot be opened leaves the stores to whoever opened them.
func TestOpenRefuses(t *testing.T) {
	stores, err := assembly.OpenFile(filepath.Join(t.TempDir(), "store.db"))
	require.NoError(t, err)
	_, err = assembly.Open(t.Context(), assembly.Options{Stores: stores, Builder: builder{}})
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	_, err = stores.Objects.List(t.Context(), store.Filter{})
	require.NoError(t, err)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = assembly.Open(ended, assembly.Options{Stores: stores, Limits: imagesnapshottest.Limits()})
	require.ErrorIs(t, err, context.Canceled)
	require.NoError(t, stores.Closer.Close())
}
