package snapshotter

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	crilabels "github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"berth.dev/berth/layerdisk"
)

// Labels that containerd sends. All that begin with "containerd.io/snapshot/" may come from the annotations of an
// image's manifest, that is from strangers, except that containerd 2.3 and later set the diff ID themselves, and the
// parent's chain ID for every layer but the lowest. Only labelRef is containerd's own in all versions.
const (
	labelRef         = snapshots.LabelSnapshotRef
	labelDiffID      = snapshots.LabelSnapshotDiffID
	labelParentChain = "containerd.io/snapshot/parent-chain-id"
	labelBlob        = crilabels.TargetLayerDigestLabel
	labelImageRef    = crilabels.TargetRefLabel
	labelManifest    = crilabels.TargetManifestDigestLabel
	labelLayers      = crilabels.TargetImageLayersLabel
)

// Labels of our own. They live outside "containerd.io/snapshot/", are cut from what clients send and from what they
// get, and exist only in the snapshotter's own store.
const (
	privatePrefix = "berth.dev/"
	// labelAdopted holds a record: the content is on a layer disk.
	labelAdopted = privatePrefix + "adopted"
	// labelHeld holds a heldRecord: the layer was made anew, but the disks that it was on stay held.
	labelHeld = privatePrefix + "held"
	// labelApart marks an extraction snapshot that was prepared without its parent and handed out in overlay form.
	labelApart = privatePrefix + "apart"
	// labelRemapped marks a committed snapshot whose files containerd has given to a user namespace by chown.
	labelRemapped = privatePrefix + "remapped"
)

// remapSuffix ends the key of the snapshot in which containerd's client changes the owner of every file of an image,
// for a snapshotter that is configured without the capability "remap-ids" (client/snapshotter_opts_unix.go).
const remapSuffix = "-remap"

// adoptedPrefix begins the names of adopted snapshots. containerd's own begin with a namespace, which has no slash.
const adoptedPrefix = "/layer/"

// record is what is kept of an adopted layer.
type record struct {
	Holder      string          `json:"holder"`
	DiskUUID    string          `json:"disk"`
	LayerNumber int             `json:"layer"`
	ChainID     digest.Digest   `json:"chainID"`
	DiffID      digest.Digest   `json:"diffID"`
	MatchedBy   layerdisk.Match `json:"matchedBy,omitempty"`
	BlobSize    int64           `json:"blobSize,omitempty"`
	// Early is what was asked for, as long as early mounts are out and containerd has not committed the snapshot; nil
	// afterwards.
	Early *LayerRequest `json:"staged,omitempty"`
	// Moved are the locations on other disks that the snapshot was served from when those before them did not serve.
	Moved []location `json:"moved,omitempty"`
}

func (r record) encode() (string, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("encode record of adopted layer: %w", err)
	}
	return string(b), nil
}

// recordOf reads the record from a snapshot's labels; nil if the snapshot is not adopted.
func recordOf(labels map[string]string) (*record, error) {
	text, ok := labels[labelAdopted]
	if !ok {
		return nil, nil //nolint:nilnil // "not adopted" is the usual answer, not an error
	}
	r := new(record)
	if err := json.Unmarshal([]byte(text), r); err != nil {
		return nil, fmt.Errorf("decode record of adopted layer: %w", err)
	}
	return r, nil
}

// publicLabels are the labels without our own: what clients may set and see.
func publicLabels(labels map[string]string) map[string]string {
	public := maps.Clone(labels)
	maps.DeleteFunc(public, func(name, _ string) bool { return strings.HasPrefix(name, privatePrefix) })
	return public
}

// extractionTarget is the chain ID that an extraction Prepare of containerd's unpacker is meant to become. The label
// alone does not make one: a pod's annotation can put it on the snapshot of a sandbox. The key is the unpacker's own.
func extractionTarget(key string, labels map[string]string) (digest.Digest, bool) {
	ref, err := digest.Parse(labels[labelRef])
	if err != nil || !isExtractionKey(key) || !strings.HasSuffix(key, " "+ref.String()) {
		return "", false
	}
	return ref, true
}

// isExtractionKey recognises snapshots.UnpackKeyFormat behind the "namespace/number/" of containerd's metadata store.
func isExtractionKey(key string) bool {
	return strings.HasPrefix(lastSegment(key), snapshots.UnpackKeyPrefix+"-")
}

func lastSegment(key string) string {
	return key[strings.LastIndexByte(key, '/')+1:]
}

// digestOf is the digest in a label, empty if there is none or it is not one.
func digestOf(label string) digest.Digest {
	d, err := digest.Parse(label)
	if err != nil {
		return ""
	}
	return d
}

// above are the digests in a list of layers that come after blob; none if blob is not in it. What is not a digest ends
// the list.
func above(list string, blob digest.Digest) []digest.Digest {
	var found []digest.Digest
	seen := false
	for item := range strings.SplitSeq(list, ",") {
		d := digestOf(item)
		if d == "" {
			break
		}
		if seen {
			found = append(found, d)
		}
		seen = seen || d == blob
	}
	return found
}

// stacked is the chain ID of a layer on top of a chain, or of a lowest layer if the chain is empty.
func stacked(parentChain, diffID digest.Digest) digest.Digest {
	if parentChain == "" {
		return diffID
	}
	return identity.ChainID([]digest.Digest{parentChain, diffID})
}
