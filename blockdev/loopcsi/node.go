package loopcsi

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
)

// NodeGetCapabilities lists what was not left out.
func (s *node) NodeGetCapabilities(context.Context, *csi.NodeGetCapabilitiesRequest) (*csi.NodeGetCapabilitiesResponse, error) {
	resp := &csi.NodeGetCapabilitiesResponse{}
	if !s.storage.without[Stage] {
		resp.Capabilities = []*csi.NodeServiceCapability{{Type: &csi.NodeServiceCapability_Rpc{
			Rpc: &csi.NodeServiceCapability_RPC{Type: csi.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME},
		}}}
	}
	return resp, nil
}

// NodeGetInfo says which node this is and how many volumes it can have.
func (s *node) NodeGetInfo(context.Context, *csi.NodeGetInfoRequest) (*csi.NodeGetInfoResponse, error) {
	return &csi.NodeGetInfoResponse{NodeId: s.storage.nodeID, MaxVolumesPerNode: int64(s.storage.options.MaxVolumes), AccessibleTopology: s.storage.topology()}, nil
}

// attach attaches a volume, within the limit.
func (s *storage) attach(ctx context.Context, volumeID string, readonly bool) (blockdev.Device, error) {
	if _, err := s.volume(ctx, volumeID); err != nil {
		return blockdev.Device{}, err
	}
	s.attaching.Lock()
	defer s.attaching.Unlock()
	attached, err := s.driver.Attached(ctx)
	if err != nil {
		return blockdev.Device{}, toStatus(err)
	}
	_, already := attached[volumeID]
	if !already {
		if err := s.checkLimit(attached); err != nil {
			return blockdev.Device{}, err
		}
	}
	if err := s.holders.take(volumeID, s.nodeID); err != nil {
		return blockdev.Device{}, err
	}
	dev, err := s.driver.Attach(ctx, volumeID, blockdev.AttachOptions{ReadOnly: readonly})
	if err != nil && !already {
		err = errors.Join(err, s.holders.release(volumeID))
	}
	if err != nil {
		return blockdev.Device{}, toStatus(err)
	}
	return dev, nil
}

// checkLimit says whether the node can have one more volume.
func (s *storage) checkLimit(attached map[string]blockdev.Device) error {
	if s.options.MaxVolumes == 0 {
		return nil
	}
	have := 0
	for id := range attached {
		node, err := s.holder(id)
		if err != nil {
			return err
		}
		if node == s.nodeID {
			have++
		}
	}
	if have >= s.options.MaxVolumes {
		return status.Errorf(codes.ResourceExhausted, "%d volumes are attached, more cannot be", have)
	}
	return nil
}

// holder is the node that has an attached volume.
func (s *storage) holder(volumeID string) (string, error) {
	node, err := s.holders.of(volumeID)
	return cmp.Or(node, s.nodeID), err
}

// detach detaches a volume that appears nowhere any more. One that another node has is not attached here.
func (s *storage) detach(ctx context.Context, volumeID string) error {
	if node, err := s.holder(volumeID); err != nil || node != s.nodeID {
		return err
	}
	attached, err := s.driver.Attached(ctx)
	if err != nil {
		return toStatus(err)
	}
	dev, ok := attached[volumeID]
	if filepath.IsAbs(volumeID) {
		return nil
	}
	if !ok {
		return s.holders.release(volumeID)
	}
	number, err := device.Number(dev.Path)
	if err != nil {
		return toStatus(err)
	}
	bound, err := fsmount.Bound(dev.Path, number)
	if err != nil {
		return toStatus(err)
	}
	if len(bound) > 0 {
		return status.Errorf(codes.FailedPrecondition, "volume %s is still published at %s", volumeID, bound[0])
	}
	if err := s.driver.Detach(ctx, volumeID); err != nil {
		return toStatus(err)
	}
	return s.holders.release(volumeID)
}

// ensure returns the volume's device. If none is attached, it attaches one as the controller asked for it.
func (s *storage) ensure(ctx context.Context, volumeID string, publishContext map[string]string) (blockdev.Device, error) {
	if _, err := s.volume(ctx, volumeID); err != nil {
		return blockdev.Device{}, err
	}
	attached, err := s.driver.Attached(ctx)
	if err != nil {
		return blockdev.Device{}, toStatus(err)
	}
	if dev, ok := attached[volumeID]; ok {
		return dev, s.holders.take(volumeID, s.nodeID)
	}
	return s.attach(ctx, volumeID, publishContext[readOnlyKey] == "true")
}

// NodeStageVolume has the device there. Nothing is put at the staging path: the device is all there is.
func (s *node) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if s.storage.without[Stage] {
		return nil, status.Error(codes.Unimplemented, "volumes are not staged")
	}
	if err := require("volume_id", req.GetVolumeId(), "staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if err := checkCapabilities(req.GetVolumeCapability()); err != nil {
		return nil, err
	}
	if _, err := s.storage.ensure(ctx, req.GetVolumeId(), req.GetPublishContext()); err != nil {
		return nil, err
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// NodeUnstageVolume detaches the volume if no controller will.
func (s *node) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if s.storage.without[Stage] {
		return nil, status.Error(codes.Unimplemented, "volumes are not staged")
	}
	if err := require("volume_id", req.GetVolumeId(), "staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if s.storage.without[Publish] {
		if err := s.storage.detach(ctx, req.GetVolumeId()); err != nil {
			return nil, err
		}
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume makes the device appear at the target path.
func (s *node) NodePublishVolume(ctx context.Context, req *csi.NodePublishVolumeRequest) (*csi.NodePublishVolumeResponse, error) {
	target := req.GetTargetPath()
	if err := require("volume_id", req.GetVolumeId(), "target_path", target); err != nil {
		return nil, err
	}
	if err := checkCapabilities(req.GetVolumeCapability()); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(target) {
		return nil, status.Errorf(codes.InvalidArgument, "target_path %q is not absolute", target)
	}
	dev, err := s.storage.ensure(ctx, req.GetVolumeId(), req.GetPublishContext())
	if err != nil {
		return nil, err
	}
	if req.GetReadonly() && !dev.ReadOnly && !s.storage.without[ReadOnly] {
		// The mode of the bind mount would not keep anybody from writing to the device.
		if _, err := device.SetReadOnly(dev.Path, true); err != nil {
			return nil, toStatus(err)
		}
	}
	if err := publish(dev.Path, target); err != nil {
		return nil, toStatus(err)
	}
	return &csi.NodePublishVolumeResponse{}, nil
}

func publish(path, target string) error {
	want, err := device.Number(path)
	if err != nil {
		return err
	}
	have, err := device.Number(target)
	switch {
	case err == nil && have == want:
		return nil
	case err == nil:
		return fmt.Errorf("another device is at %s: %w", target, blockdev.ErrExists)
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make target: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("make target: %w", err)
	}
	if err := fsmount.BindDevice(path, target); err != nil {
		return errors.Join(err, os.Remove(target))
	}
	return nil
}

// NodeUnpublishVolume takes the device away from the target path, and detaches the volume if nobody else will.
func (s *node) NodeUnpublishVolume(ctx context.Context, req *csi.NodeUnpublishVolumeRequest) (*csi.NodeUnpublishVolumeResponse, error) {
	if err := require("volume_id", req.GetVolumeId(), "target_path", req.GetTargetPath()); err != nil {
		return nil, err
	}
	if err := unpublish(req.GetTargetPath()); err != nil {
		return nil, toStatus(err)
	}
	if s.storage.without[Publish] && s.storage.without[Stage] {
		if err := s.storage.detach(ctx, req.GetVolumeId()); err != nil {
			return nil, err
		}
	}
	return &csi.NodeUnpublishVolumeResponse{}, nil
}

// unpublish takes away only what publish can have put there.
func unpublish(target string) error {
	if _, err := device.Number(target); err == nil {
		if err := fsmount.Unmount(target); err != nil {
			return err
		}
	}
	info, err := os.Lstat(target)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Size() > 0 {
		return fmt.Errorf("%s is not where a device was published, it is left alone: %w", target, blockdev.ErrInvalid)
	}
	return os.Remove(target)
}
