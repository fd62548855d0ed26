package imagesnapshotservice

import (
	"maps"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

func filterOf(m *imagesnapshotv1.ImageSnapshotFilter) Filter {
	f := Filter{NameOrID: m.GetNameOrId(), Labels: m.GetLabels()}
	if m != nil {
		f.Owner = m.Owner
	}
	return f
}

func preconditionsOf(m *imagesnapshotv1.Preconditions) lifecycle.Preconditions {
	return lifecycle.Preconditions{ID: m.GetId(), ResourceVersion: m.GetResourceVersion()}
}

// mapOf returns nil only for a map that is absent.
func mapOf(m *imagesnapshotv1.StringMap) map[string]string {
	if m == nil {
		return nil
	}
	entries := maps.Clone(m.GetEntries())
	if entries == nil {
		entries = map[string]string{}
	}
	return entries
}

// specOf takes a spec as it is. The resource checks all of it, so that a user hears of everything that is wrong at
// once.
func specOf(m *imagesnapshotv1.ImageSnapshotSpec) imagesnapshot.Spec {
	sp := imagesnapshot.Spec{
		Images: m.GetImages(), Platforms: m.GetPlatforms(),
		Size:          imagesnapshot.Size{GiB: int(m.GetSizeGib()), AsNeeded: m.GetSizeAsNeeded()},
		RetentionDays: int(m.GetRetentionDays()),
		Build: imagesnapshot.Build{
			TimeoutMinutes: int(m.GetBuild().GetTimeoutMinutes()), DNSServers: m.GetBuild().GetDnsServers(),
			Parameters: m.GetBuild().GetParameters(),
		},
		ReuseLayers: m.GetReuseLayers(), Flash: m.GetFlash(),
		Copies: imagesnapshot.Copies{Standard: int(m.GetStandardCopies()), Flash: int(m.GetFlashCopies())},
	}
	sp.Registries = registriesOf(m.GetRegistries())
	switch m.GetElimination() {
	case imagesnapshotv1.EliminationStrategy_ELIMINATION_STRATEGY_UNSPECIFIED:
	case imagesnapshotv1.EliminationStrategy_ELIMINATION_STRATEGY_LRU:
		sp.Elimination = imagesnapshot.EliminationLRU
	default:
		sp.Elimination = imagesnapshot.Elimination(m.GetElimination().String()) // a number, which is refused
	}
	return sp
}

func registriesOf(list []*imagesnapshotv1.RegistryAccess) []imagesnapshot.Registry {
	var registries []imagesnapshot.Registry
	for _, r := range list {
		registries = append(registries, imagesnapshot.Registry{
			Server: r.GetServer(), Secret: r.GetSecret(), PlainHTTP: r.GetPlainHttp(), InsecureSkipVerify: r.GetInsecureSkipVerify(),
		})
	}
	return registries
}

// imageSnapshotMessage shares the maps and lists of o, which is the caller's.
func imageSnapshotMessage(o *imagesnapshot.ImageSnapshot, events bool) *imagesnapshotv1.ImageSnapshot {
	m := &imagesnapshotv1.ImageSnapshot{
		Name: o.Name, Id: o.ID, ResourceVersion: o.ResourceVersion, Generation: o.Generation,
		Created: timestamp(o.Created), DeletionRequested: timestamp(o.DeletionRequested), Owner: o.Owner, ClientToken: o.ClientToken,
		Labels: o.Labels, Annotations: o.Annotations, Spec: specMessage(&o.Spec), Status: statusMessage(&o.Status),
	}
	switch o.Origin {
	case imagesnapshot.OriginManual:
		m.Origin = imagesnapshotv1.ImageSnapshotOrigin_IMAGE_SNAPSHOT_ORIGIN_MANUAL
	case imagesnapshot.OriginAutomatic:
		m.Origin = imagesnapshotv1.ImageSnapshotOrigin_IMAGE_SNAPSHOT_ORIGIN_AUTOMATIC
	}
	if events {
		for _, e := range o.Status.Events {
			m.Status.Events = append(m.Status.Events, eventMessage(Event{o.Name, o.ID, e}))
		}
	}
	return m
}

func specMessage(sp *imagesnapshot.Spec) *imagesnapshotv1.ImageSnapshotSpec {
	m := &imagesnapshotv1.ImageSnapshotSpec{
		Images: sp.Images, Platforms: sp.Platforms, SizeGib: int32(sp.Size.GiB), SizeAsNeeded: sp.Size.AsNeeded,
		RetentionDays: int32(sp.RetentionDays),
		Build: &imagesnapshotv1.BuildSpec{
			TimeoutMinutes: int32(sp.Build.TimeoutMinutes), DnsServers: sp.Build.DNSServers, Parameters: sp.Build.Parameters,
		},
		ReuseLayers: sp.ReuseLayers, Flash: sp.Flash,
		StandardCopies: int32(sp.Copies.Standard), FlashCopies: int32(sp.Copies.Flash),
	}
	for _, r := range sp.Registries {
		m.Registries = append(m.Registries, &imagesnapshotv1.RegistryAccess{
			Server: r.Server, Secret: r.Secret, PlainHttp: r.PlainHTTP, InsecureSkipVerify: r.InsecureSkipVerify,
		})
	}
	if sp.Elimination == imagesnapshot.EliminationLRU {
		m.Elimination = imagesnapshotv1.EliminationStrategy_ELIMINATION_STRATEGY_LRU
	}
	return m
}

func statusMessage(st *imagesnapshot.Status) *imagesnapshotv1.ImageSnapshotStatus {
	m := &imagesnapshotv1.ImageSnapshotStatus{
		Phase: phaseMessage(st.Phase), Reason: string(st.Reason), Message: st.Message, Progress: int32(st.Progress),
		ObservedGeneration: st.ObservedGeneration, Driver: st.Driver,
		VolumeSnapshotId: st.VolumeSnapshotID, VolumeSnapshotName: st.VolumeSnapshotName, IndexDigest: st.Identity.IndexDigest.String(),
		DiskBytes: st.DiskBytes, Layers: int32(st.Layers), FetchedBytes: st.FetchedBytes, ReusedBytes: st.ReusedBytes, BaseName: st.BaseName,
		Builds: int32(st.Builds), Started: timestamp(st.Started), Ready: timestamp(st.Ready), Expires: timestamp(st.Expires),
		VolumeId: st.VolumeID, LastUpdated: timestamp(st.LastUpdated), LastMatched: timestamp(st.LastMatched), MatchCount: st.MatchCount,
	}
	for _, img := range st.Images {
		m.Images = append(m.Images, &imagesnapshotv1.SnapshottedImage{
			Reference: img.Reference, Platform: img.Platform, Digest: img.Digest.String(), SizeBytes: img.SizeBytes, Layers: int32(img.Layers),
		})
	}
	for _, v := range st.VolumeSnapshots {
		m.VolumeSnapshots = append(m.VolumeSnapshots, &imagesnapshotv1.VolumeSnapshot{
			Id: v.ID, Name: v.Name, Flash: v.Kind == imagesnapshot.VolumeSnapshotFlash, SizeBytes: v.SizeBytes, Ready: v.Ready,
		})
	}
	return m
}

func phaseMessage(p imagesnapshot.Phase) imagesnapshotv1.ImageSnapshotPhase {
	switch p {
	case imagesnapshot.PhasePending:
		return imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_PENDING
	case imagesnapshot.PhaseCreating:
		return imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_CREATING
	case imagesnapshot.PhaseAvailable:
		return imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_AVAILABLE
	case imagesnapshot.PhaseUpdating:
		return imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_UPDATING
	case imagesnapshot.PhaseUpdateFailed:
		return imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_UPDATE_FAILED
	case imagesnapshot.PhaseFailed:
		return imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_FAILED
	case imagesnapshot.PhaseUnavailable:
		return imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_UNAVAILABLE
	case imagesnapshot.PhaseDeleting:
		return imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_DELETING
	}
	return imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_UNSPECIFIED
}

func eventMessage(e Event) *imagesnapshotv1.ImageSnapshotEvent {
	kinds := map[imagesnapshot.EventType]imagesnapshotv1.ImageSnapshotEventType{
		imagesnapshot.EventNormal:  imagesnapshotv1.ImageSnapshotEventType_IMAGE_SNAPSHOT_EVENT_TYPE_NORMAL,
		imagesnapshot.EventWarning: imagesnapshotv1.ImageSnapshotEventType_IMAGE_SNAPSHOT_EVENT_TYPE_WARNING,
	}
	return &imagesnapshotv1.ImageSnapshotEvent{
		ImageSnapshotName: e.Name, ImageSnapshotId: e.ID, Type: kinds[e.Type], Reason: string(e.Reason), Message: e.Message,
		Count: e.Count, First: timestamp(e.First), Last: timestamp(e.Last),
	}
}

// timestamp is nil for the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
