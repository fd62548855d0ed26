package nodeservice_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"berth.dev/berth/control/nodeservice"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/stage"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/proto/enumword"
)

func serve(t *testing.T, s *nodeservice.Service) controlv1.ControlServiceClient {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	server := grpc.NewServer()
	nodeservice.Register(server, s)
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		require.NoError(t, <-done)
	})
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return controlv1.NewControlServiceClient(conn)
}

func TestOverTheWire(t *testing.T) {
	images := &fakeImages{}
	s, f, ledger := newService(t, func(c *nodeservice.Config) { c.Images = images })
	c := serve(t, s)
	ctx := t.Context()

	attached, err := c.AttachDisk(ctx, &controlv1.AttachDiskRequest{VolumeId: "/srv/base.img", Keep: true,
		ExpectIndexDigest: digest.FromString("i").String()})
	require.NoError(t, err)
	require.Equal(t, "base", attached.GetDisk().GetName())
	require.True(t, attached.GetDisk().GetKeep())
	require.Equal(t, digest.FromString("i").String(), attached.GetDisk().GetIndexDigest())

	images.err = errors.New("containerd is away")
	list, err := c.ListDisks(ctx, &controlv1.ListDisksRequest{})
	require.NoError(t, err)
	require.Len(t, list.GetDisks(), 1)
	require.Equal(t, "containerd is away", list.GetDisks()[0].GetImportError())
	imported := list.GetDisks()[0].GetImports()[0]
	require.Equal(t, []string{"r", "n", "left", "why"},
		[]string{imported.GetReference(), imported.GetNamespace(), enumword.Of(imported.GetResult()), imported.GetReason()})

	chain := digest.FromString("chain")
	f.layers[chain] = stage.Held{DiskName: "base", LayerNumber: 2, MatchedBy: layerdisk.MatchDiffID}
	ledger.Record(events.Event{Kind: events.Hit, Time: time.Unix(5, 0), ChainID: chain, Disk: "u", MatchedBy: "diff-id", Bytes: 9, ImageRef: "r"})
	explained, err := c.ExplainLayers(ctx, &controlv1.ExplainLayersRequest{Layers: []*controlv1.LayerName{{ChainId: chain.String()}, {DiffId: chain.String()}}})
	require.NoError(t, err)
	hit := explained.GetLayers()[0]
	require.True(t, hit.GetHit())
	require.Equal(t, controlv1.LayerMatch_LAYER_MATCH_DIFF_ID, hit.GetMatchedBy())
	require.EqualValues(t, 2, hit.GetLayerNumber())
	require.Equal(t, controlv1.EventKind_EVENT_KIND_HIT, hit.GetLast().GetKind())
	require.EqualValues(t, 5, hit.GetLast().GetTime().GetSeconds())
	require.Contains(t, explained.GetLayers()[1].GetReason(), "no disk has the layer")

	st, err := c.Status(ctx, &controlv1.StatusRequest{})
	require.NoError(t, err)
	require.EqualValues(t, 42, st.GetPid())
	require.EqualValues(t, 9, st.GetBytesNotPulled())
	require.Len(t, st.GetHits(), 1)
	require.Equal(t, controlv1.LayerMatch_LAYER_MATCH_DIFF_ID, st.GetHits()[0].GetMatchedBy())
	require.EqualValues(t, 1, st.GetHits()[0].GetCount())

	f.images["docker.io/library/a:1"] = []stage.FoundImage{image(t, "base", "linux/arm64")}
	img, err := c.FindImage(ctx, &controlv1.FindImageRequest{Reference: "docker.io/library/a:1", Platform: "linux/arm64"})
	require.NoError(t, err)
	require.Equal(t, "linux/arm64", string(img.GetManifest()))
	require.Equal(t, "config", string(img.GetConfig()))

	images.err = nil
	gone, err := c.DetachDisk(ctx, &controlv1.DetachDiskRequest{Name: "base"})
	require.NoError(t, err)
	require.True(t, gone.GetDetached())
}

func TestErrorsHaveCodes(t *testing.T) {
	s, f, _ := newService(t)
	c := serve(t, s)
	ctx := t.Context()
	f.disks["used"] = stage.DiskStatus{Name: "used", Holders: 1}
	f.gone["/gone"] = true
	for name, tc := range map[string]struct {
		call func() error
		want codes.Code
	}{
		"in use": {func() error { _, err := c.DetachDisk(ctx, &controlv1.DetachDiskRequest{Name: "used"}); return err },
			codes.FailedPrecondition},
		"no disk": {func() error { _, err := c.DetachDisk(ctx, &controlv1.DetachDiskRequest{Name: "x"}); return err }, codes.NotFound},
		"unavailable": {func() error { _, err := c.AttachDisk(ctx, &controlv1.AttachDiskRequest{VolumeId: "/gone"}); return err },
			codes.Unavailable},
		"no volume": {func() error { _, err := c.AttachDisk(ctx, &controlv1.AttachDiskRequest{}); return err }, codes.InvalidArgument},
		"platform": {func() error {
			_, err := c.FindImage(ctx, &controlv1.FindImageRequest{Reference: "a", Platform: "a/b/c/d"})
			return err
		}, codes.InvalidArgument},
		"nameless layer": {func() error {
			_, err := c.ExplainLayers(ctx, &controlv1.ExplainLayersRequest{Layers: []*controlv1.LayerName{{}}})
			return err
		}, codes.InvalidArgument},
	} {
		require.Equal(t, tc.want, status.Code(tc.call()), name)
	}
}

func TestWatchOverTheWire(t *testing.T) {
	s, _, ledger := newService(t)
	c := serve(t, s)
	stream, err := c.WatchEvents(t.Context(), &controlv1.WatchEventsRequest{})
	require.NoError(t, err)
	_, err = c.AttachDisk(t.Context(), &controlv1.AttachDiskRequest{VolumeId: "/a"})
	require.NoError(t, err)
	// The server may have begun to watch only after that; what happens from then on must come.
	got := make(chan *controlv1.WatchEventsResponse, 1)
	go func() {
		m, err := stream.Recv()
		if err == nil {
			got <- m
		}
		close(got)
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case m := <-got:
			require.NotNil(t, m)
			ledger.Close()
			for err == nil {
				_, err = stream.Recv()
			}
			require.ErrorContains(t, err, "EOF")
			return
		case <-tick.C:
			ledger.Record(events.Event{Kind: events.Miss, Reason: "no-disk"})
		}
	}
}

func TestListUses(t *testing.T) {
	one, two := digest.FromString("1"), digest.FromString("2")
	s, f, _ := newService(t, func(c *nodeservice.Config) {
		c.Uses = func(context.Context) (map[string][]digest.Digest, error) {
			return map[string][]digest.Digest{"b": {two, one}, "gone": {one}}, nil
		}
	})
	f.disks["base"] = stage.DiskStatus{Name: "base", UUID: "b"}
	f.disks["unused"] = stage.DiskStatus{Name: "unused", UUID: "u"}
	all, err := s.ListUses(t.Context(), "")
	require.NoError(t, err)
	chains := slices.Sorted(slices.Values([]digest.Digest{one, two}))
	require.Equal(t, []nodeservice.DiskUse{{Disk: "base", UUID: "b", Chains: chains}, {UUID: "gone", Chains: []digest.Digest{one}}}, all)
	all, err = s.ListUses(t.Context(), "base")
	require.NoError(t, err)
	require.Equal(t, []nodeservice.DiskUse{{Disk: "base", UUID: "b", Chains: chains}}, all)
	all, err = s.ListUses(t.Context(), "unused")
	require.NoError(t, err)
	require.Empty(t, all)
	_, err = s.ListUses(t.Context(), "none")
	require.ErrorIs(t, err, errdefs.ErrNotFound)
}
