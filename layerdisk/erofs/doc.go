// Package erofs writes the file system of a layer disk: one uncompressed EROFS that holds the trees of many layers,
// whose file contents lie on the disk already, and some files of berth's own.
//
//	block 0        caller's header (512 bytes), superblock: written last, the commit point
//	blocks 1…      contents of the layers' files, one contiguous region per layer, written by the caller
//	               own files, each contiguous
//	               inodes: root, directories above the layers, layer roots, then those of each layer by directory
//	               blocks of directories and symbolic links that do not fit behind their inode
//
// Inodes are of the 64-byte form, because the 32-byte form has no time and 16-bit owners. Extended attributes lie
// behind their inode, and so does the last part of a directory or a symbolic link where it does not cross a block: a
// tenth of all inodes are directories, and most of them need less than 1 KiB. File contents are never put there: it
// would save 8 % of a disk, but inflate metadata 14 times and slow down every cold start.
//
// Such a file system mounts with Linux 5.4 and later. Files with holes are chunk-based and need Linux 5.15; the feature
// is set only if there are any (Layout.Holes).
package erofs
