package main

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

// releaseTimeout bounds the detaching of a disk that was attached for a recording.
const releaseTimeout = time.Minute

// diskSource asks berthd which device has the disk to record from.
type diskSource struct {
	control   controlv1.ControlServiceClient
	snapshots imageSnapshots
}

// foundDisk is an attached disk.
type foundDisk struct {
	name, device string
	// snapshot is the name of the image snapshot that has the same content, empty if there is none.
	snapshot string
}

// find returns the disk of the named image snapshot; if necessary, find attaches it until release is called. Without a
// name, find returns the attached disk that has the image.
func (d diskSource) find(ctx context.Context, snapshot, image string) (_ foundDisk, release func(context.Context) error, err error) {
	nothing := func(context.Context) error { return nil }
	attached, err := d.control.ListDisks(ctx, &controlv1.ListDisksRequest{})
	if err != nil {
		return foundDisk{}, nil, err
	}
	if snapshot == "" {
		found, err := d.attachedWith(ctx, attached.GetDisks(), image)
		return found, nothing, err
	}
	resp, err := d.snapshots.GetImageSnapshot(ctx, &imagesnapshotv1.GetImageSnapshotRequest{NameOrId: snapshot})
	if err != nil {
		return foundDisk{}, nil, err
	}
	s := resp.GetImageSnapshot()
	if s.GetStatus().GetIndexDigest() == "" {
		return foundDisk{}, nil, fmt.Errorf("image snapshot %s is %s and has no disk yet", s.GetName(), phaseWord(s.GetStatus().GetPhase()))
	}
	for _, disk := range attached.GetDisks() {
		if disk.GetIndexDigest() == s.GetStatus().GetIndexDigest() && disk.GetDevice() != "" {
			return foundDisk{disk.GetName(), disk.GetDevice(), s.GetName()}, nothing, nil
		}
	}
	return d.attach(ctx, s)
}

// attach attaches the image snapshot's disk.
func (d diskSource) attach(ctx context.Context, s *imagesnapshotv1.ImageSnapshot) (foundDisk, func(context.Context) error, error) {
	name := "record-" + uuid.NewString()[:8]
	resp, err := d.control.AttachDisk(ctx, &controlv1.AttachDiskRequest{
		Name: name, Driver: s.GetStatus().GetDriver(), VolumeSnapshotId: s.GetStatus().GetVolumeSnapshotId(), ExpectIndexDigest: s.GetStatus().GetIndexDigest(), Keep: true,
	})
	if err != nil {
		return foundDisk{}, nil, fmt.Errorf("attach the disk of image snapshot %s: %w", s.GetName(), err)
	}
	release := func(ctx context.Context) error {
		_, err := d.control.DetachDisk(ctx, &controlv1.DetachDiskRequest{Name: name, Drain: true})
		if isNotFound(err) {
			return nil
		}
		return err
	}
	return foundDisk{name, resp.GetDisk().GetDevice(), s.GetName()}, release, nil
}

// attachedWith finds an attached disk that has the image. It prefers the disk of an image snapshot.
func (d diskSource) attachedWith(ctx context.Context, disks []*controlv1.Disk, image string) (foundDisk, error) {
	resp, err := d.control.FindImage(ctx, &controlv1.FindImageRequest{Reference: image})
	if err != nil && !isNotFound(err) {
		return foundDisk{}, err
	}
	for _, disk := range disks {
		if err == nil && disk.GetName() == resp.GetDisk() && disk.GetDevice() != "" {
			snapshot, err := d.snapshotOf(ctx, disk.GetIndexDigest())
			return foundDisk{disk.GetName(), disk.GetDevice(), snapshot}, err
		}
	}
	return foundDisk{}, fmt.Errorf("no attached disk has image %s: name one with --image-snapshot or --disk, or attach one (berth attach)", image)
}

// snapshotOf returns the name of the image snapshot that has that content.
func (d diskSource) snapshotOf(ctx context.Context, index string) (string, error) {
	all, err := listImageSnapshots(ctx, d.snapshots, nil)
	if status.Code(err) == codes.Unimplemented {
		return "", nil // this berthd keeps no image snapshots
	}
	if err != nil {
		return "", err
	}
	for _, s := range all {
		if s.GetStatus().GetIndexDigest() == index {
			return s.GetName(), nil
		}
	}
	return "", nil
}
