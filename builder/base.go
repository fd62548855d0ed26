package builder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/attrs"
	"berth.dev/berth/layerdisk/erofs"
	"berth.dev/berth/layerdisk/tree"
)

// base is the layer disk that the output already holds. Its layers stay in place. New data and the metadata of all
// layers go behind its end. Unneeded layers and the old metadata stay unchanged and keep occupying space.
type base struct {
	index  *layerdisk.Index
	file   io.ReaderAt
	reader *erofs.Reader
	// end is the first block behind it.
	end int64
	// layerOf is the number of the layer at the top of a chain.
	layerOf map[digest.Digest]int
	// donor says that it is another disk, at path, whose layers are copied.
	donor bool
	path  string
	close func() error
}

// reuse is what a job takes over.
type reuse struct {
	base *base
	// trees by the number of the layer on the base, and the first block of the data that they share.
	trees map[int]*tree.Tree
	first int64
	// extents of a donor that the data are copied from.
	extents []extent
	// blobs are the compressed forms that the layer was fetched in.
	blobs []layerdisk.Blob
}

// tree is the layer as it is at the top of a chain.
func (r *reuse) tree(chainID digest.Digest) *tree.Tree {
	if t, ok := r.trees[r.base.layerOf[chainID]]; ok {
		return t
	}
	for _, t := range r.trees {
		return t // the only one: the layer is not bound to its stack
	}
	return nil
}

// maxListingBytes bounds one listing: as much as the tree of a layer may take.
const maxListingBytes = 1 << 30

// ErrBase says that the output cannot serve as the start of a build; errdefs.ErrDataLoss.
var ErrBase = fmt.Errorf("output holds no layer disk to start from: %w", errdefs.ErrDataLoss)

// openReused opens a device or file with a layer disk. It changes nothing.
func openReused(out Output) (_ *target, _ *base, err error) {
	f, err := os.OpenFile(out.Path, os.O_RDWR|unix.O_EXCL, 0) // of a device: nobody else may have it
	if err != nil {
		return nil, nil, fmt.Errorf("open output: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("open output: %w", err)
	}
	t := &target{File: f, device: info.Mode()&os.ModeDevice != 0, limit: out.SizeBytes}
	t.why = fmt.Sprintf("its size was fixed at %s (%d bytes)", units.BytesSize(float64(out.SizeBytes)), out.SizeBytes)
	if t.device {
		size, err := device.SizeBytes(out.Path)
		if err != nil {
			return nil, nil, fmt.Errorf("open output: %w", err)
		}
		size -= size % blockBytes
		if out.SizeBytes == 0 || out.SizeBytes > size {
			t.limit, t.why = size, fmt.Sprintf("the device %s has %s (%d bytes)", out.Path, units.BytesSize(float64(size)), size)
		}
	}
	b, err := readBase(f)
	if err != nil {
		return nil, nil, fmt.Errorf("start from the disk in %s: %w", out.Path, err)
	}
	t.publish = func(context.Context) error { return errors.Join(t.Sync(), t.Close()) }
	t.discard = func() error {
		_, err := t.File.WriteAt(make([]byte, blockBytes), 0)
		return errors.Join(err, t.Sync(), t.Close())
	}
	return t, b, nil
}

func readBase(f *os.File) (*base, error) {
	header, err := layerdisk.ReadHeader(f)
	if err != nil {
		return nil, errors.Join(ErrBase, err)
	}
	ix, _, err := layerdisk.ReadIndex(f)
	if err != nil {
		return nil, errors.Join(ErrBase, err)
	}
	if ix.FileSystem != layerdisk.FileSystemEROFS {
		return nil, fmt.Errorf("its file system is %s, only %s can be added to: %w", ix.FileSystem, layerdisk.FileSystemEROFS, ErrBase)
	}
	reader, err := erofs.Open(f)
	if err != nil {
		return nil, errors.Join(ErrBase, err)
	}
	b := &base{index: ix, file: f, reader: reader, end: (header.DiskBytes + blockBytes - 1) / blockBytes, layerOf: make(map[digest.Digest]int)}
	for _, c := range ix.Chains {
		b.layerOf[c.ChainID] = c.Layer
	}
	return b, nil
}

// apply finds out which jobs need no work. The target is not changed.
func (b *base) apply(ctx context.Context, p *plan) error {
	numbers := make(map[digest.Digest]int)
	for _, l := range b.index.Layers {
		if !l.StackBound {
			numbers[l.DiffID] = l.Number
		}
	}
	chains := p.chainsByJob()
	for _, j := range p.jobs {
		if j.reuse != nil {
			continue
		}
		wanted := make(map[int]bool)
		n, ok := numbers[j.diffID]
		_, bottom := b.layerOf[j.diffID] // the chain ID of a layer at the bottom is its diff ID
		if ok && (bottom || !slices.Contains(chains[j.diffID], j.diffID)) {
			wanted[n] = true
		} else if !ok {
			// A layer that is bound to its stack is the right one on that stack alone, and only if all stacks are
			// there: another look of it could not be made without its archive.
			for _, chainID := range chains[j.diffID] {
				n, ok := b.layerOf[chainID]
				if !ok {
					wanted = nil
					break
				}
				wanted[n] = true
			}
		}
		if len(wanted) == 0 {
			continue
		}
		r, err := b.restore(ctx, wanted)
		if errors.Is(err, tree.ErrLooks) {
			continue // one look is that of the bottom, where names that the layer removes leave nothing
		}
		if err != nil {
			return fmt.Errorf("take over layer %s: %w", j.diffID, err)
		}
		j.reuse = r
		close(j.done)
	}
	return nil
}

// restore makes the trees of a layer's looks again.
func (b *base) restore(ctx context.Context, numbers map[int]bool) (*reuse, error) {
	r := &reuse{base: b, trees: make(map[int]*tree.Tree)}
	looks, err := b.looks(ctx, r, numbers)
	if err != nil {
		return nil, err
	}
	var other *tree.Tree
	for n, stored := range looks {
		layer := b.index.Layers[n]
		listing, err := b.listing(ctx, layer)
		if err != nil {
			return nil, err
		}
		t, first, err := tree.Restore(listing, func(path string) (tree.Stored, bool) {
			s, ok := stored[path]
			return s, ok
		}, layer.StackBound, other)
		if err != nil {
			return nil, err
		}
		if t.Inodes != layer.Inodes || t.UnpackedBytes != layer.UnpackedBytes || other != nil && int64(first) != r.first {
			return nil, fmt.Errorf("layer %d is not what the index says: %w", n, ErrBase)
		}
		r.trees[n], r.first, r.blobs, other = t, int64(first), layer.Blobs, t
	}
	return r, nil
}

// looks returns where the files of a layer's looks are, or will be.
func (b *base) looks(ctx context.Context, r *reuse, numbers map[int]bool) (map[int]map[string]tree.Stored, error) {
	looks := make(map[int]map[string]tree.Stored)
	var all []map[string]tree.Stored
	var sizes []map[string]int64
	for n := range numbers {
		stored, size := make(map[string]tree.Stored), make(map[string]int64)
		err := b.reader.Walk(ctx, layerdisk.LayerDir(n), func(name string, node erofs.Node) error {
			stored[name] = tree.Stored{FirstBlock: node.FirstBlock, Sparse: node.Sparse, Runs: node.Runs, Xattrs: node.Xattrs}
			if node.Mode&unix.S_IFMT == unix.S_IFREG {
				size[name] = node.Size
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		looks[n], all, sizes = stored, append(all, stored), append(sizes, size)
	}
	if b.donor {
		r.extents = pack(all, sizes)
	}
	return looks, nil
}

// listing reads a layer's listing from the disk and proves it by the index.
func (b *base) listing(ctx context.Context, layer layerdisk.Layer) ([]attrs.Entry, error) {
	var raw []byte
	err := b.reader.Walk(ctx, layerdisk.ListingPath(layer.Number), func(_ string, n erofs.Node) error {
		if n.Size > maxListingBytes || n.Sparse {
			return fmt.Errorf("listing of %d bytes: %w", n.Size, ErrBase)
		}
		raw = make([]byte, n.Size)
		_, err := io.ReadFull(io.NewSectionReader(b.file, int64(n.FirstBlock)*blockBytes, n.Size), raw)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read listing of layer %d: %w", layer.Number, err)
	}
	entries, got, err := attrs.Load(bytes.NewReader(raw), maxListingBytes)
	if err == nil && got != layer.Attributes {
		err = fmt.Errorf("its digest is %s, the index says %s: %w", got, layer.Attributes, ErrBase)
	}
	if err != nil {
		return nil, fmt.Errorf("read listing of layer %d: %w", layer.Number, err)
	}
	return entries, nil
}

// chainsByJob are the stacks that each layer is on top of.
func (p *plan) chainsByJob() map[digest.Digest][]digest.Digest {
	chains := make(map[digest.Digest][]digest.Digest)
	for _, img := range p.images {
		for i, chainID := range img.chainIDs() {
			diffID := img.layers[i].diffID
			chains[diffID] = append(chains[diffID], chainID)
		}
	}
	return chains
}

// take makes the base the beginning of the new disk. From then on the base is not a valid disk until the new one is
// complete.
func (b *base) take(t *target) error {
	if _, err := t.File.WriteAt(make([]byte, blockBytes), 0); err != nil {
		return fmt.Errorf("clear header: %w", err)
	}
	if err := t.Sync(); err != nil {
		return fmt.Errorf("clear header: %w", err)
	}
	return nil
}
