package nodeservice_test

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/control/nodeservice"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/imageimport"
	"berth.dev/berth/node/stage"
)

func TestAttachDisk(t *testing.T) {
	s, f, _ := newService(t)

	d, err := s.AttachDisk(t.Context(), stage.Spec{VolumeID: "/srv//Base Image.img"})
	require.NoError(t, err)
	require.Equal(t, "base-image", d.Name)
	require.Equal(t, "/srv/Base Image.img", d.VolumeID)
	require.Equal(t, loopdev.Name, d.Driver)
	require.False(t, d.Configured)

	for name, spec := range map[string]stage.Spec{
		"no volume":  {Name: "a"},
		"two":        {VolumeID: "/x", VolumeSnapshotID: "snap-1"},
		"bad expect": {VolumeID: "/x", Expect: layerdisk.Identity{IndexDigest: "sha256:zz"}},
	} {
		_, err := s.AttachDisk(t.Context(), spec)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
	}
	d, err = s.AttachDisk(t.Context(), stage.Spec{Driver: "cloud", VolumeSnapshotID: "snap-1"})
	require.NoError(t, err)
	require.Equal(t, "snap-1", d.Name)
	f.gone["/gone"] = true
	_, err = s.AttachDisk(t.Context(), stage.Spec{VolumeID: "/gone"})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "attach /gone: it failed and is not tried again: volume /gone is not there")
	f.disks["gone"] = stage.DiskStatus{Name: "gone", State: stage.StateFailed}
	_, err = s.AttachDisk(t.Context(), stage.Spec{VolumeID: "/gone"})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "it failed and is tried again in the background: ")
}

func TestDetachDisk(t *testing.T) {
	s, f, _ := newService(t)
	f.disks["used"] = stage.DiskStatus{Name: "used", Holders: 2}
	f.disks["free"] = stage.DiskStatus{Name: "free"}

	_, err := s.DetachDisk(t.Context(), "used", false)
	require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
	n, err := s.DetachDisk(t.Context(), "used", true)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	n, err = s.DetachDisk(t.Context(), "free", false)
	require.NoError(t, err)
	require.Zero(t, n)
	_, err = s.DetachDisk(t.Context(), "free", false)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}

func TestStatusCountsWhatIsInUse(t *testing.T) {
	s, f, ledger := newService(t)
	f.disks["b"] = stage.DiskStatus{Name: "b", Holders: 2}
	f.disks["a"] = stage.DiskStatus{Name: "a", Holders: 3}
	ledger.Record(events.Event{Kind: events.Hit, MatchedBy: "chain-id", Bytes: 100})
	ledger.Record(events.Event{Kind: events.Hit, MatchedBy: "chain-id"})
	ledger.Record(events.Event{Kind: events.Miss, Reason: "no-disk"})
	ledger.Record(events.Event{Kind: events.Failure, Reason: "error"})

	st := s.Status()
	require.Equal(t, "v1.2.3", st.Version)
	require.Equal(t, 5, st.AdoptedSnapshots)
	require.Equal(t, []string{"a", "b"}, []string{st.Disks[0].Name, st.Disks[1].Name})
	require.Equal(t, map[layerdisk.Match]uint64{layerdisk.MatchChainID: 2}, st.Hits)
	require.Equal(t, map[string]uint64{"no-disk": 1, "error": 1}, st.Misses)
	require.EqualValues(t, 100, st.BytesNotPulled)
}

func TestExplainLayers(t *testing.T) {
	s, f, ledger := newService(t)
	a, b := digest.FromString("a"), digest.FromString("b")
	f.layers[a] = stage.Held{DiskName: "base", LayerNumber: 7, MatchedBy: layerdisk.MatchChainID}
	ledger.Record(events.Event{Kind: events.Miss, ChainID: b, Reason: "no-disk", Detail: "no disk is attached"})

	got, err := s.ExplainLayers(t.Context(), []layerdisk.LayerName{{ChainID: a}, {ChainID: b, ParentChainID: a}})
	require.NoError(t, err)
	require.Equal(t, &stage.Held{DiskName: "base", LayerNumber: 7, MatchedBy: layerdisk.MatchChainID}, got[0].Held)
	require.Nil(t, got[0].Last)
	require.Nil(t, got[1].Held)
	require.Contains(t, got[1].Reason, "no disk has the layer")
	require.Equal(t, "no-disk", got[1].Last.Reason)

	for name, layers := range map[string][]layerdisk.LayerName{
		"nameless": {{}},
		"digest":   {{ChainID: "sha256:x"}},
		"many":     make([]layerdisk.LayerName, nodeservice.MaxExplain+1),
	} {
		_, err := s.ExplainLayers(t.Context(), layers)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = s.ExplainLayers(ctx, []layerdisk.LayerName{{ChainID: b}})
	require.ErrorIs(t, err, context.Canceled)
}

func TestFindImage(t *testing.T) {
	s, f, _ := newService(t)
	ref := "docker.io/library/a:1"
	f.images[ref] = []stage.FoundImage{image(t, "older", "linux/arm/v6"), image(t, "base", "linux/arm/v7"), image(t, "other", "linux/amd64")}
	img, err := s.FindImage(ref, ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"})
	require.NoError(t, err)
	require.Equal(t, nodeservice.Image{Disk: "base", Manifest: []byte("linux/arm/v7"), Config: []byte("config")}, img, "the best of those that fit")
	_, err = s.FindImage(ref, ocispec.Platform{OS: "linux", Architecture: "riscv64"})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorContains(t, err, "linux/riscv64")
	_, err = s.FindImage("docker.io/library/b:1", ocispec.Platform{OS: "linux", Architecture: "amd64"})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = s.FindImage("", ocispec.Platform{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

// fakeImages notes what is taken back.
type fakeImages struct {
	withdrawn, released []string
	err                 error
}

func (f *fakeImages) Status(disk, _ string) ([]imageimport.Image, error) {
	return []imageimport.Image{{Reference: "r", Namespace: "n", Result: imageimport.Left, Reason: "why"}}, f.err
}

func (f *fakeImages) Withdraw(_ context.Context, disk string) (func(), error) {
	if f.err != nil {
		return nil, f.err
	}
	f.withdrawn = append(f.withdrawn, disk)
	return func() { f.released = append(f.released, disk) }, nil
}

func TestDetachDiskTakesImagesBack(t *testing.T) {
	images := &fakeImages{}
	s, f, _ := newService(t, func(c *nodeservice.Config) { c.Images = images })
	f.disks["used"] = stage.DiskStatus{Name: "used", Holders: 1}
	f.disks["free"] = stage.DiskStatus{Name: "free"}
	_, err := s.DetachDisk(t.Context(), "used", true)
	require.NoError(t, err)
	require.Empty(t, images.withdrawn, "a disk that drains loses its images by itself")
	_, err = s.DetachDisk(t.Context(), "free", false)
	require.NoError(t, err)
	require.Equal(t, []string{"free"}, images.withdrawn)
	require.Equal(t, images.withdrawn, images.released)

	images.err = errdefs.ErrUnavailable
	_, err = s.DetachDisk(t.Context(), "used", false)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.Len(t, s.ListDisks(), 1)
}
