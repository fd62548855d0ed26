package nodeservice

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"

	"berth.dev/berth/node/lost"
	"berth.dev/berth/node/users"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

// Lost reports which layers no disk has any more, and releases images that need them; a *lost.Finder does.
type Lost interface {
	// List returns what a disk lost. An empty disk means all disks.
	List(ctx context.Context, disk string) (lost.Report, error)
	// Release removes the records of images, or says which it would remove.
	Release(ctx context.Context, s lost.Selection, dryRun bool) (lost.Released, error)
}

// ListLostLayers lists the lost layers of a disk. An empty disk means all disks.
func (s *Service) ListLostLayers(ctx context.Context, disk string) (lost.Report, error) {
	if s.cfg.Lost == nil {
		return lost.Report{}, nil
	}
	return s.cfg.Lost.List(ctx, disk)
}

// ReleaseImages that need lost layers.
func (s *Service) ReleaseImages(ctx context.Context, which lost.Selection, dryRun bool) (lost.Released, error) {
	if s.cfg.Lost == nil {
		return lost.Released{}, fmt.Errorf("release images: this node knows no containerd: %w", errdefs.ErrNotImplemented)
	}
	return s.cfg.Lost.Release(ctx, which, dryRun)
}

// ListLostLayers implements the service.
func (s *server) ListLostLayers(ctx context.Context, req *controlv1.ListLostLayersRequest) (*controlv1.ListLostLayersResponse, error) {
	report, err := s.service.ListLostLayers(ctx, req.GetDisk())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	resp := &controlv1.ListLostLayersResponse{UsersUnknown: errorText(report.Unknown)}
	for _, l := range report.Layers {
		resp.Layers = append(resp.Layers, &controlv1.LostLayer{
			Disk: l.Disk, DiskUuid: l.DiskUUID, LayerNumber: int64(l.Number), ChainId: l.ChainID.String(), DiffId: l.DiffID.String(),
			State: lostLayerStateMessage(l.State), Reason: l.Reason, Users: userMessages(l.Users),
		})
	}
	for _, c := range report.Stranded {
		resp.Stranded = append(resp.Stranded, &controlv1.StrandedContainer{Container: userMessage(c.User), Disk: c.Disk})
	}
	return resp, nil
}

// ReleaseImages implements the service.
func (s *server) ReleaseImages(ctx context.Context, req *controlv1.ReleaseImagesRequest) (*controlv1.ReleaseImagesResponse, error) {
	r, err := s.service.ReleaseImages(ctx, lost.Selection{Disk: req.GetDisk(), Image: req.GetImage()}, req.GetDryRun())
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &controlv1.ReleaseImagesResponse{Images: userMessages(r.Images), Remaining: userMessages(r.Remaining)}, nil
}

func userMessages(list []users.User) (ms []*controlv1.LayerUser) {
	for _, u := range list {
		ms = append(ms, userMessage(u))
	}
	return ms
}

func userMessage(u users.User) *controlv1.LayerUser {
	return &controlv1.LayerUser{Kind: userKindMessage(u.Kind), Namespace: u.Namespace, Name: u.Name, Pod: u.Pod}
}

func userKindMessage(kind users.Kind) controlv1.LayerUserKind {
	switch kind {
	case users.Image:
		return controlv1.LayerUserKind_LAYER_USER_KIND_IMAGE
	case users.Container:
		return controlv1.LayerUserKind_LAYER_USER_KIND_CONTAINER
	case users.Lease:
		return controlv1.LayerUserKind_LAYER_USER_KIND_LEASE
	}
	return controlv1.LayerUserKind_LAYER_USER_KIND_UNSPECIFIED
}

func lostLayerStateMessage(state lost.State) controlv1.LostLayerState {
	switch state {
	case lost.Waiting:
		return controlv1.LostLayerState_LOST_LAYER_STATE_WAITING
	case lost.Making:
		return controlv1.LostLayerState_LOST_LAYER_STATE_MAKING
	case lost.Failed:
		return controlv1.LostLayerState_LOST_LAYER_STATE_FAILED
	}
	return controlv1.LostLayerState_LOST_LAYER_STATE_UNSPECIFIED
}
