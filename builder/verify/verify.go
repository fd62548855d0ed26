// Package verify compares a layer disk with what its index says: it lists every layer's tree again and reports each
// attribute that differs from the stored listing, whose digest the index holds.
package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/attrs"
)

const (
	// maxStoredBytes and maxListingBytes bound what a hostile listing costs; one of 100,000 entries has some 15 MB,
	// compressed a fifth of it.
	maxStoredBytes  = 256 << 20
	maxListingBytes = 1 << 30
)

// Options of one verification.
type Options struct {
	// Want is the disk that is expected; the zero value takes any.
	Want layerdisk.Identity
	// Start is called once the index is known, before the first layer, if not nil.
	Start func(*layerdisk.Index, layerdisk.Identity)
	// Layer is called after each layer, in order, if not nil.
	Layer func(LayerReport)
}

// Dir verifies the layer disk whose file system is mounted at dir. The report has what is wrong; an error means that
// there is no complete report: the index cannot be read or breaks the format (see package layerdisk), the disk is not
// the wanted one, or ctx ended.
func Dir(ctx context.Context, dir string, opts Options) (*Report, error) {
	ix, id, err := layerdisk.ReadMountedIndex(dir)
	if err != nil {
		return nil, err
	}
	return verify(ctx, dir, ix, id, opts)
}

// verify compares the mounted disk with an index that is known to be sound.
func verify(ctx context.Context, dir string, ix *layerdisk.Index, id layerdisk.Identity, opts Options) (*Report, error) {
	if err := id.Check(opts.Want); err != nil {
		return nil, err
	}
	if opts.Start != nil {
		opts.Start(ix, id)
	}
	report := &Report{Identity: id, Layers: make([]LayerReport, 0, len(ix.Layers))}
	report.Problems = append(report.Problems, unexpected(dir, layerdisk.LayersDir, len(ix.Layers))...)
	report.Problems = append(report.Problems, unexpected(dir, layerdisk.ListingsDir, len(ix.Layers))...)
	for _, layer := range ix.Layers {
		l, err := verifyLayer(ctx, dir, layer)
		if err != nil {
			return nil, fmt.Errorf("verify layer %d: %w", layer.Number, err)
		}
		report.Layers = append(report.Layers, l)
		if opts.Layer != nil {
			opts.Layer(l)
		}
	}
	return report, nil
}

// unexpected reports names in a directory of numbered entries that belong to no layer. Missing names are reported with
// their layers. Elsewhere on the disk a later minor version may have names unknown here.
func unexpected(dir, name string, layers int) []string {
	names, err := layerdisk.ReadMountedDir(dir, name)
	if errors.Is(err, fs.ErrNotExist) && layers == 0 {
		return nil
	}
	if err != nil {
		return []string{err.Error()}
	}
	var problems []string
	for _, n := range names {
		if number, err := layerdisk.LayerNumber(n); err != nil || number >= layers {
			problems = append(problems, fmt.Sprintf("%s/%s belongs to no layer of the index", name, attrs.Escape(n)))
		}
	}
	return problems
}

// verifyLayer gives an error only when ctx has ended.
func verifyLayer(ctx context.Context, dir string, layer layerdisk.Layer) (LayerReport, error) {
	l := LayerReport{Number: layer.Number, DiffID: layer.DiffID}
	want, err := storedListing(dir, layer)
	if err != nil {
		l.Problems = append(l.Problems, err.Error())
	}
	if err := ctx.Err(); err != nil {
		return l, err
	}
	got, digest, err := tree(ctx, dir, layer.Number)
	if ctx.Err() != nil {
		return l, ctx.Err()
	}
	if err != nil {
		l.Problems = append(l.Problems, err.Error())
		return l, nil
	}
	inodes, unpacked := attrs.Totals(got)
	l.Entries, l.UnpackedBytes = len(got), unpacked
	if inodes != layer.Inodes {
		l.Problems = append(l.Problems, fmt.Sprintf("it has %d inodes, the index says %d", inodes, layer.Inodes))
	}
	if unpacked != layer.UnpackedBytes {
		l.Problems = append(l.Problems, fmt.Sprintf("its files have %d bytes, the index says %d", unpacked, layer.UnpackedBytes))
	}
	if want != nil {
		l.Differences = attrs.Diff(want, got)
	}
	// Without a listing to compare with, and as a check of the comparison, the digest alone tells whether the tree is
	// right.
	if digest != layer.Attributes && len(l.Differences) == 0 {
		l.Problems = append(l.Problems, fmt.Sprintf("the digest of its attributes is %s, the index says %s", digest, layer.Attributes))
	}
	return l, nil
}

// storedListing is nil with an error if the disk has no listing that the index vouches for.
func storedListing(dir string, layer layerdisk.Layer) ([]attrs.Entry, error) {
	name := layerdisk.ListingPath(layer.Number)
	stored, err := layerdisk.ReadMountedFile(dir, name, maxStoredBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("its stored listing %s is missing", name)
	}
	if err != nil {
		return nil, err
	}
	entries, digest, err := attrs.Load(bytes.NewReader(stored), maxListingBytes)
	if err != nil {
		return nil, fmt.Errorf("its stored listing %s: %w", name, err)
	}
	if digest != layer.Attributes {
		return nil, fmt.Errorf("its stored listing %s has digest %s, the index says %s", name, digest, layer.Attributes)
	}
	return entries, nil
}

// tree lists the layer as it is.
func tree(ctx context.Context, dir string, number int) ([]attrs.Entry, string, error) {
	if err := layerdisk.CheckLayerDir(dir, number); err != nil {
		return nil, "", err
	}
	entries, err := attrs.FromDir(ctx, filepath.Join(dir, filepath.FromSlash(layerdisk.LayerDir(number))))
	if err != nil {
		return nil, "", err
	}
	digest, err := attrs.Digest(slices.Values(entries))
	return entries, digest, err
}
