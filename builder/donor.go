package builder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"berth.dev/berth/layerdisk/tree"
)

// extent is a stretch of blocks of a donor.
type extent struct{ first, blocks int64 }

func (e extent) end() int64 { return e.first + e.blocks }

// openDonors opens the disks of Output.TakeFrom and does not change them. The caller must call closeDonors, also after
// an error.
func (b *build) openDonors() error {
	for _, path := range b.opts.Output.TakeFrom {
		f, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("take layers from the disk in %s: %w", path, errors.Join(ErrBase, err))
		}
		d, err := readBase(f)
		if err != nil {
			return errors.Join(fmt.Errorf("take layers from the disk in %s: %w", path, err), f.Close())
		}
		d.donor, d.path, d.close = true, path, f.Close
		b.donors = append(b.donors, d)
	}
	return nil
}

func (b *build) closeDonors() error {
	var errs []error
	for _, d := range b.donors {
		errs = append(errs, d.close())
	}
	return errors.Join(errs...)
}

// applyDonors finds out which layers the donors have that the output lacks.
func (b *build) applyDonors(ctx context.Context) error {
	if err := b.openDonors(); err != nil {
		return err
	}
	for _, d := range b.donors {
		if err := d.apply(ctx, b.plan); err != nil {
			return fmt.Errorf("take layers from the disk in %s: %w", d.path, err)
		}
	}
	return nil
}

// pack moves what the files of a layer hold together, as if its region began at block 1, and gives the stretches of the
// donor that this takes, in their order. The looks of a layer share contents, so they are packed together.
func pack(looks []map[string]tree.Stored, sizes []map[string]int64) []extent {
	var all []extent
	for i, look := range looks {
		for name, s := range look {
			if s.Sparse {
				for _, r := range s.Runs {
					all = append(all, extent{int64(r.FirstBlock), int64(r.Blocks)})
				}
			} else if blocks := (sizes[i][name] + blockBytes - 1) / blockBytes; blocks > 0 && s.FirstBlock > 0 {
				all = append(all, extent{int64(s.FirstBlock), blocks})
			}
		}
	}
	slices.SortFunc(all, func(a, b extent) int { return cmp.Compare(a.first, b.first) })
	var merged []extent
	for _, e := range all {
		if n := len(merged); n > 0 && e.first <= merged[n-1].end() {
			merged[n-1].blocks = max(merged[n-1].end(), e.end()) - merged[n-1].first
			continue
		}
		merged = append(merged, e)
	}
	at := make([]int64, len(merged)) // where each begins then
	next := int64(1)
	for i, e := range merged {
		at[i] = next
		next += e.blocks
	}
	moved := func(block uint32) uint32 {
		i, found := slices.BinarySearchFunc(merged, block, func(e extent, block uint32) int { return cmp.Compare(e.first, int64(block)) })
		if !found {
			i--
		}
		if i < 0 || int64(block) >= merged[i].end() {
			return block // of an empty file
		}
		return uint32(at[i] + int64(block) - merged[i].first) //nolint:gosec // not more than before
	}
	for _, look := range looks {
		for name, s := range look {
			s.FirstBlock = moved(s.FirstBlock)
			s.Runs = slices.Clone(s.Runs)
			for i := range s.Runs {
				s.Runs[i].FirstBlock = moved(s.Runs[i].FirstBlock)
			}
			look[name] = s
		}
	}
	return merged
}

// copyLayers copies the layers of donors to the disk, one behind the other from block first on, and gives the block
// behind them.
func (b *build) copyLayers(ctx context.Context, first int64) (end int64, err error) {
	end = first
	buf := make([]byte, copyBytes)
	for _, j := range b.plan.jobs {
		if j.reuse == nil || !j.reuse.base.donor {
			continue
		}
		j.reuse.first = end
		for _, e := range j.reuse.extents {
			if err := b.copyExtent(ctx, buf, j.reuse.base, e, end); err != nil {
				return 0, fmt.Errorf("copy layer %s from the disk in %s: %w", j.diffID, j.reuse.base.path, err)
			}
			end += e.blocks
		}
	}
	return end, nil
}

func (b *build) copyExtent(ctx context.Context, buf []byte, from *base, e extent, to int64) error {
	for done, size := int64(0), e.blocks*blockBytes; done < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		piece := buf[:min(int64(len(buf)), size-done)]
		n, err := from.file.ReadAt(piece, e.first*blockBytes+done)
		if err != nil && (!errors.Is(err, io.EOF) || n != len(piece)) {
			return errors.Join(ErrBase, err)
		}
		if _, err := b.target.WriteAt(piece, to*blockBytes+done); err != nil {
			return err
		}
		done += int64(len(piece))
	}
	return nil
}

// taken counts what came from each donor.
func (b *build) taken() []Taken {
	var list []Taken
	for _, d := range b.donors {
		t := Taken{Disk: d.path}
		for i, j := range b.plan.jobs {
			if j.reuse != nil && j.reuse.base == d {
				t.Layers++
				t.UnpackedBytes += b.plan.layers[i].tree.UnpackedBytes
			}
		}
		list = append(list, t)
	}
	return list
}
