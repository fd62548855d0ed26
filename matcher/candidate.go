package matcher

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// StateAvailable is the only state in which a candidate may be chosen. All other names of states are the catalog's;
// they appear in explanations as they are.
const StateAvailable = "Available"

// Candidate is what the matcher has to know about one image snapshot.
type Candidate struct {
	// Name as the user knows it.
	Name string
	// ID is stable and unique.
	ID string
	// Created is when the content was made.
	Created time.Time
	// SizeBytes of its volume, for display only.
	SizeBytes int64
	// State is StateAvailable if it may be used. A source whose image snapshots serve their old content while they are
	// updated says StateAvailable for them.
	State string
	// Expires is when it may no longer be used; the zero time is never.
	Expires time.Time
	// Unreachable says why this node cannot attach it (another zone, another backend); empty if it can.
	Unreachable string
	// Attached reports that the disk is attached to this node.
	Attached bool
	Images   []CandidateImage
	// Layers on the disk. If there are none, only the images are known, and an exact image is taken to have all its
	// layers.
	Layers []Layer
}

// CandidateImage is one image of an image snapshot.
type CandidateImage struct {
	// Reference is normalised.
	Reference string
	Platform  Platform
	// ManifestDigest is that of the manifest for Platform, empty if it is not known.
	ManifestDigest digest.Digest
	// IndexDigest is that of the image index which the manifest was chosen from, empty if there was none.
	IndexDigest digest.Digest
	// SizeBytes is what a registry sends for all layers together, 0 if it is not known.
	SizeBytes int64
}

// Content returns the images and layers of a candidate from the index of its layer disk, which must be valid
// (layerdisk.Parse returns no other). The result always passes [Index.Put].
func Content(ix *layerdisk.Index) ([]CandidateImage, []Layer) {
	layers := make([]Layer, 0, len(ix.Chains))
	compressed := make(map[digest.Digest]int64, len(ix.Chains)) // of whole stacks
	seen := make([]bool, len(ix.Layers))
	for _, c := range ix.Chains {
		on := &ix.Layers[c.Layer]
		l := Layer{LayerName: layerdisk.LayerName{ChainID: c.ChainID, ParentChainID: c.Parent, DiffID: c.DiffID}, StackBound: on.StackBound, UnpackedBytes: min(on.UnpackedBytes, maxLayerBytes)}
		if len(on.Blobs) > 0 {
			l.Blob, l.CompressedBytes = on.Blobs[0].Digest, min(on.Blobs[0].Size, maxLayerBytes)
		}
		layers = append(layers, l)
		// A parent stands before its children.
		compressed[c.ChainID] = min(compressed[c.Parent]+l.CompressedBytes, maxLayerBytes)
		if seen[c.Layer] || on.StackBound {
			continue // the other compressed forms lead to the same layer whatever is below it
		}
		seen[c.Layer] = true
		for _, b := range on.Blobs[min(1, len(on.Blobs)):] {
			l.Blob, l.CompressedBytes = b.Digest, min(b.Size, maxLayerBytes)
			layers = append(layers, l)
		}
	}
	images := make([]CandidateImage, 0, len(ix.Images))
	for i := range ix.Images {
		img := &ix.Images[i]
		ci := CandidateImage{
			Reference:      img.Reference,
			Platform:       Platform{OS: img.Platform.OS, Architecture: img.Platform.Architecture, Variant: img.Platform.Variant},
			ManifestDigest: img.Manifest.Digest,
			SizeBytes:      compressed[img.ChainID],
		}
		if size, ok := manifestBytes(img.RawManifest); ok { // exact where a layer has several compressed forms
			ci.SizeBytes = size
		}
		if img.IndexDescriptor != nil {
			ci.IndexDigest = img.IndexDescriptor.Digest
		}
		images = append(images, ci)
	}
	return images, layers
}

// manifestBytes sums the sizes of the layers in a manifest. It does not believe absurd ones.
func manifestBytes(raw []byte) (int64, bool) {
	var manifest struct {
		Layers []struct {
			Size int64 `json:"size"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(raw, &manifest); err != nil {
		return 0, false
	}
	var sum int64
	for _, l := range manifest.Layers {
		if l.Size < 0 || l.Size > maxLayerBytes-sum {
			return 0, false
		}
		sum += l.Size
	}
	return sum, true
}

// Limits of one candidate: those of a layer disk's index, of which 64 MiB have room for some 450,000 compressed forms.
const (
	maxCandidateImages = layerdisk.MaxImages
	maxCandidateLayers = 1 << 20
)

func (c *Candidate) validate() error {
	if c.ID == "" || c.Name == "" {
		return fmt.Errorf("candidate %q with ID %q needs both a name and an ID", c.Name, c.ID)
	}
	if len(c.Images) > maxCandidateImages {
		return fmt.Errorf("candidate %q has %d images, at most %d are allowed", c.Name, len(c.Images), maxCandidateImages)
	}
	if len(c.Layers) > maxCandidateLayers {
		return fmt.Errorf("candidate %q has %d layers, at most %d are allowed", c.Name, len(c.Layers), maxCandidateLayers)
	}
	for i := range c.Images {
		img := &c.Images[i]
		if img.SizeBytes < 0 || img.SizeBytes > maxLayerBytes {
			return fmt.Errorf("candidate %q: images[%d]: size %d is not within 0..%d", c.Name, i, img.SizeBytes, int64(maxLayerBytes))
		}
		if err := checkDigest("manifest digest", img.ManifestDigest); err != nil {
			return fmt.Errorf("candidate %q: images[%d]: %w", c.Name, i, err)
		}
		if err := checkDigest("index digest", img.IndexDigest); err != nil {
			return fmt.Errorf("candidate %q: images[%d]: %w", c.Name, i, err)
		}
	}
	for i := range c.Layers {
		if err := c.Layers[i].validate(); err != nil {
			return fmt.Errorf("candidate %q: layers[%d]: %w", c.Name, i, err)
		}
	}
	return nil
}
