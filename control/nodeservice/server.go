package nodeservice

import (
	"context"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/stage"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

// Register serves the use cases on a gRPC server.
func Register(registrar grpc.ServiceRegistrar, s *Service) {
	controlv1.RegisterControlServiceServer(registrar, &server{service: s})
}

// server translates between messages and use cases.
type server struct {
	controlv1.UnimplementedControlServiceServer
	service *Service
}

var _ controlv1.ControlServiceServer = (*server)(nil)

// Status implements the service.
func (s *server) Status(_ context.Context, _ *controlv1.StatusRequest) (*controlv1.StatusResponse, error) {
	st := s.service.Status()
	return &controlv1.StatusResponse{
		Version: st.Version, Pid: int64(st.PID), Started: timestamppb.New(st.Started), Root: st.Root,
		Hits: hitMessages(st.Hits), Misses: missMessages(st.Misses), BytesNotPulled: st.BytesNotPulled,
		AdoptedSnapshots: uint64(st.AdoptedSnapshots), Disks: diskMessages(st.Disks),
		ReadAhead: readAheadMessages(st.ReadAhead),
	}, nil
}

// ListDisks implements the service.
func (s *server) ListDisks(_ context.Context, _ *controlv1.ListDisksRequest) (*controlv1.ListDisksResponse, error) {
	return &controlv1.ListDisksResponse{Disks: diskMessages(s.service.ListDisks())}, nil
}

// AttachDisk implements the service.
func (s *server) AttachDisk(ctx context.Context, req *controlv1.AttachDiskRequest) (*controlv1.AttachDiskResponse, error) {
	disk, err := s.service.AttachDisk(ctx, stage.Spec{
		Name: req.GetName(), Driver: req.GetDriver(), VolumeID: req.GetVolumeId(), VolumeSnapshotID: req.GetVolumeSnapshotId(),
		Keep: req.GetKeep(), Expect: layerdisk.Identity{IndexDigest: digest.Digest(req.GetExpectIndexDigest())},
	})
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &controlv1.AttachDiskResponse{Disk: diskMessage(Disk{Disk: disk})}, nil
}

// DetachDisk implements the service.
func (s *server) DetachDisk(ctx context.Context, req *controlv1.DetachDiskRequest) (*controlv1.DetachDiskResponse, error) {
	holders, err := s.service.DetachDisk(ctx, req.GetName(), req.GetDrain())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &controlv1.DetachDiskResponse{Detached: holders == 0, Holders: int64(holders)}, nil
}

// ListUses implements the service.
func (s *server) ListUses(ctx context.Context, req *controlv1.ListUsesRequest) (*controlv1.ListUsesResponse, error) {
	uses, err := s.service.ListUses(ctx, req.GetDisk())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	resp := &controlv1.ListUsesResponse{}
	for _, u := range uses {
		m := &controlv1.DiskUse{Disk: u.Disk, Uuid: u.UUID}
		for _, c := range u.Chains {
			m.ChainIds = append(m.ChainIds, c.String())
		}
		resp.Uses = append(resp.Uses, m)
	}
	return resp, nil
}

// FindImage implements the service.
func (s *server) FindImage(_ context.Context, req *controlv1.FindImageRequest) (*controlv1.FindImageResponse, error) {
	platform := platforms.DefaultSpec()
	if req.GetPlatform() != "" {
		p, err := platforms.Parse(req.GetPlatform())
		if err != nil {
			return nil, errgrpc.ToGRPCf(errdefs.ErrInvalidArgument, "platform %q: %v", req.GetPlatform(), err)
		}
		platform = p
	}
	img, err := s.service.FindImage(req.GetReference(), platform)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &controlv1.FindImageResponse{Disk: img.Disk, Manifest: img.Manifest, Config: img.Config}, nil
}

// ExplainLayers implements the service.
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
		if h := a.Held; h != nil {
			m.Hit, m.Disk, m.LayerNumber, m.MatchedBy = true, h.DiskName, int64(h.LayerNumber), layerMatchMessage(h.MatchedBy)
		}
		if a.Last != nil {
			m.Last = eventMessage(*a.Last)
		}
		resp.Layers = append(resp.Layers, m)
	}
	if c, ok := s.service.LastChoice(req.GetImageRef(), names); ok {
		resp.LastChoice = choiceMessage(&c)
	}
	return resp, nil
}

// WatchEvents implements the service.
func (s *server) WatchEvents(_ *controlv1.WatchEventsRequest, stream grpc.ServerStreamingServer[controlv1.WatchEventsResponse]) error {
	for d := range s.service.Watch(stream.Context()).Events {
		if err := stream.Send(&controlv1.WatchEventsResponse{Event: eventMessage(d.Event), Dropped: d.Dropped}); err != nil {
			return err
		}
	}
	return errgrpc.ToGRPC(stream.Context().Err())
}
