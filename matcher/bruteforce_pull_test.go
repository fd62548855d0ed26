package matcher_test

import (
	"github.com/opencontainers/go-digest"

	. "berth.dev/berth/matcher"
)

// node is what a node has while containerd pulls the images of a pod one after another.
type node struct {
	o        oracle
	disks    map[item]bool
	unpacked map[item]bool // or served by a disk
	content  map[digest.Digest]int64
	served   map[item]digest.Digest // by a disk
}

// pull does what containerd's unpacker does: it looks for each layer, and the first one that is not there begins one
// fetch of all layers from it on.
func (n *node) pull(w Image, blobs []digest.Digest) {
	its, _ := items(w)
	fetching := false
	for i, it := range its {
		switch {
		case n.unpacked[it]:
		case n.disks[it]:
			n.served[it] = blobs[i]
		case !fetching:
			fetching = true
			for _, blob := range blobs[i:] {
				n.content[blob] = n.o.blobSizes[blob]
			}
		}
		n.unpacked[it] = true
	}
}

// pulled is a node on which the images of the request were pulled with these disks.
func (o oracle) pulled(disks []*Candidate) *node {
	n := &node{o: o, disks: make(map[item]bool), unpacked: o.present(), content: make(map[digest.Digest]int64), served: make(map[item]digest.Digest)}
	for _, c := range disks {
		for it := range o.has(c) {
			n.disks[it] = true
		}
	}
	for i, w := range o.wanted() {
		n.pull(w, o.blobs[i])
	}
	return n
}

func (n *node) downloaded() (sum int64) {
	for _, size := range n.content {
		sum += size
	}
	return sum
}

func (o oracle) saving(disks []*Candidate) Saving {
	with := o.pulled(disks)
	s := Saving{DownloadBytes: o.pulled(nil).downloaded() - with.downloaded()}
	for it, blob := range with.served {
		if _, fetched := with.content[blob]; fetched {
			s.UnpackBytes += o.sizes[it].unpacked
		}
	}
	return s
}
