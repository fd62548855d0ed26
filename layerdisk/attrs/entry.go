// Package attrs describes a layer's tree entry by entry, so that two trees can be compared in every attribute that a
// container could notice, and gives such a listing a digest.
package attrs

// FileType is the type of an entry, in the letters of find(1) -type.
type FileType byte

// File types of entries.
const (
	Regular   FileType = 'f'
	Directory FileType = 'd'
	Symlink   FileType = 'l'
	CharDev   FileType = 'c'
	BlockDev  FileType = 'b'
	FIFO      FileType = 'p'
	Socket    FileType = 's'
)

// Entry is one name in a layer's tree with all that is compared. Entries of a listing are sorted by Path, bytewise.
type Entry struct {
	// Path is relative to the layer's root, "." for the root itself, without leading slash; any bytes but NUL.
	Path string
	Type FileType
	// Mode holds the permission bits with setuid, setgid and sticky (07777).
	Mode     uint32
	UID, GID uint32
	// Size in bytes of a regular file or a symbolic link's target; 0 for other types.
	Size int64
	// MtimeSec and MtimeNsec are seconds and nanoseconds since the epoch.
	MtimeSec  int64
	MtimeNsec uint32
	// Target of a symbolic link.
	Target string
	// DevMajor and DevMinor of a device.
	DevMajor, DevMinor uint32
	// Xattrs by full name, such as security.capability.
	Xattrs map[string][]byte
	// HardLink is the Path of the first entry of the same inode, empty for that first entry itself. An entry with
	// HardLink set repeats the attributes of the inode, but Content is left zero.
	HardLink string
	// Content is the BLAKE3-256 hash of a regular file's bytes, holes as zeros.
	Content [32]byte
}
