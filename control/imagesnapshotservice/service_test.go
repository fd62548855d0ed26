package imagesnapshotservice_test

import (
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"berth.dev/berth/control/imagesnapshotservice"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/imagesnapshottest"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store/boltstore"
	"berth.dev/berth/matcher"
	"berth.dev/berth/matcher/dialect"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
	"berth.dev/berth/test/harness/protofields"
)

// world is the service over a real store and a real engine that does not run: image snapshots stay as they are
// put.
type world struct {
	imagesnapshotv1.ImageSnapshotServiceClient
	t     *testing.T
	store *boltstore.Store
	fleet *matcher.Index
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s, err := boltstore.Open(filepath.Join(t.TempDir(), "s.db"))
	require.NoError(t, err)
	limits := imagesnapshottest.Limits()
	limits.MaxPerOwner = 5
	engine, err := lifecycle.New(lifecycle.Config{Store: s, Watcher: s, Indexes: s, Installation: "0123456789abcdef", Limits: limits})
	require.NoError(t, err)
	w := &world{t: t, store: s, fleet: matcher.NewIndex()}

	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	server := grpc.NewServer()
	imagesnapshotservice.Register(server, imagesnapshotservice.New(engine, s, w.fleet, dialect.Settings{Table: dialect.Builtin()}).WithAccessLists(s))
	done := make(chan error, 1)
	go func() { done <- server.Serve(l) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	w.ImageSnapshotServiceClient = imagesnapshotv1.NewImageSnapshotServiceClient(conn)
	t.Cleanup(func() {
		require.NoError(t, conn.Close())
		server.Stop()
		require.NoError(t, <-done)
		require.NoError(t, s.Close())
	})
	return w
}

func (w *world) create(name string, change ...func(*imagesnapshotv1.CreateImageSnapshotRequest)) *imagesnapshotv1.ImageSnapshot {
	w.t.Helper()
	req := &imagesnapshotv1.CreateImageSnapshotRequest{Name: name, Spec: &imagesnapshotv1.ImageSnapshotSpec{Images: []string{"nginx"}}}
	for _, c := range change {
		c(req)
	}
	resp, err := w.CreateImageSnapshot(w.t.Context(), req)
	require.NoError(w.t, err)
	return resp.GetImageSnapshot()
}

// put changes an object as a running engine would.
func (w *world) put(name string, change func(*imagesnapshot.ImageSnapshot)) *imagesnapshot.ImageSnapshot {
	w.t.Helper()
	o, err := w.store.Get(w.t.Context(), name)
	require.NoError(w.t, err)
	change(o)
	o, err = w.store.Update(w.t.Context(), o)
	require.NoError(w.t, err)
	return o
}

func fullSpec() *imagesnapshotv1.ImageSnapshotSpec {
	return &imagesnapshotv1.ImageSnapshotSpec{
		Images: []string{"docker.io/library/nginx:1.27", "registry.example:5000/app:1"}, Platforms: []string{"linux/arm64"},
		SizeGib: 40, RetentionDays: 7,
		Registries: []*imagesnapshotv1.RegistryAccess{{Server: "registry.example:5000", Secret: "team:pull", PlainHttp: true},
			{Server: "other.example", InsecureSkipVerify: true}},
		Build:       &imagesnapshotv1.BuildSpec{TimeoutMinutes: 60, DnsServers: []string{"10.0.0.1"}, Parameters: map[string]string{"subnet": "s-1"}},
		ReuseLayers: true, Flash: true, Elimination: imagesnapshotv1.EliminationStrategy_ELIMINATION_STRATEGY_LRU,
		StandardCopies: 3, FlashCopies: 2,
	}
}

// C-27, C-41, C-44 to C-51, E-25, E-27: owner, parameters of the backend, status and events of an image snapshot are
// all in the API.
func TestImageSnapshotOverTheWire(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	spec := fullSpec()
	created := w.create("nightly", func(r *imagesnapshotv1.CreateImageSnapshotRequest) {
		r.Owner, r.ClientToken, r.Spec = "team-a", "token-1", spec
		r.Labels, r.Annotations = map[string]string{"env": "prod"}, map[string]string{"note": "n"}
	})
	require.Equal(t, imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_PENDING, created.GetStatus().GetPhase())
	require.Equal(t, imagesnapshotv1.ImageSnapshotOrigin_IMAGE_SNAPSHOT_ORIGIN_MANUAL, created.GetOrigin())
	require.Equal(t, spec.String(), created.GetSpec().String(), "every field of the spec comes back")
	require.Equal(t, "Accepted", created.GetStatus().GetEvents()[0].GetReason())

	now := time.Unix(1700000000, 5).UTC()
	w.put("nightly", func(o *imagesnapshot.ImageSnapshot) {
		o.Status.Phase, o.Status.Reason, o.Status.Message = imagesnapshot.PhaseAvailable, imagesnapshot.ReasonReady, "usable"
		o.Status.Progress, o.Status.MatchCount, o.Status.ObservedGeneration, o.Status.Builds = 100, 4, 1, 1
		o.Status.Started, o.Status.LastUpdated, o.DeletionRequested = now, now, now
		o.Status.Content = imagesnapshot.Content{
			Images:    []imagesnapshot.Image{{Reference: "docker.io/library/nginx:1.27", Platform: "linux/arm64", Digest: digest.FromString("m"), SizeBytes: 9, Layers: 2}},
			DiskBytes: 5, Layers: 2, FetchedBytes: 3, ReusedBytes: 1, BaseName: "base", VolumeSnapshotID: "snap-1", VolumeSnapshotName: "n-1", VolumeID: "vol-1", Driver: "csi", Ready: now,
			VolumeSnapshots: []imagesnapshot.VolumeSnapshot{{ID: "snap-1", Name: "n-1", Kind: imagesnapshot.VolumeSnapshotFlash, SizeBytes: 7, Ready: true}},
		}
		o.Status.Identity.IndexDigest = digest.FromString("i")
		o.Status.Expires, o.Status.LastMatched = now.Add(time.Hour), now
	})
	for _, nameOrID := range []string{"nightly", created.GetId()} {
		got, err := w.GetImageSnapshot(ctx, &imagesnapshotv1.GetImageSnapshotRequest{NameOrId: nameOrID})
		require.NoError(t, err)
		st := got.GetImageSnapshot().GetStatus()
		require.Equal(t, imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_AVAILABLE, st.GetPhase())
		require.Equal(t, digest.FromString("m").String(), st.GetImages()[0].GetDigest())
		require.EqualValues(t, 9, st.GetImages()[0].GetSizeBytes())
		require.Equal(t, "snap-1", st.GetVolumeSnapshotId())
		require.True(t, st.GetVolumeSnapshots()[0].GetFlash())
		require.Equal(t, digest.FromString("i").String(), st.GetIndexDigest())
		require.Equal(t, now.Add(time.Hour), st.GetExpires().AsTime())
		require.EqualValues(t, 4, st.GetMatchCount())
		require.Equal(t, "vol-1", st.GetVolumeId())
		require.NotEmpty(t, st.GetEvents())
		require.Equal(t, []string{"spec.size_as_needed"}, protofields.Unset(got.GetImageSnapshot()), "which excludes size_gib; all others arrive")
	}
}

// E-5, E-20: what annotations of a dialect ask for leads to one automatic image snapshot, whoever asks and in whatever
// order.
func TestEnsureAutomaticOverTheWire(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for annotation, want := range map[string]bool{"k8s.aliyun.com/eci-auto-imc": true, "berth.dev/create-if-missing": true, "cci.io/image-snapshot-auto-match": false} {
		m, err := w.MatchImages(ctx, &imagesnapshotv1.MatchImagesRequest{
			AutoMatch: true, Images: []*imagesnapshotv1.MatchImage{{Reference: "nginx"}, {Reference: "redis"}},
			Annotations: map[string]string{annotation: "true"},
		})
		require.NoError(t, err)
		require.True(t, m.GetNothingMatched())
		require.Equal(t, want, m.GetCreateIfMissing(), annotation)
	}
	ensure := func(change func(*imagesnapshotv1.EnsureAutomaticImageSnapshotRequest)) (*imagesnapshotv1.EnsureAutomaticImageSnapshotResponse, error) {
		req := &imagesnapshotv1.EnsureAutomaticImageSnapshotRequest{
			Owner: "team-a", Images: []string{"nginx", "redis"}, Platforms: []string{"linux/arm64"}, Labels: map[string]string{"a": "1"},
			Annotations: map[string]string{"note": "n"}, Registries: []*imagesnapshotv1.RegistryAccess{{Server: "registry.example", Secret: "pull"}},
		}
		change(req)
		return w.EnsureAutomaticImageSnapshot(ctx, req)
	}
	dry, err := ensure(func(r *imagesnapshotv1.EnsureAutomaticImageSnapshotRequest) { r.DryRun = true })
	require.NoError(t, err)
	_, err = w.GetImageSnapshot(ctx, &imagesnapshotv1.GetImageSnapshotRequest{NameOrId: dry.GetImageSnapshot().GetName()})
	require.Equal(t, codes.NotFound, status.Code(err))

	first, err := ensure(func(*imagesnapshotv1.EnsureAutomaticImageSnapshotRequest) {})
	require.NoError(t, err)
	require.False(t, first.GetExisting())
	s := first.GetImageSnapshot()
	require.Equal(t, imagesnapshotv1.ImageSnapshotOrigin_IMAGE_SNAPSHOT_ORIGIN_AUTOMATIC, s.GetOrigin())
	require.Equal(t, "team-a", s.GetOwner())
	require.Equal(t, map[string]string{"a": "1"}, s.GetLabels())
	require.Equal(t, map[string]string{"note": "n"}, s.GetAnnotations())
	require.Equal(t, []string{"linux/arm64"}, s.GetSpec().GetPlatforms())
	require.Equal(t, "pull", s.GetSpec().GetRegistries()[0].GetSecret())
	require.True(t, s.GetSpec().GetSizeAsNeeded(), "Q15")
	require.True(t, s.GetSpec().GetReuseLayers())

	again, err := ensure(func(r *imagesnapshotv1.EnsureAutomaticImageSnapshotRequest) {
		r.Images = []string{"docker.io/library/redis:latest", "docker.io/library/nginx"}
	})
	require.NoError(t, err)
	require.True(t, again.GetExisting())
	require.Equal(t, s.GetId(), again.GetImageSnapshot().GetId())
	other, err := ensure(func(r *imagesnapshotv1.EnsureAutomaticImageSnapshotRequest) { r.Owner = "team-b" })
	require.NoError(t, err)
	require.False(t, other.GetExisting(), "owners share nothing")

	_, err = ensure(func(r *imagesnapshotv1.EnsureAutomaticImageSnapshotRequest) { r.Images = []string{"UPPER"} })
	require.Contains(t, violations(t, err), "images[0]")
	_, err = ensure(func(r *imagesnapshotv1.EnsureAutomaticImageSnapshotRequest) { r.Images = nil })
	require.Contains(t, violations(t, err), "images")
}

// C-22: preconditions and dry run; E-28: the phases in which an update is taken; C-25: delete works in every phase.
func TestChangeImageSnapshot(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	created := w.create("nightly", func(r *imagesnapshotv1.CreateImageSnapshotRequest) { r.Labels = map[string]string{"a": "1"} })
	update := func(change func(*imagesnapshotv1.UpdateImageSnapshotRequest)) (*imagesnapshotv1.UpdateImageSnapshotResponse, error) {
		spec := created.GetSpec()
		spec.RetentionDays = 30
		req := &imagesnapshotv1.UpdateImageSnapshotRequest{NameOrId: "nightly", Spec: spec}
		change(req)
		return w.UpdateImageSnapshot(ctx, req)
	}
	nothing := func(*imagesnapshotv1.UpdateImageSnapshotRequest) {}
	_, err := update(nothing)
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	require.ErrorContains(t, err, "it is Pending")

	w.put("nightly", func(o *imagesnapshot.ImageSnapshot) { o.Status.Phase = imagesnapshot.PhaseAvailable })
	_, err = update(func(r *imagesnapshotv1.UpdateImageSnapshotRequest) {
		r.Preconditions = &imagesnapshotv1.Preconditions{ResourceVersion: created.GetResourceVersion()}
	})
	require.Equal(t, codes.Aborted, status.Code(err), "%v", err)
	dry, err := update(func(r *imagesnapshotv1.UpdateImageSnapshotRequest) {
		r.DryRun, r.Labels = true, &imagesnapshotv1.StringMap{}
	})
	require.NoError(t, err)
	require.EqualValues(t, 30, dry.GetImageSnapshot().GetSpec().GetRetentionDays())
	require.Empty(t, dry.GetImageSnapshot().GetLabels())
	still, err := w.GetImageSnapshot(ctx, &imagesnapshotv1.GetImageSnapshotRequest{NameOrId: "nightly"})
	require.NoError(t, err)
	require.Zero(t, still.GetImageSnapshot().GetSpec().GetRetentionDays(), "a dry run changes nothing")

	done, err := update(nothing)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"a": "1"}, done.GetImageSnapshot().GetLabels(), "labels that are not given stay")
	require.EqualValues(t, 2, done.GetImageSnapshot().GetGeneration())
	require.Equal(t, imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_AVAILABLE, done.GetImageSnapshot().GetStatus().GetPhase())
	again, err := update(nothing)
	require.NoError(t, err)
	require.Equal(t, done.GetImageSnapshot().String(), again.GetImageSnapshot().String(), "no new version, no event")
	rebuilt, err := update(func(r *imagesnapshotv1.UpdateImageSnapshotRequest) { r.Rebuild = true })
	require.NoError(t, err)
	require.Equal(t, imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_UPDATING, rebuilt.GetImageSnapshot().GetStatus().GetPhase())

	_, err = w.DeleteImageSnapshot(ctx, &imagesnapshotv1.DeleteImageSnapshotRequest{NameOrId: "nightly", Preconditions: &imagesnapshotv1.Preconditions{Id: "another"}})
	require.Equal(t, codes.Aborted, status.Code(err))
	for i := range 2 {
		gone, err := w.DeleteImageSnapshot(ctx, &imagesnapshotv1.DeleteImageSnapshotRequest{NameOrId: "nightly", Preconditions: &imagesnapshotv1.Preconditions{Id: created.GetId()}})
		require.NoError(t, err, i)
		require.Equal(t, imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_DELETING, gone.GetImageSnapshot().GetStatus().GetPhase())
		require.NotNil(t, gone.GetImageSnapshot().GetDeletionRequested())
	}
}

// what is illegal is refused field by field, and so are a name that is taken and one more than the quota.
func TestImageSnapshotRefusals(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	bad := &imagesnapshotv1.ImageSnapshotSpec{Images: []string{"UPPER"}, Elimination: 9, SizeGib: 19, RetentionDays: 10001,
		Build: &imagesnapshotv1.BuildSpec{TimeoutMinutes: 29}, Registries: []*imagesnapshotv1.RegistryAccess{{Server: "https://x"}}}
	_, err := w.CreateImageSnapshot(ctx, &imagesnapshotv1.CreateImageSnapshotRequest{Name: "Nightly", Spec: bad})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	fields := violations(t, err)
	for _, want := range []string{"name", "spec.images[0]", "spec.size_gib", "spec.retention_days", "spec.build.timeout_minutes", "spec.registries[0].server", "spec.elimination"} {
		require.Contains(t, fields, want)
		require.ErrorContains(t, err, want, "the message says it too")
	}
	require.Contains(t, fields["spec.size_gib"], "20 to 400")
	require.NotContains(t, status.Convert(err).Message(), "\n")

	_, err = w.EnsureAutomaticImageSnapshot(ctx, &imagesnapshotv1.EnsureAutomaticImageSnapshotRequest{Images: []string{"UPPER"}, Platforms: []string{"?"}})
	require.ElementsMatch(t, []string{"images[0]", "platforms[0]"}, slices.Collect(maps.Keys(violations(t, err))), "the request has no spec")
	_, err = w.MatchImages(ctx, &imagesnapshotv1.MatchImagesRequest{Order: 99, Images: []*imagesnapshotv1.MatchImage{{Platform: "?"}, {Platform: "?"}}})
	require.ElementsMatch(t, []string{"order", "images[0].platform", "images[1].platform"}, slices.Collect(maps.Keys(violations(t, err))), "all at once")
	w.create("a", func(r *imagesnapshotv1.CreateImageSnapshotRequest) { r.ClientToken = "t" })
	_, err = w.CreateImageSnapshot(ctx, &imagesnapshotv1.CreateImageSnapshotRequest{Name: "a", Spec: &imagesnapshotv1.ImageSnapshotSpec{Images: []string{"nginx"}}})
	require.Equal(t, codes.AlreadyExists, status.Code(err))
	_, err = w.CreateImageSnapshot(ctx, &imagesnapshotv1.CreateImageSnapshotRequest{Name: "b", ClientToken: "t", Spec: &imagesnapshotv1.ImageSnapshotSpec{Images: []string{"nginx"}}})
	require.Equal(t, codes.Aborted, status.Code(err))
	for i := range 4 {
		w.create(fmt.Sprintf("more-%d", i))
	}
	_, err = w.CreateImageSnapshot(ctx, &imagesnapshotv1.CreateImageSnapshotRequest{Name: "sixth", Spec: &imagesnapshotv1.ImageSnapshotSpec{Images: []string{"nginx"}}})
	require.Equal(t, codes.ResourceExhausted, status.Code(err))

	for _, call := range []func() error{
		func() error {
			_, err := w.GetImageSnapshot(ctx, &imagesnapshotv1.GetImageSnapshotRequest{NameOrId: "none"})
			return err
		},
		func() error {
			_, err := w.UpdateImageSnapshot(ctx, &imagesnapshotv1.UpdateImageSnapshotRequest{NameOrId: "none"})
			return err
		},
		func() error {
			_, err := w.DeleteImageSnapshot(ctx, &imagesnapshotv1.DeleteImageSnapshotRequest{NameOrId: "none"})
			return err
		},
		func() error {
			s, err := w.WatchImageSnapshots(ctx, &imagesnapshotv1.WatchImageSnapshotsRequest{Filter: &imagesnapshotv1.ImageSnapshotFilter{NameOrId: "none"}})
			if err == nil {
				_, err = s.Recv()
			}
			return err
		},
	} {
		err := call()
		require.Equal(t, codes.NotFound, status.Code(err), "%v", err)
		require.ErrorContains(t, err, `no image snapshot "none"`)
	}
	_, err = w.GetImageSnapshot(ctx, &imagesnapshotv1.GetImageSnapshotRequest{})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	_, err = w.ListImageSnapshots(ctx, &imagesnapshotv1.ListImageSnapshotsRequest{PageSize: 1001})
	require.Contains(t, violations(t, err), "page_size")
}

func violations(t *testing.T, err error) map[string]string {
	t.Helper()
	fields := make(map[string]string)
	for _, d := range status.Convert(err).Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range bad.GetFieldViolations() {
				fields[v.GetField()] = v.GetDescription()
			}
		}
	}
	require.NotEmpty(t, fields, "%v", err)
	return fields
}

func TestListImageSnapshots(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	for i := range 5 {
		w.create(fmt.Sprintf("s-%d", i), func(r *imagesnapshotv1.CreateImageSnapshotRequest) {
			r.Labels = map[string]string{"odd": fmt.Sprint(i%2 == 1)}
		})
	}
	w.create("other", func(r *imagesnapshotv1.CreateImageSnapshotRequest) { r.Owner = "team-b" })
	names := func(f *imagesnapshotv1.ImageSnapshotFilter, size int32) (all []string) {
		for token := ""; ; {
			resp, err := w.ListImageSnapshots(ctx, &imagesnapshotv1.ListImageSnapshotsRequest{Filter: f, PageSize: size, PageToken: token})
			require.NoError(t, err)
			for _, o := range resp.GetImageSnapshots() {
				require.Empty(t, o.GetStatus().GetEvents())
				all = append(all, o.GetName())
			}
			if size > 0 {
				require.LessOrEqual(t, len(resp.GetImageSnapshots()), int(size))
			}
			if token = resp.GetNextPageToken(); token == "" {
				return all
			}
		}
	}
	everything := []string{"other", "s-0", "s-1", "s-2", "s-3", "s-4"}
	for size := range int32(8) {
		require.Equal(t, everything, names(nil, size), size)
	}
	nobody := ""
	require.Equal(t, everything[1:], names(&imagesnapshotv1.ImageSnapshotFilter{Owner: &nobody}, 2))
	require.Equal(t, []string{"s-1", "s-3"}, names(&imagesnapshotv1.ImageSnapshotFilter{Labels: map[string]string{"odd": "true"}}, 1))
	require.Equal(t, []string{"s-1"}, names(&imagesnapshotv1.ImageSnapshotFilter{NameOrId: "s-1"}, 1))
	require.Empty(t, names(&imagesnapshotv1.ImageSnapshotFilter{NameOrId: "s-1", Labels: map[string]string{"odd": "false"}}, 1))

	first, err := w.ListImageSnapshots(ctx, &imagesnapshotv1.ListImageSnapshotsRequest{PageSize: 2})
	require.NoError(t, err)
	_, err = w.DeleteImageSnapshot(ctx, &imagesnapshotv1.DeleteImageSnapshotRequest{NameOrId: "s-0"})
	require.NoError(t, err)
	second, err := w.ListImageSnapshots(ctx, &imagesnapshotv1.ListImageSnapshotsRequest{PageSize: 2, PageToken: first.GetNextPageToken()})
	require.NoError(t, err)
	require.Equal(t, "s-1", second.GetImageSnapshots()[0].GetName(), "a page begins behind the one before, whatever became of that")
	for name, token := range map[string]string{"a name": "s-1", "no base64": "?", "cut off": first.GetNextPageToken()[:8], "changed": first.GetNextPageToken() + "AAAA"} {
		_, err = w.ListImageSnapshots(ctx, &imagesnapshotv1.ListImageSnapshotsRequest{PageToken: token})
		require.Contains(t, violations(t, err), "page_token", name)
	}
	_, err = w.ListImageSnapshots(ctx, &imagesnapshotv1.ListImageSnapshotsRequest{
		Filter: &imagesnapshotv1.ImageSnapshotFilter{Owner: &nobody}, PageSize: -1, PageToken: first.GetNextPageToken(),
	})
	require.ElementsMatch(t, []string{"page_token", "page_size"}, slices.Collect(maps.Keys(violations(t, err))), "of another filter")
}
