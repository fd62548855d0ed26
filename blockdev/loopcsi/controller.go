package loopcsi

import (
	"context"
	"strconv"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/blockdev"
)

// ControllerGetCapabilities lists what was not left out.
func (s *controller) ControllerGetCapabilities(context.Context, *csi.ControllerGetCapabilitiesRequest) (*csi.ControllerGetCapabilitiesResponse, error) {
	resp := &csi.ControllerGetCapabilitiesResponse{}
	add := func(has bool, types ...csi.ControllerServiceCapability_RPC_Type) {
		for _, t := range types {
			if has {
				resp.Capabilities = append(resp.Capabilities, &csi.ControllerServiceCapability{
					Type: &csi.ControllerServiceCapability_Rpc{Rpc: &csi.ControllerServiceCapability_RPC{Type: t}},
				})
			}
		}
	}
	publish, list, get, snapshots := !s.storage.without[Publish], !s.storage.without[List], !s.storage.without[Get], !s.storage.without[Snapshots]
	add(true, csi.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME)
	add(publish, csi.ControllerServiceCapability_RPC_PUBLISH_UNPUBLISH_VOLUME)
	add(publish && !s.storage.without[ReadOnly], csi.ControllerServiceCapability_RPC_PUBLISH_READONLY)
	add(list, csi.ControllerServiceCapability_RPC_LIST_VOLUMES)
	add(list && publish, csi.ControllerServiceCapability_RPC_LIST_VOLUMES_PUBLISHED_NODES)
	add(get, csi.ControllerServiceCapability_RPC_GET_VOLUME)
	add(snapshots, csi.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT)
	add(snapshots && list, csi.ControllerServiceCapability_RPC_LIST_SNAPSHOTS)
	add(snapshots && get, csi.ControllerServiceCapability_RPC_GET_SNAPSHOT)
	return resp, nil
}

func (s *storage) describe(v blockdev.Volume) *csi.Volume {
	out := &csi.Volume{VolumeId: v.ID, CapacityBytes: v.SizeBytes, AccessibleTopology: []*csi.Topology{s.topology()}}
	if v.SourceVolumeSnapshotID != "" {
		out.ContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: v.SourceVolumeSnapshotID},
		}}
	}
	return out
}

// CreateVolume makes a sparse file, blank or from a volume snapshot. A volume of the name that fits the request is
// returned.
func (s *controller) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if err := require("name", req.GetName()); err != nil {
		return nil, err
	}
	if err := checkCapabilities(req.GetVolumeCapabilities()...); err != nil {
		return nil, err
	}
	source := req.GetVolumeContentSource()
	snapshotID := source.GetSnapshot().GetSnapshotId()
	switch {
	case len(req.GetParameters()) > 0 || len(req.GetMutableParameters()) > 0:
		return nil, status.Error(codes.InvalidArgument, "there are no parameters")
	case source != nil && snapshotID == "":
		return nil, status.Error(codes.InvalidArgument, "a volume's content can come from a volume snapshot only")
	case snapshotID != "" && s.storage.without[Snapshots]:
		return nil, status.Error(codes.InvalidArgument, "there are no volume snapshots")
	case !s.storage.fits(req.GetAccessibilityRequirements()):
		return nil, status.Errorf(codes.ResourceExhausted, "volumes are made on node %s only", s.storage.options.NodeID)
	}
	name, err := localName(req.GetName())
	if err != nil {
		return nil, err
	}
	v, err := s.storage.existing(ctx, name, req.GetCapacityRange(), snapshotID)
	if err != nil || v.ID != "" {
		return &csi.CreateVolumeResponse{Volume: s.storage.describe(v)}, err
	}
	atLeast := int64(0)
	if snapshotID != "" {
		snapshot, err := s.storage.driver.GetVolumeSnapshot(ctx, snapshotID)
		if err != nil {
			return nil, toStatus(err)
		}
		if !s.storage.ready(snapshot) {
			return nil, status.Errorf(codes.Aborted, "volume snapshot %s is not ready yet", snapshotID)
		}
		atLeast = snapshot.SizeBytes
	}
	bytes, err := size(req.GetCapacityRange(), atLeast)
	if err != nil {
		return nil, err
	}
	v, err = s.storage.driver.CreateVolume(ctx, blockdev.CreateVolumeRequest{Name: name, SizeBytes: bytes, SourceVolumeSnapshotID: snapshotID})
	if err != nil {
		return nil, toStatus(err)
	}
	return &csi.CreateVolumeResponse{Volume: s.storage.describe(v)}, nil
}

// existing finds the volume of the name, whose parameters only have to be compatible with what is asked for: the loop
// driver wants them to be the same.
func (s *storage) existing(ctx context.Context, name string, r *csi.CapacityRange, snapshotID string) (blockdev.Volume, error) {
	v, err := s.driver.GetVolume(ctx, name)
	if gone(err) {
		return blockdev.Volume{}, nil
	}
	if err != nil {
		return blockdev.Volume{}, toStatus(err)
	}
	low, high := r.GetRequiredBytes(), r.GetLimitBytes()
	if v.SizeBytes < low || high > 0 && v.SizeBytes > high || v.SourceVolumeSnapshotID != snapshotID {
		return blockdev.Volume{}, status.Errorf(codes.AlreadyExists, "volume %s exists with %d bytes, made from %q", v.ID, v.SizeBytes, v.SourceVolumeSnapshotID)
	}
	return v, nil
}

// DeleteVolume deletes a volume that is not attached.
func (s *controller) DeleteVolume(ctx context.Context, req *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	if err := require("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	// Only for what the driver knows: its refusal of paths would be an error where there is nothing to delete.
	if _, err := s.storage.driver.GetVolume(ctx, req.GetVolumeId()); gone(err) {
		return &csi.DeleteVolumeResponse{}, nil
	}
	if err := s.storage.driver.DeleteVolume(ctx, req.GetVolumeId()); err != nil {
		return nil, toStatus(err)
	}
	return &csi.DeleteVolumeResponse{}, nil
}

// ValidateVolumeCapabilities confirms what CreateVolume accepts.
func (s *controller) ValidateVolumeCapabilities(ctx context.Context, req *csi.ValidateVolumeCapabilitiesRequest) (*csi.ValidateVolumeCapabilitiesResponse, error) {
	if err := require("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if len(req.GetVolumeCapabilities()) == 0 {
		return nil, status.Error(codes.InvalidArgument, "volume_capabilities is required")
	}
	if _, err := s.storage.volume(ctx, req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := checkCapabilities(req.GetVolumeCapabilities()...); err != nil {
		return &csi.ValidateVolumeCapabilitiesResponse{Message: status.Convert(err).Message()}, nil //nolint:nilerr // the answer is no
	}
	return &csi.ValidateVolumeCapabilitiesResponse{Confirmed: &csi.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: req.GetVolumeContext(), VolumeCapabilities: req.GetVolumeCapabilities(), Parameters: req.GetParameters(),
	}}, nil
}

// ListVolumes lists the volumes by name, and where they are attached.
func (s *controller) ListVolumes(ctx context.Context, req *csi.ListVolumesRequest) (*csi.ListVolumesResponse, error) {
	if s.storage.without[List] {
		return nil, status.Error(codes.Unimplemented, "volumes cannot be listed")
	}
	list, err := s.storage.driver.ListVolumes(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	attached, err := s.storage.driver.Attached(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	part, next, err := page(list, func(v blockdev.Volume) string { return v.ID }, req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	resp := &csi.ListVolumesResponse{NextToken: next}
	for _, v := range part {
		e := &csi.ListVolumesResponse_Entry{Volume: s.storage.describe(v), Status: &csi.ListVolumesResponse_VolumeStatus{}}
		if _, ok := attached[v.ID]; ok {
			node, err := s.storage.holder(v.ID)
			if err != nil {
				return nil, err
			}
			e.Status.PublishedNodeIds = []string{node}
		}
		resp.Entries = append(resp.Entries, e)
	}
	return resp, nil
}

// ControllerGetVolume is ListVolumes for one.
func (s *controller) ControllerGetVolume(ctx context.Context, req *csi.ControllerGetVolumeRequest) (*csi.ControllerGetVolumeResponse, error) {
	if s.storage.without[Get] {
		return nil, status.Error(codes.Unimplemented, "single volumes cannot be asked for")
	}
	if err := require("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	v, err := s.storage.volume(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	attached, err := s.storage.driver.Attached(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	state := &csi.ControllerGetVolumeResponse_VolumeStatus{}
	if _, ok := attached[v.ID]; ok {
		node, err := s.storage.holder(v.ID)
		if err != nil {
			return nil, err
		}
		state.PublishedNodeIds = []string{node}
	}
	return &csi.ControllerGetVolumeResponse{Volume: s.storage.describe(v), Status: state}, nil
}

// readOnlyKey of the publish context says how the node has to attach the volume if it is not.
const readOnlyKey = "readOnly"

// ControllerPublishVolume attaches the volume.
func (s *controller) ControllerPublishVolume(ctx context.Context, req *csi.ControllerPublishVolumeRequest) (*csi.ControllerPublishVolumeResponse, error) {
	if s.storage.without[Publish] {
		return nil, status.Error(codes.Unimplemented, "volumes are attached on the node")
	}
	if err := require("volume_id", req.GetVolumeId(), "node_id", req.GetNodeId()); err != nil {
		return nil, err
	}
	if err := checkCapabilities(req.GetVolumeCapability()); err != nil {
		return nil, err
	}
	if req.GetNodeId() != s.storage.nodeID {
		return nil, status.Errorf(codes.NotFound, "node %q: this is %q", req.GetNodeId(), s.storage.nodeID)
	}
	readonly := req.GetReadonly() && !s.storage.without[ReadOnly]
	if _, err := s.storage.attach(ctx, req.GetVolumeId(), readonly); err != nil {
		return nil, err
	}
	return &csi.ControllerPublishVolumeResponse{PublishContext: map[string]string{readOnlyKey: strconv.FormatBool(readonly)}}, nil
}

// ControllerUnpublishVolume detaches the volume, which must not be published on the node any more.
func (s *controller) ControllerUnpublishVolume(ctx context.Context, req *csi.ControllerUnpublishVolumeRequest) (*csi.ControllerUnpublishVolumeResponse, error) {
	if s.storage.without[Publish] {
		return nil, status.Error(codes.Unimplemented, "volumes are detached on the node")
	}
	if err := require("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	// Without a node ID the volume is to leave whichever node has it.
	from := *s.storage
	if from.nodeID = req.GetNodeId(); from.nodeID == "" {
		holder, err := s.storage.holder(req.GetVolumeId())
		if err != nil {
			return nil, err
		}
		from.nodeID = holder
	}
	if err := from.detach(ctx, req.GetVolumeId()); err != nil {
		return nil, err
	}
	return &csi.ControllerUnpublishVolumeResponse{}, nil
}
