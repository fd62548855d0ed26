package csi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
)

// steps attach one volume, and detach it. A step that the driver does not support does nothing.
type steps struct {
	a             *attacher
	p             *plugin
	volumeID      string
	volumeContext map[string]string
	readonly      bool
}

// publish attaches the volume to the node, as the controller sees it.
func (s steps) publish(ctx context.Context) (publishContext map[string]string, err error) {
	if !s.p.publish {
		return nil, nil
	}
	secrets, err := readSecrets(s.a.c.config.Secrets.ControllerPublish)
	if err != nil {
		return nil, err
	}
	resp, err := call(ctx, s.a.c.controller, attaching, "ControllerPublishVolume", csi.NewControllerClient(s.a.c.controller.conn).ControllerPublishVolume,
		&csi.ControllerPublishVolumeRequest{
			VolumeId: s.volumeID, NodeId: s.p.nodeID, VolumeCapability: capability(),
			// Drivers that cannot may refuse it.
			Readonly: s.readonly && s.p.publishReadOnly, Secrets: secrets, VolumeContext: s.volumeContext,
		})
	return resp.GetPublishContext(), err
}

func (s steps) stage(ctx context.Context, publishContext map[string]string) error {
	if !s.p.stage {
		return nil
	}
	secrets, err := readSecrets(s.a.c.config.Secrets.NodeStage)
	if err != nil {
		return err
	}
	path := s.a.stagingPath(s.volumeID)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make staging directory: %w", err)
	}
	_, err = call(ctx, s.a.c.node, attaching, "NodeStageVolume", csi.NewNodeClient(s.a.c.node.conn).NodeStageVolume,
		&csi.NodeStageVolumeRequest{
			VolumeId: s.volumeID, PublishContext: publishContext, StagingTargetPath: path, VolumeCapability: capability(),
			Secrets: secrets, VolumeContext: s.volumeContext,
		})
	return err
}

// publishHere makes the device appear.
func (s steps) publishHere(ctx context.Context, publishContext map[string]string) error {
	secrets, err := readSecrets(s.a.c.config.Secrets.NodePublish)
	if err != nil {
		return err
	}
	target, staging := s.a.targetPath(s.volumeID), ""
	if s.p.stage {
		staging = s.a.stagingPath(s.volumeID)
	}
	// The directory is ours to make, the file in it the driver's.
	if err := os.Mkdir(filepath.Dir(target), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make directory to publish in: %w", err)
	}
	_, err = call(ctx, s.a.c.node, attaching, "NodePublishVolume", csi.NewNodeClient(s.a.c.node.conn).NodePublishVolume,
		&csi.NodePublishVolumeRequest{
			VolumeId: s.volumeID, PublishContext: publishContext, StagingTargetPath: staging, TargetPath: target,
			VolumeCapability: capability(), Readonly: s.readonly, Secrets: secrets, VolumeContext: s.volumeContext,
		})
	return err
}

func (s steps) unpublishHere(ctx context.Context) error {
	target := s.a.targetPath(s.volumeID)
	if _, err := os.Lstat(filepath.Dir(target)); errors.Is(err, os.ErrNotExist) {
		return nil // never begun
	}
	_, err := call(ctx, s.a.c.node, attaching, "NodeUnpublishVolume", csi.NewNodeClient(s.a.c.node.conn).NodeUnpublishVolume,
		&csi.NodeUnpublishVolumeRequest{VolumeId: s.volumeID, TargetPath: target})
	if err != nil && !errors.Is(err, blockdev.ErrNotFound) {
		return err
	}
	if _, err := device.Number(target); err == nil {
		return fmt.Errorf("NodeUnpublishVolume: the device is still at %s: %w", target, blockdev.ErrFailed)
	}
	// What a reboot leaves of a bind mount, and a driver that is content with it being gone: an empty file.
	if info, err := os.Lstat(target); err == nil && info.Mode().IsRegular() && info.Size() == 0 {
		if err := removeDir(target); err != nil {
			return err
		}
	}
	if err := removeDir(filepath.Dir(target)); err != nil {
		return fmt.Errorf("remove directory that was published in: %w", err)
	}
	return nil
}

func (s steps) unstage(ctx context.Context) error {
	path := s.a.stagingPath(s.volumeID)
	if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) || !s.p.stage {
		return nil // never begun
	}
	_, err := call(ctx, s.a.c.node, attaching, "NodeUnstageVolume", csi.NewNodeClient(s.a.c.node.conn).NodeUnstageVolume,
		&csi.NodeUnstageVolumeRequest{VolumeId: s.volumeID, StagingTargetPath: path})
	if err != nil && !errors.Is(err, blockdev.ErrNotFound) {
		return err
	}
	if err := removeDir(path); err != nil {
		return fmt.Errorf("remove staging directory: %w", err)
	}
	return nil
}

func (s steps) unpublish(ctx context.Context) error {
	if !s.p.publish {
		return nil
	}
	secrets, err := readSecrets(s.a.c.config.Secrets.ControllerPublish)
	if err != nil {
		return err
	}
	_, err = call(ctx, s.a.c.controller, attaching, "ControllerUnpublishVolume", csi.NewControllerClient(s.a.c.controller.conn).ControllerUnpublishVolume,
		&csi.ControllerUnpublishVolumeRequest{VolumeId: s.volumeID, NodeId: s.p.nodeID, Secrets: secrets})
	return err
}
