package main

import (
	"bufio"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/test/harness/protofields"
)

// fakeImageSnapshots answers like a berthd with one image snapshot.
type fakeImageSnapshots struct {
	imagesnapshotv1.UnimplementedImageSnapshotServiceServer
	created *imagesnapshotv1.CreateImageSnapshotRequest
	updated *imagesnapshotv1.UpdateImageSnapshotRequest
	deleted *imagesnapshotv1.DeleteImageSnapshotRequest
	list    *imagesnapshotv1.PutAccessListRequest
	// fails makes builds fail.
	fails bool
	// updates counts those that were asked for.
	updates int
	// builds says that builds never end.
	builds bool

	// mu guards what follows, for other processes ask too: nothing but the socket is between them and a test.
	mu    sync.Mutex
	match *imagesnapshotv1.MatchImagesRequest
	// refuses makes the answer to MatchImages a refusal.
	refuses bool
}

func at(seconds int64) *timestamppb.Timestamp {
	return timestamppb.New(time.Unix(1700000000+seconds, 0))
}

func nightly() *imagesnapshotv1.ImageSnapshot {
	return &imagesnapshotv1.ImageSnapshot{
		Name: "nightly", Id: "6f1c", ResourceVersion: "7", Generation: 2, Created: at(0), Owner: "team-a", ClientToken: "token-1",
		Origin: imagesnapshotv1.ImageSnapshotOrigin_IMAGE_SNAPSHOT_ORIGIN_MANUAL, DeletionRequested: at(900),
		Labels: map[string]string{"env": "prod", "app": "web"}, Annotations: map[string]string{"note": "n"},
		Spec: &imagesnapshotv1.ImageSnapshotSpec{
			Images: []string{"docker.io/library/nginx:1.27"}, Platforms: []string{"linux/amd64"}, SizeGib: 20, RetentionDays: 7, ReuseLayers: true,
			Flash: true, StandardCopies: 2, FlashCopies: 3, Elimination: imagesnapshotv1.EliminationStrategy_ELIMINATION_STRATEGY_LRU,
			Registries: []*imagesnapshotv1.RegistryAccess{{Server: "r:5000", PlainHttp: true}, {Server: "s.example", Secret: "team", InsecureSkipVerify: true}},
			Build:      &imagesnapshotv1.BuildSpec{TimeoutMinutes: 60, DnsServers: []string{"10.0.0.1", "10.0.0.2"}, Parameters: map[string]string{"subnet": "s-1"}},
		},
		Status: &imagesnapshotv1.ImageSnapshotStatus{
			Phase: imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_AVAILABLE, Reason: "Ready", Message: "usable", Progress: 100, Ready: at(60),
			Expires: at(604860), LastUpdated: at(95), MatchCount: 3, LastMatched: at(90), VolumeSnapshotId: "snap-1", VolumeSnapshotName: "n-1", VolumeId: "vol-1", Driver: "csi",
			VolumeSnapshots: []*imagesnapshotv1.VolumeSnapshot{{Id: "snap-1", Name: "n-1", SizeBytes: 20 << 30, Ready: true}, {Id: "snap-2", Name: "n-2", SizeBytes: 20 << 30, Flash: true}},
			DiskBytes:       3 << 30, Layers: 7, IndexDigest: "sha256:12", FetchedBytes: 1 << 30, ReusedBytes: 2 << 30, BaseName: "weekly", Builds: 2,
			Images: []*imagesnapshotv1.SnapshottedImage{{Reference: "docker.io/library/nginx:1.27", Platform: "linux/amd64", Digest: "sha256:34", SizeBytes: 3 << 30, Layers: 7}},
			Events: []*imagesnapshotv1.ImageSnapshotEvent{event("Accepted", 0), event("Ready", 60)},
		},
	}
}

func event(reason string, seconds int64) *imagesnapshotv1.ImageSnapshotEvent {
	return &imagesnapshotv1.ImageSnapshotEvent{ImageSnapshotName: "nightly", Type: imagesnapshotv1.ImageSnapshotEventType_IMAGE_SNAPSHOT_EVENT_TYPE_NORMAL,
		Reason: reason, Message: "it is so", Count: 1, First: at(seconds), Last: at(seconds)}
}

func (f *fakeImageSnapshots) CreateImageSnapshot(_ context.Context, req *imagesnapshotv1.CreateImageSnapshotRequest) (*imagesnapshotv1.CreateImageSnapshotResponse, error) {
	f.created = req
	s := nightly()
	s.Status.Phase = imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_PENDING
	return &imagesnapshotv1.CreateImageSnapshotResponse{ImageSnapshot: s, Warnings: []string{"a little small"}}, nil
}

func (f *fakeImageSnapshots) ListAccessLists(_ context.Context, req *imagesnapshotv1.ListAccessListsRequest) (*imagesnapshotv1.ListAccessListsResponse, error) {
	l := &accesslist.List{Image: "docker.io/library/nginx:1.27", Platform: "linux/amd64", Recorded: at(70).AsTime()}
	data, err := l.Encode()
	m := &imagesnapshotv1.AccessList{Image: l.Image, Platform: l.Platform, Recorded: at(70), Files: 12, FileBytes: 3 << 20, MetadataBytes: 40 << 10}
	if !req.GetSummary() {
		m.List = data
	}
	return &imagesnapshotv1.ListAccessListsResponse{AccessLists: []*imagesnapshotv1.AccessList{m}}, err
}

func (f *fakeImageSnapshots) PutAccessList(_ context.Context, req *imagesnapshotv1.PutAccessListRequest) (*imagesnapshotv1.PutAccessListResponse, error) {
	f.list = req
	return &imagesnapshotv1.PutAccessListResponse{}, nil
}

func (f *fakeImageSnapshots) GetImageSnapshot(_ context.Context, req *imagesnapshotv1.GetImageSnapshotRequest) (*imagesnapshotv1.GetImageSnapshotResponse, error) {
	if req.GetNameOrId() != "nightly" {
		return nil, status.Error(codes.NotFound, `there is no image snapshot "none"`)
	}
	return &imagesnapshotv1.GetImageSnapshotResponse{ImageSnapshot: nightly()}, nil
}

func (f *fakeImageSnapshots) ListImageSnapshots(_ context.Context, req *imagesnapshotv1.ListImageSnapshotsRequest) (*imagesnapshotv1.ListImageSnapshotsResponse, error) {
	if req.GetPageToken() == "" {
		return &imagesnapshotv1.ListImageSnapshotsResponse{NextPageToken: "more"}, nil
	}
	return &imagesnapshotv1.ListImageSnapshotsResponse{ImageSnapshots: []*imagesnapshotv1.ImageSnapshot{nightly()}}, nil
}

func (f *fakeImageSnapshots) UpdateImageSnapshot(_ context.Context, req *imagesnapshotv1.UpdateImageSnapshotRequest) (*imagesnapshotv1.UpdateImageSnapshotResponse, error) {
	s := nightly()
	s.Spec = req.GetSpec()
	if req.GetLabels() != nil {
		s.Labels = req.GetLabels().GetEntries()
	}
	f.updated, f.updates = proto.CloneOf(req), f.updates+1
	return &imagesnapshotv1.UpdateImageSnapshotResponse{ImageSnapshot: s}, nil
}

func (f *fakeImageSnapshots) DeleteImageSnapshot(_ context.Context, req *imagesnapshotv1.DeleteImageSnapshotRequest) (*imagesnapshotv1.DeleteImageSnapshotResponse, error) {
	f.deleted = req
	return &imagesnapshotv1.DeleteImageSnapshotResponse{ImageSnapshot: nightly()}, nil
}

func (f *fakeImageSnapshots) ListImageSnapshotEvents(context.Context, *imagesnapshotv1.ListImageSnapshotEventsRequest) (*imagesnapshotv1.ListImageSnapshotEventsResponse, error) {
	return &imagesnapshotv1.ListImageSnapshotEventsResponse{Events: nightly().GetStatus().GetEvents()}, nil
}

func (f *fakeImageSnapshots) WatchImageSnapshotEvents(_ *imagesnapshotv1.WatchImageSnapshotEventsRequest, stream grpc.ServerStreamingServer[imagesnapshotv1.WatchImageSnapshotEventsResponse]) error {
	return stream.Send(&imagesnapshotv1.WatchImageSnapshotEventsResponse{Event: event("Accepted", 0)})
}

func (f *fakeImageSnapshots) WatchImageSnapshots(_ *imagesnapshotv1.WatchImageSnapshotsRequest, stream grpc.ServerStreamingServer[imagesnapshotv1.WatchImageSnapshotsResponse]) error {
	building, last := nightly(), nightly()
	building.Status.Phase, building.Status.Progress = imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_CREATING, 40
	if f.deleted != nil {
		return stream.Send(&imagesnapshotv1.WatchImageSnapshotsResponse{ImageSnapshot: last, Deleted: true})
	}
	if f.builds {
		return errOr(stream.Send(&imagesnapshotv1.WatchImageSnapshotsResponse{ImageSnapshot: building}), awaitEnd(stream.Context()))
	}
	if f.fails {
		last.Status.Phase, last.Status.Reason, last.Status.Message = imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_FAILED, "TooSmall", "it needs 30 GiB"
	}
	return errOr(stream.Send(&imagesnapshotv1.WatchImageSnapshotsResponse{ImageSnapshot: building}), stream.Send(&imagesnapshotv1.WatchImageSnapshotsResponse{ImageSnapshot: last}))
}

func awaitEnd(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// Whoever interrupts --wait is told that the build goes on, and how to look at it.
func TestWaitInterrupted(t *testing.T) {
	socket := start(t, &fakeDaemon{imageSnapshots: &fakeImageSnapshots{builds: true}})
	for _, args := range [][]string{{"create", "nightly", "--image", "nginx"}, {"update", "nightly", "--rebuild"}} {
		cmd := berthProcess(t, append([]string{"image-snapshot"}, append(args, "--socket", socket, "--wait")...)...)
		stderr, err := cmd.StderrPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(stderr)
		for lines.Scan() && lines.Text() != "nightly: Creating 40%" {
			continue
		}
		require.NoError(t, cmd.Process.Signal(unix.SIGINT))
		var last string
		for lines.Scan() {
			last = lines.Text()
		}
		require.Equal(t, 130, exitStatus(t, cmd.Wait()), last)
		require.Equal(t, `berth: interrupted; berthd goes on with the build: "berth image-snapshot get 6f1c" shows how far it is`, last)
	}
}

func (f *fakeImageSnapshots) MatchImages(_ context.Context, req *imagesnapshotv1.MatchImagesRequest) (*imagesnapshotv1.MatchImagesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.match = req
	outcome := imagesnapshotv1.MatchOutcome_MATCH_OUTCOME_USE
	if f.refuses {
		outcome = imagesnapshotv1.MatchOutcome_MATCH_OUTCOME_REJECT
	}
	return &imagesnapshotv1.MatchImagesResponse{
		Outcome: outcome, Reason: "it saves most", SavedDownloadBytes: 1 << 30, Considered: 2, Order: imagesnapshotv1.MatchOrder_MATCH_ORDER_SAVED,
		Dialects: []string{"berth"}, Warnings: []string{"annotation berth.dev/x is unknown and has no effect"},
		Chosen: []*imagesnapshotv1.MatchChoice{{Name: "nightly", Id: "6f1c", Attached: true}},
		Candidates: []*imagesnapshotv1.MatchCandidate{
			{Name: "nightly", Id: "6f1c", Verdict: imagesnapshotv1.MatchVerdict_MATCH_VERDICT_CHOSEN, Why: "it saves 1.0 GiB", Score: []*imagesnapshotv1.MatchKey{{Name: "saved-bytes", Value: 1 << 30}},
				Images: []*imagesnapshotv1.MatchedImage{{Reference: "nginx:1.27", MatchedBy: imagesnapshotv1.ImageMatch_IMAGE_MATCH_DIGEST, Layers: 7, Hits: 7, Run: 7}}},
			{Name: "old", Id: "77", Verdict: imagesnapshotv1.MatchVerdict_MATCH_VERDICT_EXPIRED, Why: "it expired", Images: []*imagesnapshotv1.MatchedImage{{Reference: "nginx:1.27", MovedTagDigest: "sha256:56"}}},
		},
	}, nil
}

func TestImageSnapshotCreate(t *testing.T) {
	f := &fakeImageSnapshots{}
	socket := start(t, &fakeDaemon{imageSnapshots: f})
	out, err := berth(t, "image-snapshot", "create", "nightly", "--socket", socket, "--image", "nginx:1.27", "--image", "redis:7", "--retention-days", "7",
		"--size", "40", "--plain-http", "r:5000", "--registry-secret", "r:5000=team", "--elimination", "lru", "-l", "env=prod", "--build-timeout", "60",
		"--client-token", "t", "--owner", "a", "--dry-run")
	require.NoError(t, err)
	require.Equal(t, "nightly: would be accepted, Pending, ID 6f1c\n", out)
	spec := f.created.GetSpec()
	require.Equal(t, []string{"nginx:1.27", "redis:7"}, spec.GetImages())
	require.EqualValues(t, 40, spec.GetSizeGib())
	require.EqualValues(t, 7, spec.GetRetentionDays())
	require.EqualValues(t, 60, spec.GetBuild().GetTimeoutMinutes())
	require.True(t, spec.GetReuseLayers())
	require.Equal(t, imagesnapshotv1.EliminationStrategy_ELIMINATION_STRATEGY_LRU, spec.GetElimination())
	require.Len(t, spec.GetRegistries(), 1)
	require.True(t, spec.GetRegistries()[0].GetPlainHttp())
	require.Equal(t, "team", spec.GetRegistries()[0].GetSecret())
	require.True(t, f.created.GetDryRun())

	out, err = berth(t, "image-snapshot", "create", "nightly", "--socket", socket, "--image", "nginx", "--size", "auto", "--wait")
	require.NoError(t, err)
	require.Equal(t, "nightly: usable, Available, ID 6f1c\n", out)
	require.True(t, f.created.GetSpec().GetSizeAsNeeded())
	f.fails = true
	_, err = berth(t, "image-snapshot", "create", "nightly", "--socket", socket, "--image", "nginx", "--wait")
	require.ErrorContains(t, err, "image snapshot nightly is Failed (TooSmall): it needs 30 GiB")

	for want, args := range map[string][]string{
		`"image" not set`: {}, "neither a number": {"--image", "x", "--size", "huge"}, "neither none nor lru": {"--image", "x", "--elimination", "all"},
	} {
		_, err := berth(t, append([]string{"image-snapshot", "create", "n", "--socket", socket}, args...)...)
		require.ErrorContains(t, err, want)
	}
}

// Whatever the API takes, the command line can say: with all flags given no field of the request is unset.
func TestEveryFieldHasItsFlag(t *testing.T) {
	f := &fakeImageSnapshots{}
	socket := start(t, &fakeDaemon{imageSnapshots: f})
	_, err := berth(t, "image-snapshot", "create", "nightly", "--socket", socket, "--image", "nginx:1.27", "--platform", "linux/arm64", "--size", "40",
		"--retention-days", "7", "--plain-http", "r:5000", "--insecure-skip-verify", "s.example", "--registry-secret", "s.example=team",
		"--build-timeout", "60", "--dns", "10.0.0.1,10.0.0.2", "--parameter", "subnet=s-1", "--reuse-layers", "--flash", "--elimination", "lru",
		"--copies", "2", "--flash-copies", "3", "--label", "env=prod", "--annotation", "note=n", "--owner", "team-a", "--client-token", "t", "--dry-run")
	require.NoError(t, err)
	require.Equal(t, []string{"spec.size_as_needed"}, protofields.Unset(f.created), "excludes size_gib")
	require.Equal(t, []string{"10.0.0.1", "10.0.0.2"}, f.created.GetSpec().GetBuild().GetDnsServers())
	require.Equal(t, map[string]string{"subnet": "s-1"}, f.created.GetSpec().GetBuild().GetParameters())
	require.Equal(t, []*imagesnapshotv1.RegistryAccess{{Server: "r:5000", PlainHttp: true}, {Server: "s.example", Secret: "team", InsecureSkipVerify: true}},
		f.created.GetSpec().GetRegistries())
	require.Equal(t, []int32{2, 3}, []int32{f.created.GetSpec().GetStandardCopies(), f.created.GetSpec().GetFlashCopies()})
	_, err = berth(t, "image-snapshot", "create", "nightly", "--socket", socket, "--image", "nginx:1.27", "--size", "auto")
	require.NoError(t, err)
	require.True(t, f.created.GetSpec().GetSizeAsNeeded())

	_, err = berth(t, "image-snapshot", "update", "nightly", "--socket", socket, "--image", "nginx:1.28", "--annotation", "note=m", "--label", "a=b", "--rebuild", "--dry-run")
	require.NoError(t, err)
	require.Equal(t, []string{"spec.size_as_needed"}, protofields.Unset(f.updated))
	_, err = berth(t, "image-snapshot", "delete", "nightly", "--socket", socket, "--if-id", "6f1c", "--if-version", "7", "--dry-run")
	require.NoError(t, err)
	require.Empty(t, protofields.Unset(f.deleted))
}

func TestImageSnapshotUpdate(t *testing.T) {
	f := &fakeImageSnapshots{}
	socket := start(t, &fakeDaemon{imageSnapshots: f})
	_, err := berth(t, "image-snapshot", "update", "nightly", "--socket", socket, "--retention-days", "30")
	require.NoError(t, err)
	want := nightly().GetSpec()
	want.RetentionDays = 30
	require.Equal(t, want.String(), f.updated.GetSpec().String(), "only what was given is changed")
	require.Equal(t, "7", f.updated.GetPreconditions().GetResourceVersion())
	require.Nil(t, f.updated.GetLabels())
	_, err = berth(t, "image-snapshot", "update", "nightly", "--socket", socket, "--rebuild", "-l", "a=b", "--if-version", "6", "--wait")
	require.NoError(t, err)
	require.True(t, f.updated.GetRebuild())
	require.Equal(t, map[string]string{"a": "b"}, f.updated.GetLabels().GetEntries())
	require.Equal(t, "6", f.updated.GetPreconditions().GetResourceVersion())
	require.False(t, f.updated.GetDryRun())
	for _, args := range [][]string{{}, {"--image", "docker.io/library/nginx:1.27"}, {"-l", "app=web", "-l", "env=prod"}, {"--dry-run"}} {
		f.updates = 0
		out, err := berth(t, append([]string{"image-snapshot", "update", "nightly", "--socket", socket}, args...)...)
		require.NoError(t, err)
		require.Equal(t, "nightly: unchanged, Available, ID 6f1c\n", out)
		require.Equal(t, 1, f.updates)
		require.True(t, f.updated.GetDryRun(), "nothing but a dry run was asked for")
	}
	out, err := berth(t, "image-snapshot", "update", "nightly", "--socket", socket, "-l", "k=a,b", "-l", "of=x=y")
	require.NoError(t, err)
	require.Equal(t, "nightly: changed, Available, ID 6f1c\n", out)
	require.Equal(t, map[string]string{"k": "a,b", "of": "x=y"}, f.updated.GetLabels().GetEntries())
	_, err = berth(t, "image-snapshot", "update", "nightly", "--socket", socket, "--image", "")
	require.ErrorContains(t, err, `--image "" names no image`)
	_, err = berth(t, "image-snapshot", "update", "nightly", "--socket", socket, "-l", "k")
	require.ErrorContains(t, err, `"k" is not of the form key=value`)
	_, err = berth(t, "image-snapshot", "update", "none", "--socket", socket)
	require.ErrorContains(t, err, `no image snapshot "none"`)
	require.NotContains(t, err.Error(), "rpc error")
}

// E-25, E-27: the list with the phases, one with all that is known, and events.
func TestImageSnapshotViews(t *testing.T) {
	f := &fakeImageSnapshots{}
	socket := start(t, &fakeDaemon{imageSnapshots: f})
	out, err := berth(t, "image-snapshot", "get", "nightly", "--socket", socket)
	require.NoError(t, err)
	golden(t, "image-snapshot-get", out)
	out, err = berth(t, "image-snapshot", "access-list", "nightly", "--image", "nginx:1.27", "--socket", socket)
	require.NoError(t, err)
	require.Equal(t, "berth-accesslist 1\nimage docker.io/library/nginx:1.27\nplatform linux/amd64\nrecorded 2023-11-14T22:14:30Z\n", out)
	out, err = berth(t, "image-snapshot", "access-list", "nightly", "--encoded", "--socket", socket)
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "list")
	require.NoError(t, os.WriteFile(file, []byte(out), 0o600))
	_, err = berth(t, "image-snapshot", "access-list", "nightly", "--put", file, "--socket", socket)
	require.NoError(t, err)
	require.Equal(t, out, string(f.list.GetList()))
	require.NoError(t, os.WriteFile(file, []byte("no list"), 0o600))
	_, err = berth(t, "image-snapshot", "access-list", "nightly", "--put", file, "--socket", socket)
	require.ErrorContains(t, err, file)
	out, err = berth(t, "image-snapshot", "events", "nightly", "--socket", socket)
	require.NoError(t, err)
	golden(t, "image-snapshot-events", out)
	out, err = berth(t, "image-snapshot", "events", "--watch", "--socket", socket)
	require.NoError(t, err)
	require.Equal(t, "2023-11-14T22:13:20Z nightly Normal Accepted: it is so\n", out)
	out, err = berth(t, "image-snapshot", "list", "--socket", socket)
	require.NoError(t, err)
	require.Regexp(t, `nightly +team-a +Available +100% +1 +3GiB +3 +now`, out)
	out, err = berth(t, "image-snapshot", "list", "--json", "--socket", socket)
	require.NoError(t, err)
	require.Contains(t, out, `"phase": "IMAGE_SNAPSHOT_PHASE_AVAILABLE"`)

	out, err = berth(t, "match", "nginx:1.27", "--names-only", "--annotation", "berth.dev/auto-match=true", "--order", "saved", "--socket", socket)
	require.NoError(t, err)
	golden(t, "match", out)
	f.mu.Lock()
	require.Equal(t, map[string]string{"berth.dev/auto-match": "true"}, f.match.GetAnnotations())
	require.True(t, f.match.GetAutoMatch())
	f.refuses = true
	f.mu.Unlock()
	for _, more := range []string{"--json=false", "--json"} {
		out, err := berthProcess(t, "match", "nginx:1.27", "--names-only", "--socket", socket, more).Output()
		require.Equal(t, statusRefused, exitStatus(t, err))
		require.Contains(t, strings.ToLower(string(out)), "reject")
	}

	out, err = berth(t, "image-snapshot", "delete", "nightly", "--wait", "--if-id", "6f1c", "--socket", socket)
	require.NoError(t, err)
	require.Equal(t, "nightly: deleted\n", out)
	require.Equal(t, "6f1c", f.deleted.GetPreconditions().GetId())
}
