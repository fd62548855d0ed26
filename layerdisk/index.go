package layerdisk

import (
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Version of the format that this package writes. A reader refuses another major version; a higher minor version only
// adds fields that may be ignored.
const (
	MajorVersion = 1
	// MinorVersion is the highest that is written; a disk has the lowest that has all its fields.
	MinorVersion = 1
)

// Index is everything a layer disk says about itself. Its encoded bytes are stored once on the disk; the sha256 digest
// of those bytes is the identity of the disk.
type Index struct {
	// FormatVersion is "major.minor".
	FormatVersion string `json:"formatVersion"`
	// UUID of the disk, lower case with dashes; equal to the UUID in the file system's superblock.
	UUID string `json:"uuid"`
	// Created is the time the content stands for: the newest creation time of the images unless the builder was told
	// another, so that the same images give the same bytes.
	Created time.Time `json:"created"`
	// FileSystem holds the layers: FileSystemEROFS or FileSystemExt4.
	FileSystem string `json:"fileSystem"`

	Images []Image `json:"images"`
	// Layers are ordered by number, which counts from 0 without gaps.
	Layers []Layer `json:"layers"`
	// Chains maps each stack of layers on the disk to its parent. A parent stands before its children.
	Chains []Chain `json:"chains"`
	// Placed is the area of the files that images read when they start; nil if no files were placed. Since minor
	// version 1.
	Placed *Placed `json:"traced,omitempty"`
}

// minor is the lowest minor version that has all fields of the index.
func (ix *Index) minor() int {
	if ix.Placed != nil {
		return 1
	}
	return 0
}

// Values of Index.FileSystem.
const (
	FileSystemEROFS = "erofs"
	FileSystemExt4  = "ext4"
)

// Placed is a stretch of the disk with the contents of files of several layers, in the order in which starts of images
// first read them, and whole.
type Placed struct {
	// Offset and Length in bytes, multiples of the block size.
	Offset int64 `json:"offset"`
	Length int64 `json:"length"`
	Files  int   `json:"files"`
}

// Image is one image on the disk, for one platform.
type Image struct {
	// Reference is normalised and has a tag or a digest: docker.io/library/nginx:1.27.
	Reference string           `json:"reference"`
	Platform  ocispec.Platform `json:"platform"`
	// IndexDescriptor is that of the image index the manifest was chosen from, if there was one.
	IndexDescriptor *ocispec.Descriptor `json:"index,omitempty"`
	Manifest        ocispec.Descriptor  `json:"manifest"`
	Config          ocispec.Descriptor  `json:"config"`
	// RawIndex, RawManifest and RawConfig are the bytes the descriptors above stand for.
	RawIndex    []byte `json:"rawIndex,omitempty"`
	RawManifest []byte `json:"rawManifest"`
	RawConfig   []byte `json:"rawConfig"`
	// ChainID of the image's whole stack of layers; empty for an image without layers.
	ChainID digest.Digest `json:"chainID,omitempty"`
}

// Layer is one unpacked layer. Its tree is the directory LayerDir(Number) of the file system.
type Layer struct {
	Number int           `json:"number"`
	DiffID digest.Digest `json:"diffID"`
	// Blobs are all compressed forms of the layer that the builder met, sorted by digest.
	Blobs []Blob `json:"blobs"`
	// UnpackedBytes is the sum of the sizes of the layer's regular files, hard links counted once.
	UnpackedBytes int64 `json:"unpackedBytes"`
	// Inodes in the layer's tree, its root included, hard links counted once.
	Inodes int64 `json:"inodes"`
	// Attributes is the digest of the layer's attribute listing, see package attrs.
	Attributes string `json:"attributes"`
	// StackBound says that the tree is right only where it was unpacked: it has directories that the layer itself does
	// not mention before what is in them, and that took their attributes from below; or it lies at the bottom, where
	// names that a layer removes leave nothing. Such a layer is found by chain ID alone, and several may have the same
	// diff ID, one for each way in which their stacks differ.
	StackBound bool `json:"stackBound,omitempty"`
}

// Blob is a layer as a registry serves it.
type Blob struct {
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Size      int64         `json:"size"`
}

// Chain is a stack of layers: the one of Parent with the layer DiffID on top. Parent is empty for the lowest layer.
type Chain struct {
	ChainID digest.Digest `json:"chainID"`
	Parent  digest.Digest `json:"parent,omitempty"`
	DiffID  digest.Digest `json:"diffID"`
	// Layer is the number of the layer on top.
	Layer int `json:"layer"`
}
