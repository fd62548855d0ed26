// Package readahead reads ahead, into the page cache, what the start of an image will read from a layer disk, on disks
// whose every first read is slow because a cloud restores them while they are used.
//
// What to read, and in which order, an access list says (package accesslist): parts of the block device first, where
// the file system's own data lies, then parts of files, through the mount, because reading the device does not fill the
// page cache of files. Where there is no list, the metadata of the file system is read and nothing else.
//
// It goes beside the start and never delays it: whoever asks does not wait, few reads are under way at once, so that
// those of the start are not queued behind many, and it is the containers' page cache that is filled, up to a share of
// the memory. A disk that is about to leave is let go of within one read. A list can name nothing outside the layers
// that it names.
package readahead
