package loopcsi

import (
	"context"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth.dev/berth/blockdev"
)

func (s *storage) describeVolumeSnapshot(v blockdev.VolumeSnapshot) *csi.Snapshot {
	return &csi.Snapshot{
		SnapshotId: v.ID, SourceVolumeId: v.SourceVolumeID, SizeBytes: v.SizeBytes,
		CreationTime: timestamppb.New(v.Created), ReadyToUse: s.ready(v),
	}
}

func (s *storage) ready(v blockdev.VolumeSnapshot) bool {
	return v.ReadyToUse && time.Since(v.Created) >= s.options.SnapshotTime
}

func (s *storage) needVolumeSnapshots() error {
	if s.without[Snapshots] {
		return status.Error(codes.Unimplemented, "there are no volume snapshots")
	}
	return nil
}

// CreateSnapshot freezes what a volume holds that is not attached for writing; the snapshot is ready at once.
func (s *controller) CreateSnapshot(ctx context.Context, req *csi.CreateSnapshotRequest) (*csi.CreateSnapshotResponse, error) {
	if err := s.storage.needVolumeSnapshots(); err != nil {
		return nil, err
	}
	if err := require("name", req.GetName(), "source_volume_id", req.GetSourceVolumeId()); err != nil {
		return nil, err
	}
	if len(req.GetParameters()) > 0 {
		return nil, status.Error(codes.InvalidArgument, "there are no parameters")
	}
	name, err := localName(req.GetName())
	if err != nil {
		return nil, err
	}
	if _, err := s.storage.driver.GetVolumeSnapshot(ctx, name); gone(err) {
		if _, err := s.storage.volume(ctx, req.GetSourceVolumeId()); err != nil {
			return nil, err
		}
	}
	snapshot, err := s.storage.driver.CreateVolumeSnapshot(ctx, name, req.GetSourceVolumeId())
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.CreateSnapshotResponse{Snapshot: s.storage.describeVolumeSnapshot(snapshot)}, nil
}

// DeleteSnapshot deletes a volume snapshot; volumes made from it stay.
func (s *controller) DeleteSnapshot(ctx context.Context, req *csi.DeleteSnapshotRequest) (*csi.DeleteSnapshotResponse, error) {
	if err := s.storage.needVolumeSnapshots(); err != nil {
		return nil, err
	}
	if err := require("snapshot_id", req.GetSnapshotId()); err != nil {
		return nil, err
	}
	if err := s.storage.driver.DeleteVolumeSnapshot(ctx, req.GetSnapshotId()); err != nil {
		return nil, toStatus(err)
	}
	return &csi.DeleteSnapshotResponse{}, nil
}

// ListSnapshots lists volume snapshots by name, all, or those of an ID or a volume.
func (s *controller) ListSnapshots(ctx context.Context, req *csi.ListSnapshotsRequest) (*csi.ListSnapshotsResponse, error) {
	if s.storage.without[Snapshots] || s.storage.without[List] {
		return nil, status.Error(codes.Unimplemented, "volume snapshots cannot be listed")
	}
	all, err := s.storage.driver.ListVolumeSnapshots(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	var list []blockdev.VolumeSnapshot
	for _, v := range all {
		id, volume := req.GetSnapshotId(), req.GetSourceVolumeId()
		if (id == "" || id == v.ID) && (volume == "" || volume == v.SourceVolumeID) {
			list = append(list, v)
		}
	}
	part, next, err := page(list, func(v blockdev.VolumeSnapshot) string { return v.ID }, req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	resp := &csi.ListSnapshotsResponse{NextToken: next}
	for _, v := range part {
		resp.Entries = append(resp.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: s.storage.describeVolumeSnapshot(v)})
	}
	return resp, nil
}

// GetSnapshot is ListSnapshots for one.
func (s *controller) GetSnapshot(ctx context.Context, req *csi.GetSnapshotRequest) (*csi.GetSnapshotResponse, error) {
	if s.storage.without[Snapshots] || s.storage.without[Get] {
		return nil, status.Error(codes.Unimplemented, "single volume snapshots cannot be asked for")
	}
	if err := require("snapshot_id", req.GetSnapshotId()); err != nil {
		return nil, err
	}
	v, err := s.storage.driver.GetVolumeSnapshot(ctx, req.GetSnapshotId())
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.GetSnapshotResponse{Snapshot: s.storage.describeVolumeSnapshot(v)}, nil
}
