package builder

import (
	"context"
	"fmt"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/attrs"
	"berth.dev/berth/layerdisk/erofs"
)

// erofsWriter writes the disk of a build as EROFS.
type erofsWriter struct{ b *build }

// run streams the layers' data to the disk and puts the metadata behind it.
func (w *erofsWriter) run(ctx context.Context) (*Result, error) {
	first := int64(1) // block 0 is for header and superblock
	if w.b.base != nil {
		first = w.b.base.end
	}
	first, err := w.b.copyLayers(ctx, first)
	if err != nil {
		return nil, err
	}
	end, err := w.b.unpackAll(ctx, w.b.target, first)
	if err != nil {
		return nil, err
	}
	if err := w.b.plan.stack(); err != nil {
		return nil, err
	}
	if end, err = w.place(ctx, end); err != nil {
		return nil, err
	}
	ix, encoded, listings, err := w.b.describe(ctx)
	if err != nil {
		return nil, err
	}
	layout, err := w.plan(&ix, encoded, listings, end)
	if err != nil {
		return nil, fmt.Errorf("write file system: %w", err)
	}
	if err := layout.Write(ctx, w.b.target); err != nil {
		return nil, fmt.Errorf("write file system: %w", err)
	}
	if err := w.b.target.checkRoom(layout.SizeBytes()); err != nil {
		return nil, err
	}
	if err := w.b.target.setSize(layout.SizeBytes()); err != nil {
		return nil, err
	}
	// A cancelled build must not produce a valid disk on a device.
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	offset, ok := layout.FileOffset(layerdisk.IndexPath)
	if !ok {
		return nil, fmt.Errorf("write file system: it has no %s", layerdisk.IndexPath)
	}
	header := layerdisk.NewHeader(&ix, encoded, offset, layout.SizeBytes())
	raw, err := header.MarshalBinary()
	if err != nil {
		return nil, err
	}
	if err := layout.Commit(ctx, w.b.target, raw); err != nil {
		return nil, explainFull(fmt.Errorf("write file system: %w", err), w.b.target)
	}
	if err := w.b.target.checkRoom(layout.SizeBytes()); err != nil {
		return nil, err
	}
	return w.b.checked(header)
}

// checked reads the finished disk's header and index as a node will.
func (b *build) checked(header layerdisk.Header) (*Result, error) {
	_, id, err := layerdisk.ReadIndex(b.target.File)
	if err == nil {
		err = id.Check(header.Identity())
	}
	if err != nil {
		return nil, fmt.Errorf("read the finished disk back: %w", err)
	}
	return b.result(id, header.DiskBytes), nil
}

// describe makes the index, its encoded bytes and the stored listings, once all layers are unpacked.
func (b *build) describe(ctx context.Context) (ix layerdisk.Index, encoded []byte, listings [][]byte, err error) {
	b.notify(Event{Kind: EventFinishing})
	listings, attributes, err := b.listings(ctx)
	if err != nil {
		return ix, nil, nil, err
	}
	ix = b.plan.index(b.opts, attributes)
	ix.Placed = b.placed
	if encoded, err = layerdisk.Seal(&ix); err != nil {
		return ix, nil, nil, fmt.Errorf("describe disk: %w", err)
	}
	return ix, encoded, listings, nil
}

// listings makes the attribute listing of every layer and its digest.
func (b *build) listings(ctx context.Context) (stored [][]byte, digests []string, err error) {
	stored, digests = make([][]byte, len(b.plan.layers)), make([]string, len(b.plan.layers))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(b.opts.Parallel)
	for i, l := range b.plan.layers {
		group.Go(func() (err error) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if stored[i], digests[i], err = attrs.Store(l.tree.Entries()); err != nil {
				return fmt.Errorf("list layer %d of %s: %w", l.position, l.image, err)
			}
			return nil
		})
	}
	return stored, digests, group.Wait()
}

func (w *erofsWriter) plan(ix *layerdisk.Index, encoded []byte, listings [][]byte, end int64) (*erofs.Layout, error) {
	id, err := uuid.Parse(ix.UUID)
	if err != nil {
		return nil, err
	}
	img := erofs.Image{
		UUID: id, DataEnd: uint64(end), //nolint:gosec // not negative
		Files: []erofs.File{{Path: layerdisk.IndexPath, Data: encoded}},
	}
	if w.b.base != nil {
		img.KeptEnd = uint64(w.b.base.end) //nolint:gosec // not negative
	}
	for number, l := range w.b.plan.layers {
		first := uint64(l.base()) //nolint:gosec // not negative
		img.Layers = append(img.Layers, erofs.Layer{Path: layerdisk.LayerDir(number), Tree: l.tree, FirstBlock: first, Moved: l.moved})
		img.Files = append(img.Files, erofs.File{Path: layerdisk.ListingPath(number), Data: listings[number]})
	}
	return erofs.Plan(img)
}
