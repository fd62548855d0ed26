package layerdisk

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"unicode/utf8"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// checkImages checks the images against the layers and the chains, which are sound already.
func checkImages(ix *Index, chains map[digest.Digest]Chain) error {
	blobs := make(map[digest.Digest]digest.Digest)
	for _, l := range ix.Layers {
		for _, b := range l.Blobs {
			blobs[b.Digest] = l.DiffID
		}
	}
	type key struct{ reference, platform string }
	seen := make(map[key]struct{}, len(ix.Images))
	for i := range ix.Images {
		img := &ix.Images[i]
		if err := checkImage(img, chains, blobs); err != nil {
			return fmt.Errorf("images[%d]: %w", i, err)
		}
		k := key{img.Reference, platforms.FormatAll(img.Platform)}
		if _, ok := seen[k]; ok {
			return fmt.Errorf("images[%d]: %s for %s is there twice", i, k.reference, k.platform)
		}
		seen[k] = struct{}{}
	}
	return nil
}

func checkImage(img *Image, chains map[digest.Digest]Chain, blobs map[digest.Digest]digest.Digest) error {
	if err := checkReference(img.Reference); err != nil {
		return err
	}
	if err := checkPlatform(img.Platform); err != nil {
		return err
	}
	if (img.IndexDescriptor == nil) != (len(img.RawIndex) == 0) {
		return errors.New("index and rawIndex must be there together or not at all")
	}
	if img.IndexDescriptor != nil {
		if err := checkRaw("index", *img.IndexDescriptor, img.RawIndex); err != nil {
			return err
		}
	}
	if err := checkRaw("manifest", img.Manifest, img.RawManifest); err != nil {
		return err
	}
	if err := checkRaw("config", img.Config, img.RawConfig); err != nil {
		return err
	}
	diffIDs, err := imageDiffIDs(img)
	if err != nil {
		return err
	}
	if want := identity.ChainID(diffIDs); img.ChainID != want {
		return fmt.Errorf("chain ID is %.160q, the config's diff IDs give %q", img.ChainID, want)
	}
	if img.ChainID != "" {
		// The parent of a sound chain is there as well, so the top one stands for the whole stack.
		if _, ok := chains[img.ChainID]; !ok {
			return fmt.Errorf("its chain %s is not among the chains", img.ChainID)
		}
	}
	return checkImageManifest(img, diffIDs, blobs)
}

func checkReference(s string) error {
	if len(s) > maxReferenceBytes {
		return fmt.Errorf("reference has %d bytes, at most %d are allowed", len(s), maxReferenceBytes)
	}
	ref, err := reference.ParseNormalizedNamed(s)
	if err != nil {
		return fmt.Errorf("reference %q: %w", s, err)
	}
	if ref.String() != s {
		return fmt.Errorf("reference %q is not normalised, want %q", s, ref)
	}
	if reference.IsNameOnly(ref) {
		return fmt.Errorf("reference %q has neither tag nor digest", s)
	}
	return nil
}

func checkPlatform(p ocispec.Platform) error {
	if p.OS == "" || p.Architecture == "" {
		return errors.New("platform lacks operating system or architecture")
	}
	if err := checkPlatformNames(p); err != nil {
		return err
	}
	want := platforms.Normalize(p)
	if p.OS != want.OS || p.Architecture != want.Architecture || p.Variant != want.Variant ||
		p.OSVersion != want.OSVersion || !slices.Equal(p.OSFeatures, want.OSFeatures) {
		return fmt.Errorf("platform %s is not normalised, want %s", platforms.FormatAll(p), platforms.FormatAll(want))
	}
	return nil
}

func checkPlatformNames(p ocispec.Platform) error {
	if len(p.OSFeatures) > maxPlatformStrings {
		return fmt.Errorf("platform has %d os.features, at most %d are allowed", len(p.OSFeatures), maxPlatformStrings)
	}
	for _, s := range append([]string{p.OS, p.Architecture, p.OSVersion, p.Variant}, p.OSFeatures...) {
		if err := checkName("platform", s); err != nil {
			return err
		}
	}
	return nil
}

// checkRaw checks a descriptor and that it stands for the bytes.
func checkRaw(what string, d ocispec.Descriptor, raw []byte) error {
	if len(raw) > MaxRawBytes {
		return fmt.Errorf("%s: %d raw bytes, at most %d are allowed", what, len(raw), MaxRawBytes)
	}
	if err := checkBlob(d.Digest, d.MediaType, d.Size); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := checkDescriptorExtras(d); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if d.Size != int64(len(raw)) {
		return fmt.Errorf("%s: its descriptor says %d bytes, the raw bytes are %d", what, d.Size, len(raw))
	}
	if got := d.Digest.Algorithm().FromBytes(raw); got != d.Digest {
		return fmt.Errorf("%s: its descriptor says %s, the raw bytes give %s", what, d.Digest, got)
	}
	return nil
}

func checkDescriptorExtras(d ocispec.Descriptor) error {
	if err := checkName("artifact type", d.ArtifactType); err != nil {
		return err
	}
	if len(d.Data) > MaxRawBytes {
		return fmt.Errorf("%d bytes of data, at most %d are allowed", len(d.Data), MaxRawBytes)
	}
	if len(d.URLs) > maxURLs {
		return fmt.Errorf("%d URLs, at most %d are allowed", len(d.URLs), maxURLs)
	}
	for _, u := range d.URLs {
		if len(u) > maxURLBytes || !utf8.ValidString(u) {
			return fmt.Errorf("a URL of %d bytes is longer than %d or not UTF-8", len(u), maxURLBytes)
		}
	}
	if len(d.Annotations) > maxAnnotations {
		return fmt.Errorf("%d annotations, at most %d are allowed", len(d.Annotations), maxAnnotations)
	}
	size := 0
	for k, v := range d.Annotations {
		size += len(k) + len(v)
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return errors.New("an annotation is not UTF-8")
		}
	}
	if size > maxAnnotationBytes {
		return fmt.Errorf("%d bytes of annotations, at most %d are allowed", size, maxAnnotationBytes)
	}
	if d.Platform != nil {
		return checkPlatformNames(*d.Platform)
	}
	return nil
}

// imageDiffIDs reads the stack of layers from the config, lowest first. The rest of the config is not judged here.
func imageDiffIDs(img *Image) ([]digest.Digest, error) {
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(img.RawConfig, &config); err != nil {
		return nil, fmt.Errorf("decode config: %w", err)
	}
	diffIDs := config.RootFS.DiffIDs
	if len(diffIDs) > MaxLayersPerImage {
		return nil, fmt.Errorf("%d layers, the kernel cannot stack more than %d", len(diffIDs), MaxLayersPerImage)
	}
	for i, d := range diffIDs {
		if err := checkDigest("diff ID", d); err != nil {
			return nil, fmt.Errorf("config: rootfs.diff_ids[%d]: %w", i, err)
		}
	}
	return diffIDs, nil
}

// checkImageManifest joins the manifest to the config and its layers to the blobs. A blob of the manifest need not be
// known, but if it is, it must be the layer that the config says: matching by blob digest relies on it.
func checkImageManifest(img *Image, diffIDs []digest.Digest, blobs map[digest.Digest]digest.Digest) error {
	var manifest struct {
		Config struct {
			Digest digest.Digest `json:"digest"`
		} `json:"config"`
		Layers []struct {
			Digest digest.Digest `json:"digest"`
		} `json:"layers"`
	}
	if err := json.Unmarshal(img.RawManifest, &manifest); err != nil {
		return fmt.Errorf("decode manifest: %w", err)
	}
	if manifest.Config.Digest != img.Config.Digest {
		return fmt.Errorf("the manifest's config is %.160q, not %s", manifest.Config.Digest, img.Config.Digest)
	}
	if len(manifest.Layers) != len(diffIDs) {
		return fmt.Errorf("the manifest has %d layers, the config %d", len(manifest.Layers), len(diffIDs))
	}
	for i, l := range manifest.Layers {
		if diffID, ok := blobs[l.Digest]; ok && diffID != diffIDs[i] {
			return fmt.Errorf("the manifest's layer %s is a blob of %s, the config says %s", l.Digest, diffID, diffIDs[i])
		}
	}
	return nil
}
