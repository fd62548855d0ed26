package nodeservice

import (
	"maps"
	"slices"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"berth.dev/berth/control/imagesnapshotservice"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/ondemand"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/readahead"
)

func choiceMessage(c *ondemand.Record) *controlv1.DiskChoice {
	m := &controlv1.DiskChoice{
		Time: timestamppb.New(c.Time), ChainId: c.ChainID.String(), Reason: c.Decision.Reason, Waited: durationpb.New(c.Waited),
	}
	for _, d := range c.Disks {
		m.Disks = append(m.Disks, &controlv1.ChosenDisk{ImageSnapshot: d.Name, Disk: d.Disk, Result: chosenDiskResultMessage(d.Result), Error: errorText(d.Err)})
	}
	for _, x := range c.Decision.Candidates {
		m.Candidates = append(m.Candidates, &controlv1.ChoiceCandidate{Name: x.Name, Id: x.ID, Verdict: imagesnapshotservice.Verdict(x.Verdict), Why: x.Why})
	}
	return m
}

func diskMessages(list []Disk) []*controlv1.Disk {
	var ms []*controlv1.Disk
	for _, d := range list {
		ms = append(ms, diskMessage(d))
	}
	return ms
}

func diskMessage(d Disk) *controlv1.Disk {
	m := &controlv1.Disk{
		Name: d.Name, Driver: d.Driver, VolumeId: d.VolumeID, Uuid: d.UUID, IndexDigest: d.IndexDigest.String(),
		State: diskStateMessage(d.State), Serving: d.Serving, Device: d.Device, MountPoint: d.MountPoint, SizeBytes: d.SizeBytes,
		Layers: int64(d.Layers), LayersInUse: int64(d.LayersInUse), Holders: int64(d.Holders),
		LastError: errorText(d.LastError), Keep: d.Keep, Configured: d.Configured, VolumeSnapshotId: d.VolumeSnapshotID,
		ImportError: errorText(d.ImportError),
	}
	for _, img := range d.Images {
		m.Imports = append(m.Imports, &controlv1.ImportedImage{
			Reference: img.Reference, Namespace: img.Namespace, Result: importResultMessage(img.Result), Reason: img.Reason,
		})
	}
	if !d.Since.IsZero() {
		m.Since = timestamppb.New(d.Since)
	}
	return m
}

func readAheadMessages(list []readahead.Run) []*controlv1.ReadAhead {
	var ms []*controlv1.ReadAhead
	for i := range list {
		h := &list[i]
		ms = append(ms, &controlv1.ReadAhead{
			Image: h.Image, Disk: h.Disk, DiskUuid: h.DiskUUID, HasAccessList: h.Listed, State: readAheadStateMessage(h.Result), Reason: h.Reason,
			TotalBytes: h.TotalBytes, Bytes: h.Bytes, Reads: h.Pieces, Skipped: h.Skipped,
			Wanted: timestamppb.New(h.Wanted), Took: durationpb.New(h.Took), BytesPerSecond: h.Rate(),
		})
	}
	return ms
}

func eventMessage(e events.Event) *controlv1.Event {
	kinds := map[events.Kind]controlv1.EventKind{
		events.Hit: controlv1.EventKind_EVENT_KIND_HIT, events.Miss: controlv1.EventKind_EVENT_KIND_MISS,
		events.Failure:      controlv1.EventKind_EVENT_KIND_ERROR,
		events.DiskAttached: controlv1.EventKind_EVENT_KIND_DISK_ATTACHED, events.DiskDetached: controlv1.EventKind_EVENT_KIND_DISK_DETACHED,
		events.DiskFailed:    controlv1.EventKind_EVENT_KIND_DISK_FAILED,
		events.ImageImported: controlv1.EventKind_EVENT_KIND_IMAGE_IMPORTED, events.ImageWithdrawn: controlv1.EventKind_EVENT_KIND_IMAGE_WITHDRAWN,
		events.ImageNotImported: controlv1.EventKind_EVENT_KIND_IMAGE_NOT_IMPORTED,
	}
	reason := e.Reason
	if e.Detail != "" {
		reason = e.Detail
	}
	return &controlv1.Event{
		Time: timestamppb.New(e.Time), Kind: kinds[e.Kind], ChainId: e.ChainID.String(), ImageRef: e.ImageRef,
		Disk: e.Disk, ImageSnapshot: e.ImageSnapshot, MatchedBy: layerMatchMessage(e.MatchedBy), Reason: reason, Bytes: e.Bytes,
		MissReason: missReasonMessage(e.Reason),
	}
}

// hitMessages are in the order of their words.
func hitMessages(hits map[layerdisk.Match]uint64) []*controlv1.HitCount {
	var ms []*controlv1.HitCount
	for _, by := range slices.Sorted(maps.Keys(hits)) {
		ms = append(ms, &controlv1.HitCount{MatchedBy: layerMatchMessage(by), Count: hits[by]})
	}
	return ms
}

// missMessages are in the order of their words. Reasons that the API has no word for count together.
func missMessages(misses map[string]uint64) []*controlv1.MissCount {
	counts := make(map[controlv1.MissReason]*controlv1.MissCount)
	var ms []*controlv1.MissCount
	for _, reason := range slices.Sorted(maps.Keys(misses)) {
		r := missReasonMessage(reason)
		if counts[r] == nil {
			counts[r] = &controlv1.MissCount{Reason: r}
			ms = append(ms, counts[r])
		}
		counts[r].Count += misses[reason]
	}
	return ms
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
