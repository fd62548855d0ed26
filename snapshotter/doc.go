// Package snapshotter answers containerd: it wraps containerd's overlay snapshotter and adopts layers that a
// LayerSource has ready on a layer disk, so that containerd neither fetches nor unpacks them.
//
// An adopted layer is a committed snapshot with no files of its own. Its row in the metadata store says which layer of
// which disk it is; the mounts of its children name the layer's directory on the disk as a lower directory. Nothing in
// the snapshotter's own directories points at a disk, so removing snapshots cannot touch one.
//
// docs/snapshotter.md explains how each version of containerd is answered, what is trusted, and in which order things
// are written.
package snapshotter
