// Package imagesnapshot is the resource that users create, list, pin and delete: a set of container images, unpacked
// once onto a layer disk and kept as a volume snapshot. The package knows what an image snapshot is, which values are
// legal and which phase may follow which; package lifecycle makes it happen and package store keeps it.
//
// An object that is read from a store belongs to whoever read it; Clone makes another.
package imagesnapshot

import (
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// ImageSnapshot is one image snapshot: what is wanted and what there is.
type ImageSnapshot struct {
	Metadata
	Spec   Spec   `json:"spec"`
	Status Status `json:"status"`
}

// Metadata identifies an image snapshot and says whose it is.
type Metadata struct {
	// Name is unique among all image snapshots and never changes; see CheckName.
	Name string `json:"name"`
	// ID is a UUID that the life cycle gives at creation. It is never used again, so it tells an image snapshot from a
	// later one of the same name.
	ID string `json:"id"`
	// ResourceVersion is the store's and changes with every write.
	ResourceVersion string `json:"resourceVersion,omitempty"`
	// Generation counts the changes of Spec, from 1.
	Generation int64     `json:"generation"`
	Created    time.Time `json:"created"`
	// DeletionRequested is zero until somebody asked to delete it.
	DeletionRequested time.Time `json:"deletionRequested,omitzero"`
	// Owner is the tenant. Quotas count per owner; the empty owner is a tenant like any other.
	Owner  string `json:"owner,omitempty"`
	Origin Origin `json:"origin"`
	// ClientToken makes a repeated create return the object of the first one. Each owner has tokens of their own.
	ClientToken string `json:"clientToken,omitempty"`
	// Labels are tags to list by. Annotations are anything else that a front end wants to get back.
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Origin says who wanted an image snapshot.
type Origin string

// Origins.
const (
	// OriginManual: a user created it.
	OriginManual Origin = "Manual"
	// OriginAutomatic: it was created because nothing matched a pull. It is deleted when unused (E-30).
	OriginAutomatic Origin = "Automatic"
)

// Spec is what is wanted.
type Spec struct {
	// Images are references; Complete normalises them (nginx becomes docker.io/library/nginx:latest).
	Images []string `json:"images"`
	// Platforms of each image, such as linux/arm64. Without any, it is the platform of the building machine.
	Platforms []string `json:"platforms,omitempty"`
	Size      Size     `json:"size"`
	// RetentionDays after which it expires; with 0 it never does.
	RetentionDays int        `json:"retentionDays"`
	Registries    []Registry `json:"registries,omitempty"`
	Build         Build      `json:"build"`
	// ReuseLayers starts the disk from the volume snapshot that shares most with it (E-22).
	ReuseLayers bool `json:"reuseLayers,omitempty"`
	// Flash makes it usable before the regular volume snapshot is complete (E-23).
	Flash       bool        `json:"flash,omitempty"`
	Elimination Elimination `json:"elimination,omitempty"`
	Copies      Copies      `json:"copies"`
}

// Size of the volume.
type Size struct {
	// GiB of the volume. It is 0 only together with AsNeeded.
	GiB int `json:"gib,omitempty"`
	// AsNeeded lets the build choose: three times the compressed layers, at least the smallest legal size. If that
	// turns out too small, it takes what the builder says is needed.
	AsNeeded bool `json:"asNeeded,omitempty"`
}

// Registry says how to speak to one registry.
type Registry struct {
	// Server is host[:port] as in references, without a scheme.
	Server string `json:"server"`
	// Secret is the name of credentials that the build environment knows, never the credentials.
	Secret             string `json:"secret,omitempty"`
	PlainHTTP          bool   `json:"plainHTTP,omitempty"`
	InsecureSkipVerify bool   `json:"insecureSkipVerify,omitempty"`
}

// Build says how the disk is built.
type Build struct {
	// TimeoutMinutes after which a build is given up.
	TimeoutMinutes int `json:"timeoutMinutes"`
	// DNSServers are addresses to resolve registries with instead of the machine's.
	DNSServers []string `json:"dnsServers,omitempty"`
	// Parameters are the backend's own (an EIP, a subnet, a security group). They are stored, handed to the backend and
	// returned. Those that the backend does not know have no effect, and an event says so.
	Parameters map[string]string `json:"parameters,omitempty"`
}

// Elimination says what may happen to an image snapshot when its owner's quota is used up.
type Elimination string

// Elimination strategies.
const (
	// EliminationNone: it is never eliminated.
	EliminationNone Elimination = ""
	// EliminationLRU: the least recently matched one with this strategy makes room for a new one.
	EliminationLRU Elimination = "LRU"
)

// Copies is how many volume snapshots are made of the disk, for storage that limits how often one can be read at once.
type Copies struct {
	Standard int `json:"standard"`
	// Flash copies exist only with Spec.Flash, until the standard ones are there.
	Flash int `json:"flash"`
}

// Status is what there is.
type Status struct {
	Phase Phase `json:"phase"`
	// Reason is for machines, Message for people. Neither ever holds a secret.
	Reason  Reason `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// Progress of the current or last build in percent.
	Progress int `json:"progress"`
	// ObservedGeneration is the Generation that Images and VolumeSnapshots were built from.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	Content

	// Builds counts the builds so far.
	Builds int `json:"builds,omitempty"`
	// Started is the beginning of the current or last build.
	Started time.Time `json:"started,omitzero"`
	// Expires is when it becomes unavailable, or when it is deleted if it is Failed or Unavailable. Zero is never.
	Expires     time.Time `json:"expires,omitzero"`
	LastUpdated time.Time `json:"lastUpdated,omitzero"`
	LastMatched time.Time `json:"lastMatched,omitzero"`
	MatchCount  int64     `json:"matchCount,omitempty"`
	Events      []Event   `json:"events,omitempty"`

	// Work is the journal of the life cycle: written before anything is done outside the store.
	Work *Work `json:"work,omitempty"`
}

// Content is one layer disk in the storage, and how it came to be.
type Content struct {
	// Driver of the storage that the disk is in. It is empty if the disk was made before there was a choice of drivers.
	Driver string `json:"driver,omitempty"`
	// Images that are on the disk, one entry for each platform.
	Images []Image `json:"images,omitempty"`
	// Identity of the layer disk; its index is kept beside the object, under Identity.IndexDigest.
	Identity  layerdisk.Identity `json:"identity,omitzero"`
	DiskBytes int64              `json:"diskBytes,omitempty"`
	// VolumeBytes is the size that the volume was asked for with; the storage may have rounded it up.
	VolumeBytes int64 `json:"volumeBytes,omitempty"`
	Layers      int   `json:"layers,omitempty"`
	// FetchedBytes and ReusedBytes say what the build cost: compressed bytes from registries, and unpacked bytes that
	// it took over from the disk of another image snapshot, BaseName.
	FetchedBytes int64  `json:"fetchedBytes,omitempty"`
	ReusedBytes  int64  `json:"reusedBytes,omitempty"`
	BaseName     string `json:"baseName,omitempty"`
	// VolumeSnapshots hold the disk, all of them ready. VolumeSnapshotID and VolumeSnapshotName repeat the first one.
	// Their JSON keys are shorter because stores have them already.
	VolumeSnapshots    []VolumeSnapshot `json:"snapshots,omitempty"`
	VolumeSnapshotID   string           `json:"snapshotID,omitempty"`
	VolumeSnapshotName string           `json:"snapshotName,omitempty"`
	// VolumeID, if not empty, is the volume that was built itself: nodes attach it read-only, and never delete it,
	// until there is a volume snapshot (E-23).
	VolumeID string `json:"volumeID,omitempty"`
	// Ready is when it became usable.
	Ready time.Time `json:"ready,omitzero"`
}

// Image is one image on the disk.
type Image struct {
	// Reference is normalised.
	Reference string `json:"reference"`
	Platform  string `json:"platform"`
	// Digest of the manifest that is on the disk, whatever the tag means by now (C-53).
	Digest digest.Digest `json:"digest"`
	// SizeBytes of its unpacked layers.
	SizeBytes int64 `json:"sizeBytes"`
	Layers    int   `json:"layers"`
}

// VolumeSnapshotKind distinguishes temporary volume snapshots from those that stay.
type VolumeSnapshotKind string

// Kinds of volume snapshots.
const (
	VolumeSnapshotStandard VolumeSnapshotKind = "Standard"
	// VolumeSnapshotFlash serves until the standard one is ready.
	VolumeSnapshotFlash VolumeSnapshotKind = "Flash"
)

// VolumeSnapshot is one volume snapshot in the storage.
type VolumeSnapshot struct {
	ID        string             `json:"id"`
	Name      string             `json:"name"`
	Kind      VolumeSnapshotKind `json:"kind"`
	SizeBytes int64              `json:"sizeBytes"`
	Ready     bool               `json:"ready"`
}

// Usable says whether a node may use it at the time now: it is Available and not expired (E-26, C-3). During an update
// the old content serves only if oldDuringUpdate says so.
func (s *ImageSnapshot) Usable(now time.Time, oldDuringUpdate bool) bool {
	if s.Status.VolumeSnapshotID == "" && s.Status.VolumeID == "" || !s.Status.Expires.IsZero() && !now.Before(s.Status.Expires) {
		return false
	}
	switch s.Status.Phase { //nolint:exhaustive // no other phase is usable
	case PhaseAvailable:
		return true
	case PhaseUpdating, PhaseUpdateFailed:
		return oldDuringUpdate
	}
	return false
}
