package layerdisk

// Limits that a reader puts on a disk before it believes a word of it. They are far above what a node can use and low
// enough that a hostile index costs neither much memory nor much time; a writer refuses what goes beyond them.
const (
	// MaxIndexBytes bounds the encoded index. 1,000 images with 30 KB of manifest and config each need about 50 MB.
	MaxIndexBytes = 64 << 20
	// MaxRawBytes bounds each raw image index, manifest and config. Registries refuse manifests over 4 MiB.
	MaxRawBytes = 8 << 20
	// MaxImages on one disk.
	MaxImages = 1 << 13
	// MaxLayers on one disk.
	MaxLayers = 1 << 16
	// MaxChains on one disk.
	MaxChains = 1 << 17
	// MaxBlobsPerLayer are known compressed forms of one layer.
	MaxBlobsPerLayer = 1 << 10
	// MaxLayersPerImage is the kernel's limit of lower directories in one overlay mount (fs/overlayfs/params.h,
	// OVL_MAX_STACK).
	MaxLayersPerImage = 500
	// MaxContentBytes bounds sizes of blobs, layers and disks: 1 PiB, 64 times the largest EROFS of 4 KiB blocks.
	MaxContentBytes = 1 << 50
	// MaxInodesPerLayer is the number of inodes that 32 bit inode numbers can distinguish.
	MaxInodesPerLayer = 1 << 32

	maxJSONDepth       = 32
	maxReferenceBytes  = 1 << 10
	maxNameBytes       = 255 // media types (RFC 6838, two names of 127 and a slash), platform fields
	maxPlatformStrings = 64
	maxAnnotations     = 1 << 8
	maxAnnotationBytes = 64 << 10
	maxURLs            = 64
	maxURLBytes        = 4 << 10
)
