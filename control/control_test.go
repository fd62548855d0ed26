package control_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/control"
	"berth.dev/berth/layerdisk"
)

func TestAttachDisk(t *testing.T) {
	f := newFakeStage()
	s, _, _ := newService(t, f)

	d, err := s.AttachDisk(t.Context(), control.DiskSpec{VolumeID: "/srv//Base Image.img"})
	require.NoError(t, err)
	require.Equal(t, "base-image", d.Name)
	require.Equal(t, "/srv/Base Image.img", d.VolumeID)
	require.Equal(t, control.DefaultDriver, d.Driver)
	require.False(t, d.Configured)

	for name, spec := range map[string]control.DiskSpec{
		"no volume":  {Name: "a"},
		"two":        {VolumeID: "/x", SnapshotID: "snap-1"},
		"bad expect": {VolumeID: "/x", Expect: "sha256:zz"},
	} {
		_, err := s.AttachDisk(t.Context(), spec)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, name)
	}
	d, err = s.AttachDisk(t.Context(), control.DiskSpec{Driver: "cloud", SnapshotID: "snap-1"})
	require.NoError(t, err)
	require.Equal(t, "snap-1", d.Name)
	f.faults["/gone"] = 1
	_, err = s.AttachDisk(t.Context(), control.DiskSpec{VolumeID: "/gone"})
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	require.ErrorContains(t, err, "attach /gone: ")
}

func TestNameFor(t *testing.T) {
	for volume, want := range map[string]string{
		"/srv/base.img":                  "base",
		"/dev/sdb":                       "sdb",
		"/dev/disk/by-id/Virtio-0xAB":    "virtio-0xab",
		"vol-0123":                       "vol-0123",
		"/x/.hidden":                     "hidden",
		"/x/Ä b.img":                     "b",
		"/x/" + strings.Repeat("a", 100): strings.Repeat("a", 64),
	} {
		require.Equal(t, want, control.NameFor(volume), volume)
	}
}

func TestDetachDisk(t *testing.T) {
	f := newFakeStage()
	s, _, _ := newService(t, f)
	f.disks["used"] = control.Disk{Name: "used", Holders: 2}
	f.disks["free"] = control.Disk{Name: "free"}

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
	f := newFakeStage()
	s, _, ledger := newService(t, f)
	f.disks["b"] = control.Disk{Name: "b", Holders: 2}
	f.disks["a"] = control.Disk{Name: "a", Holders: 3}
	ledger.Hit(control.Event{MatchedBy: "chain-id", Bytes: 100})
	ledger.Hit(control.Event{MatchedBy: "chain-id"})
	ledger.Miss(control.Event{Reason: "no-disk"})
	ledger.Failure(control.Event{Reason: "error"})

	st, err := s.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, "v1.2.3", st.Version)
	require.Equal(t, 5, st.AdoptedSnapshots)
	require.Equal(t, []string{"a", "b"}, []string{st.Disks[0].Name, st.Disks[1].Name})
	require.Equal(t, map[string]uint64{"chain-id": 2}, st.Hits)
	require.Equal(t, map[string]uint64{"no-disk": 1, "error": 1}, st.Misses)
	require.EqualValues(t, 100, st.BytesNotPulled)
}

func TestExplainLayers(t *testing.T) {
	f := newFakeStage()
	s, _, ledger := newService(t, f)
	a, b := digest.FromString("a"), digest.FromString("b")
	f.layers[a] = control.Location{Disk: "base", LayerNumber: 7, MatchedBy: "chain-id"}
	ledger.Miss(control.Event{ChainID: b, Reason: "no-disk", Detail: "no disk is attached"})

	got, err := s.ExplainLayers(t.Context(), []layerdisk.LayerName{{ChainID: a}, {ChainID: b, ParentChainID: a}})
	require.NoError(t, err)
	require.Equal(t, &control.Location{Disk: "base", LayerNumber: 7, MatchedBy: "chain-id"}, got[0].Location)
	require.Nil(t, got[0].Last)
	require.Nil(t, got[1].Location)
	require.Contains(t, got[1].Reason, "no disk has the layer")
	require.Equal(t, "no-disk", got[1].Last.Reason)

	for name, layers := range map[string][]layerdisk.LayerName{
		"nameless": {{}},
		"digest":   {{ChainID: "sha256:x"}},
		"many":     make([]layerdisk.LayerName, control.MaxExplain+1),
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
	f := newFakeStage()
	s, _, _ := newService(t, f)
	f.images["docker.io/library/a:1"] = control.Image{Disk: "base", Manifest: []byte("{}")}
	img, err := s.FindImage(t.Context(), "docker.io/library/a:1", ocispec.Platform{})
	require.NoError(t, err)
	require.Equal(t, "base", img.Disk)
	_, err = s.FindImage(t.Context(), "docker.io/library/b:1", ocispec.Platform{})
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	_, err = s.FindImage(t.Context(), "", ocispec.Platform{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
}

func TestWaitingTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStage()
		s, waiting, _ := newService(t, f)
		f.faults["/late"] = 3
		f.faults["/never"] = -1
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		waiting.Attach(ctx, []control.DiskSpec{{Name: "now", VolumeID: "/now"}, {Name: "late", VolumeID: "/late"}, {Name: "never", VolumeID: "/never", Keep: true}})
		synctest.Wait()

		disks, err := s.ListDisks(ctx)
		require.NoError(t, err)
		require.Len(t, disks, 3)
		byName := map[string]control.Disk{}
		for _, d := range disks {
			byName[d.Name] = d
			require.True(t, d.Configured, d.Name)
		}
		require.True(t, byName["now"].Serving)
		require.Equal(t, control.StateWaiting, byName["late"].State)
		require.Contains(t, byName["never"].LastError, "/never is not there")
		require.True(t, byName["never"].Keep)

		// 1 + 2 + 4 seconds for three faults; then it is there.
		time.Sleep(7 * time.Second)
		synctest.Wait()
		disks, err = s.ListDisks(ctx)
		require.NoError(t, err)
		require.True(t, disks[0].Serving, "late")
		require.Empty(t, disks[0].LastError)

		// What is configured already is not begun again; detaching a disk that is waited for ends the waiting.
		waiting.Attach(ctx, []control.DiskSpec{{Name: "never", VolumeID: "/never"}})
		_, err = s.DetachDisk(ctx, "never", false)
		require.NoError(t, err)
		f.mu.Lock()
		before := len(f.log)
		f.mu.Unlock()
		time.Sleep(time.Hour)
		require.Len(t, f.log, before)
		disks, err = s.ListDisks(ctx)
		require.NoError(t, err)
		require.Len(t, disks, 2)

		cancel()
		waiting.Wait()
		require.Equal(t, time.Hour+7*time.Second, time.Since(start))
	})
}

func TestWaitingBacksOffToAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStage()
		_, waiting, _ := newService(t, f)
		f.faults["/never"] = -1
		ctx, cancel := context.WithCancel(t.Context())
		waiting.Attach(ctx, []control.DiskSpec{{Name: "never", VolumeID: "/never"}})
		time.Sleep(time.Hour)
		synctest.Wait()
		// 1+2+4+8+16+32 seconds are six waits, then one each minute.
		require.InDelta(t, 6+59, len(f.log), 1)
		cancel()
		waiting.Wait()
	})
}

func TestLedgerForgetsTheOldest(t *testing.T) {
	l := control.NewLedger()
	first := digest.FromString("first")
	l.Hit(control.Event{ChainID: first, MatchedBy: "blob"})
	require.Equal(t, "blob", l.Last(first).MatchedBy)
	for i := range 5000 {
		l.Miss(control.Event{ChainID: digest.FromBytes([]byte{byte(i), byte(i >> 8)}), Reason: "no-disk"})
	}
	require.Nil(t, l.Last(first))
	require.NotNil(t, l.Last(digest.FromBytes([]byte{byte(4999 & 0xff), byte(4999 >> 8)})))
}

func TestLedgerBoundsReasons(t *testing.T) {
	l := control.NewLedger()
	for i := range 100 {
		l.Miss(control.Event{Reason: strings.Repeat("x", i+1)})
	}
	require.LessOrEqual(t, len(l.Counts().Misses), 33)
	require.EqualValues(t, 68, l.Counts().Misses["other"])
}

func TestWatchers(t *testing.T) {
	l := control.NewLedger()
	ctx, cancel := context.WithCancel(t.Context())
	quick, slow := l.Watch(ctx), l.Watch(t.Context())
	l.Hit(control.Event{MatchedBy: "blob"})
	got := <-quick.Events
	require.Equal(t, control.Hit, got.Event.Kind)
	require.False(t, got.Event.Time.IsZero())

	// A watcher that does not read loses events and is told how many; nobody waits for it.
	for range 300 {
		l.Miss(control.Event{Reason: "no-disk"})
	}
	for range 256 {
		require.Zero(t, (<-slow.Events).Dropped)
	}
	l.Hit(control.Event{})
	require.EqualValues(t, 301-256, (<-slow.Events).Dropped)

	cancel()
	for range quick.Events { // ends with its context
	}
	l.Close()
	_, open := <-slow.Events
	require.False(t, open)
	_, open = <-l.Watch(t.Context()).Events
	require.False(t, open)
	l.Hit(control.Event{})
}
