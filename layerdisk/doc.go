// Package layerdisk is the on-disk format of berth: a file system that holds unpacked image layers as numbered
// directories, an index that says what they are, and a header before the superblock that finds and proves both.
// docs/layer-disk-format.md is its specification.
package layerdisk
