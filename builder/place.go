package builder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/tree"
	"berth.dev/berth/readahead/accesslist"
)

const (
	// wholeFile is the size up to which a file is placed as a whole; of a larger one at least half must be in the list.
	// A file has to lie in one piece, so placing one of which little is read would drive the others apart.
	wholeFile = 1 << 20
	// keepPlaced is a share of files: if at least this share is already in sequence, a disk that is added to stays
	// unchanged.
	keepPlaced = 0.75
	copyBytes  = 1 << 20
)

// placedFile is one that starts of images read.
type placedFile struct {
	job *layerJob
	// first is the file's place in the layer's data region, size its bytes.
	first uint32
	size  int64
}

func (f placedFile) blocks() int64 { return (f.size + blockBytes - 1) / blockBytes }

// at is the file's first block on the disk.
func (f placedFile) at() int64 { return f.job.base() + int64(f.first) }

// base is the first block of the layer's data region.
func (j *layerJob) base() int64 {
	if j.reuse != nil {
		return max(1, j.reuse.first)
	}
	return j.first
}

// place copies the files of Options.AccessLists behind all data, to which end is the first block, in the order of their
// first access, so that they lie together and beside the metadata, which a start reads too. It returns the new end.
// What they occupied before is given back to the storage; in the file system it stays as room that is taken, because
// other files lie behind it.
//
// Their sizes are not known before all layers are there, so they could not be written there at once.
func (w *erofsWriter) place(ctx context.Context, end int64) (newEnd int64, err error) {
	files := w.placedFiles()
	if len(files) == 0 {
		return end, nil
	}
	if inPlace(files) {
		w.b.placed = w.b.base.index.Placed
		return end, nil
	}
	start := end
	buf := make([]byte, copyBytes)
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		if err := w.copyBlocks(buf, f.at(), end, f.blocks()); err != nil {
			return 0, fmt.Errorf("place placed files: %w", err)
		}
		if f.job.moved == nil {
			f.job.moved = make(map[uint32]uint32)
		}
		f.job.moved[f.first] = uint32(end) //nolint:gosec // erofs.Plan checks the end of all data
		end += f.blocks()
	}
	w.b.placed = &layerdisk.Placed{Offset: start * blockBytes, Length: (end - start) * blockBytes, Files: len(files)}
	return end, w.giveBack(ctx, files)
}

// copyBlocks copies within the disk.
func (w *erofsWriter) copyBlocks(buf []byte, from, to, blocks int64) error {
	if w.b.target.full.Load() {
		_, err := w.b.target.WriteAt(nil, (to+blocks)*blockBytes) // nothing of it is there to be read
		return err
	}
	for done, size := int64(0), blocks*blockBytes; done < size; {
		piece := buf[:min(int64(len(buf)), size-done)]
		if _, err := w.b.target.ReadAt(piece, from*blockBytes+done); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := w.b.target.WriteAt(piece, to*blockBytes+done); err != nil {
			return err
		}
		done += int64(len(piece))
	}
	return nil
}

// giveBack makes the former places of files zeros, which storage need not keep, and so the same in every build. Those
// of layers that were on the disk before stay, as everything of it does.
func (w *erofsWriter) giveBack(ctx context.Context, files []placedFile) error {
	if w.b.target.full.Load() {
		return nil
	}
	zeros := make([]byte, copyBytes)
	for _, f := range files {
		if f.job.reuse != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		offset, size := f.at()*blockBytes, f.blocks()*blockBytes
		err := unix.Fallocate(int(w.b.target.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, size)
		for err != nil && size > 0 {
			piece := zeros[:min(int64(len(zeros)), size)]
			if _, err := w.b.target.WriteAt(piece, offset); err != nil {
				return fmt.Errorf("clear the former place of placed files: %w", err)
			}
			offset, size = offset+int64(len(piece)), size-int64(len(piece))
		}
	}
	return nil
}

// inPlace says that most files lie behind one another as it is, on a disk that is added to.
func inPlace(files []placedFile) bool {
	good := 0
	for i, f := range files {
		if f.job.reuse == nil {
			return false
		}
		if i > 0 && f.at() == files[i-1].at()+files[i-1].blocks() {
			good++
		}
	}
	return float64(good+1) >= keepPlaced*float64(len(files))
}

// placedFiles are the files of all lists that can be placed, each once, in the order of the lists.
func (w *erofsWriter) placedFiles() []placedFile {
	jobs := make(map[digest.Digest]*layerJob, len(w.b.plan.jobs))
	for _, j := range w.b.plan.jobs {
		jobs[j.diffID] = j
	}
	type key struct {
		job  *layerJob
		path string
	}
	read := make(map[key]int64)
	var order []key
	for _, l := range w.b.opts.AccessLists {
		for _, r := range l.Files {
			k := key{jobs[r.DiffID], r.Path}
			if k.job == nil {
				continue
			}
			if _, ok := read[k]; !ok {
				order = append(order, k)
			}
			read[k] += r.Length
		}
	}
	type place struct {
		job   *layerJob
		first uint32
	}
	known := make(map[place]bool) // hard links
	var files []placedFile
	for _, k := range order {
		in, ok := lookup(w.b.plan.layers[k.job.number].tree, k.path)
		p := place{k.job, in.FirstBlock}
		if !ok || in.Sparse || in.Size == 0 || known[p] || in.Size > wholeFile && read[k] < in.Size/2 {
			continue
		}
		known[p] = true
		files = append(files, placedFile{job: k.job, first: in.FirstBlock, size: in.Size})
	}
	return files
}

// lookup finds a regular file by its path below the layer's root.
func lookup(t *tree.Tree, name string) (in tree.Inode, ok bool) {
	n := tree.Root
	for element := range strings.SplitSeq(path.Clean(name), "/") {
		children := t.Children(n)
		i, found := slices.BinarySearchFunc(children, element, func(c tree.Child, name string) int { return strings.Compare(c.Name, name) })
		if !found {
			return tree.Inode{}, false
		}
		n = children[i].Inode
	}
	in = t.Inode(n)
	return in, in.Mode&unix.S_IFMT == unix.S_IFREG
}

// checkAccessLists refuses invalid access lists.
func checkAccessLists(lists []*accesslist.List) error {
	for _, l := range lists {
		if err := l.Check(); err != nil {
			return err
		}
	}
	return nil
}
