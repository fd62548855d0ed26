package control

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth.dev/berth/layerdisk"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

// Register serves the use cases on a gRPC server.
func Register(registrar grpc.ServiceRegistrar, s *Service) {
	controlv1.RegisterControlServiceServer(registrar, &server{service: s})
}

// server translates between messages and use cases; it is the only place that knows gRPC.
type server struct {
	controlv1.UnimplementedControlServiceServer
	service *Service
}

var _ controlv1.ControlServiceServer = (*server)(nil)

// Status tells what the node does.
func (s *server) Status(ctx context.Context, _ *controlv1.StatusRequest) (*controlv1.StatusResponse, error) {
	st, err := s.service.Status(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &controlv1.StatusResponse{
		Version: st.Version, Pid: int64(st.PID), Started: timestamppb.New(st.Started), Root: st.Root,
		Hits: st.Hits, Misses: st.Misses, BytesNotPulled: st.BytesNotPulled,
		AdoptedSnapshots: uint64(st.AdoptedSnapshots), Disks: diskMessages(st.Disks),
		Hydrations: hydrationMessages(st.Hydrations),
	}, nil
}

// ListDisks lists the disks.
func (s *server) ListDisks(ctx context.Context, _ *controlv1.ListDisksRequest) (*controlv1.ListDisksResponse, error) {
	disks, err := s.service.ListDisks(ctx)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &controlv1.ListDisksResponse{Disks: diskMessages(disks)}, nil
}

// AttachDisk attaches a disk.
func (s *server) AttachDisk(ctx context.Context, req *controlv1.AttachDiskRequest) (*controlv1.AttachDiskResponse, error) {
	disk, err := s.service.AttachDisk(ctx, DiskSpec{
		Name: req.GetName(), Driver: req.GetDriver(), VolumeID: req.GetVolumeId(), SnapshotID: req.GetSnapshotId(),
		Keep: req.GetKeep(), Expect: digest.Digest(req.GetExpectIndexDigest()),
	})
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &controlv1.AttachDiskResponse{Disk: diskMessage(disk)}, nil
}

// DetachDisk detaches a disk.
func (s *server) DetachDisk(ctx context.Context, req *controlv1.DetachDiskRequest) (*controlv1.DetachDiskResponse, error) {
	holders, err := s.service.DetachDisk(ctx, req.GetName(), req.GetDrain())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &controlv1.DetachDiskResponse{Detached: holders == 0, Holders: int64(holders)}, nil
}

// FindImage finds an image in the disks' indexes.
func (s *server) FindImage(ctx context.Context, req *controlv1.FindImageRequest) (*controlv1.FindImageResponse, error) {
	platform := platforms.DefaultSpec()
	if req.GetPlatform() != "" {
		p, err := platforms.Parse(req.GetPlatform())
		if err != nil {
			return nil, errgrpc.ToGRPCf(errdefs.ErrInvalidArgument, "platform %q: %v", req.GetPlatform(), err)
		}
		platform = p
	}
	img, err := s.service.FindImage(ctx, req.GetReference(), platform)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &controlv1.FindImageResponse{Disk: img.Disk, Manifest: img.Manifest, Config: img.Config}, nil
}

// ExplainLayers answers for each layer.
func (s *server) ExplainLayers(ctx context.Context, req *controlv1.ExplainLayersRequest) (*controlv1.ExplainLayersResponse, error) {
	names := make([]layerdisk.LayerName, len(req.GetLayers()))
	for i, l := range req.GetLayers() {
		names[i] = layerdisk.LayerName{
			ChainID: digest.Digest(l.GetChainId()), ParentChainID: digest.Digest(l.GetParentChainId()),
			DiffID: digest.Digest(l.GetDiffId()), Blob: digest.Digest(l.GetBlobDigest()),
		}
	}
	answers, err := s.service.ExplainLayers(ctx, names)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	resp := &controlv1.ExplainLayersResponse{}
	for _, a := range answers {
		m := &controlv1.LayerAnswer{Reason: a.Reason}
		if a.Location != nil {
			m.Hit, m.Disk, m.LayerNumber, m.MatchedBy = true, a.Location.Disk, int64(a.Location.LayerNumber), a.Location.MatchedBy
		}
		if a.Last != nil {
			m.Last = eventMessage(*a.Last)
		}
		resp.Layers = append(resp.Layers, m)
	}
	if c := s.service.LastChoice(req.GetImageRef(), names); c != nil {
		resp.LastChoice = choiceMessage(*c)
	}
	return resp, nil
}

func choiceMessage(c Choice) *controlv1.DiskChoice {
	m := &controlv1.DiskChoice{
		Time: timestamppb.New(c.Time), ChainId: c.ChainID.String(), Reason: c.Reason, Waited: durationpb.New(c.Waited),
	}
	for _, d := range c.Disks {
		m.Disks = append(m.Disks, &controlv1.ChosenDisk{ImageSnapshot: d.ImageSnapshot, Disk: d.Disk, Result: d.Result, Error: d.Error})
	}
	for _, x := range c.Candidates {
		m.Candidates = append(m.Candidates, &controlv1.ChoiceCandidate{Name: x.Name, Id: x.ID, Verdict: x.Verdict, Why: x.Why})
	}
	return m
}

// WatchEvents streams events until the client or the daemon ends.
func (s *server) WatchEvents(_ *controlv1.WatchEventsRequest, stream grpc.ServerStreamingServer[controlv1.WatchEventsResponse]) error {
	for d := range s.service.Watch(stream.Context()).Events {
		if err := stream.Send(&controlv1.WatchEventsResponse{Event: eventMessage(d.Event), Dropped: d.Dropped}); err != nil {
			return err
		}
	}
	return errgrpc.ToGRPC(stream.Context().Err())
}

func diskMessages(disks []Disk) []*controlv1.Disk {
	var ms []*controlv1.Disk
	for _, d := range disks {
		ms = append(ms, diskMessage(d))
	}
	return ms
}

func diskMessage(d Disk) *controlv1.Disk {
	m := &controlv1.Disk{
		Name: d.Name, Driver: d.Driver, VolumeId: d.VolumeID, Uuid: d.UUID, IndexDigest: d.IndexDigest.String(),
		State: d.State, Serving: d.Serving, Device: d.Device, MountPoint: d.MountPoint, SizeBytes: d.SizeBytes,
		Layers: int64(d.Layers), LayersInUse: int64(d.LayersInUse), Holders: int64(d.Holders),
		LastError: d.LastError, Keep: d.Keep, Configured: d.Configured, SnapshotId: d.SnapshotID,
		ImportError: d.ImportError,
	}
	for _, img := range d.Imports {
		m.Imports = append(m.Imports, &controlv1.ImportedImage{
			Reference: img.Reference, Namespace: img.Namespace, Result: img.Result, Reason: img.Reason,
		})
	}
	if !d.Since.IsZero() {
		m.Since = timestamppb.New(d.Since)
	}
	return m
}

func hydrationMessages(list []Hydration) []*controlv1.Hydration {
	var ms []*controlv1.Hydration
	for i := range list {
		h := &list[i]
		ms = append(ms, &controlv1.Hydration{
			Image: h.Image, Disk: h.Disk, DiskUuid: h.DiskUUID, Listed: h.Listed, State: h.State, Reason: h.Reason,
			TotalBytes: h.TotalBytes, Bytes: h.Bytes, Reads: h.Reads, Skipped: h.Skipped,
			Wanted: timestamppb.New(h.Wanted), Took: durationpb.New(h.Took), BytesPerSecond: h.BytesPerSecond,
		})
	}
	return ms
}

func eventMessage(e Event) *controlv1.Event {
	kinds := map[EventKind]controlv1.EventKind{
		Hit: controlv1.EventKind_EVENT_KIND_HIT, Miss: controlv1.EventKind_EVENT_KIND_MISS,
		Failure:      controlv1.EventKind_EVENT_KIND_ERROR,
		DiskAttached: controlv1.EventKind_EVENT_KIND_DISK_ATTACHED, DiskDetached: controlv1.EventKind_EVENT_KIND_DISK_DETACHED,
		DiskFailed:    controlv1.EventKind_EVENT_KIND_DISK_FAILED,
		ImageImported: controlv1.EventKind_EVENT_KIND_IMAGE_IMPORTED, ImageWithdrawn: controlv1.EventKind_EVENT_KIND_IMAGE_WITHDRAWN,
		ImageNotImported: controlv1.EventKind_EVENT_KIND_IMAGE_NOT_IMPORTED,
	}
	reason := e.Reason
	if e.Detail != "" {
		reason = e.Detail
	}
	return &controlv1.Event{
		Time: timestamppb.New(e.Time), Kind: kinds[e.Kind], ChainId: e.ChainID.String(), ImageRef: e.ImageRef,
		Disk: e.Disk, ImageSnapshot: e.ImageSnapshot, MatchedBy: e.MatchedBy, Reason: reason, Bytes: e.Bytes,
	}
}
