// Package snapshotter answers containerd: it wraps containerd's overlay snapshotter and adopts layers that a
// LayerSource has ready on a layer disk, so that containerd neither fetches nor unpacks them.
package snapshotter
