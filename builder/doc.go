// Package builder makes a layer disk from container images: it resolves the images, fetches each distinct layer once,
// verifies blob digest and diff ID while the bytes stream past, unpacks it once, and writes the trees, the attribute
// listings and the index as one file system whose header is the last thing written.
//
// Layers run in parallel, yet lie on the disk one behind the other in the order of their first use in the list of
// images, so that the same images always give the same bytes. Only the head, the first layer that is not complete,
// writes into the disk; those after it write into a spool, which is copied when their turn has come (region.go).
//
// Memory is bounded by the number of layers in parallel, not by their sizes: for each of them 16 MiB of blocks that
// wait for their place (whichever layers have them), 2 MiB of chunks between decompressor, hash and unpacker, some MiB
// of buffers in the unpacker, and the decompressor (at most 128 MiB for a zstd stream made with the largest window that
// is accepted, 2 MiB of pipes for gzip); and for the whole disk the trees, about 150 bytes and the name for each file,
// and the compressed attribute listings.
package builder
