package builder

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/builder/mkfs"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/attrs"
	"berth.dev/berth/layerdisk/tree"
)

// cleanupTimeout bounds the wait for the loop device's last users.
const cleanupTimeout = time.Minute

// ext4Writer writes it as ext4, which needs root.
type ext4Writer struct{ b *build }

// run reads the layers first, to know size, index and UUID, and keeps their archives in spool files; then it makes
// the file system and has containerd's own code unpack them there. Both readings must agree in every attribute.
func (w *ext4Writer) run(ctx context.Context) (*Result, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("build ext4 disk: only root can mount; use the default file system, which needs no privilege: %w", errdefs.ErrPermissionDenied)
	}
	spools, err := w.spoolArchives(ctx)
	defer func() {
		for _, s := range spools {
			_ = s.Close() // read only by now
		}
	}()
	if err != nil {
		return nil, err
	}
	if err := w.b.plan.stack(); err != nil {
		return nil, err
	}
	ix, encoded, listings, err := w.b.describe(ctx)
	if err != nil {
		return nil, err
	}
	size := w.size(listings, encoded)
	if err := w.b.target.checkRoom(size.total); err != nil {
		return nil, err
	}
	if err := w.b.target.setSize(size.total); err != nil {
		return nil, err
	}
	if err := w.fill(ctx, ix.UUID, size, spools, listings, encoded); err != nil {
		return nil, fmt.Errorf("build ext4 disk: %w", err)
	}
	return w.seal(ctx, &ix, encoded, size)
}

// spoolArchives unpacks every layer into its tree alone and keeps the archives. It returns those made even if there is
// an error.
func (w *ext4Writer) spoolArchives(ctx context.Context) (spools []*os.File, err error) {
	var flush []*bufio.Writer
	for _, j := range w.b.plan.jobs {
		spool, err := newSpool(w.b.tempDir())
		if err != nil {
			return spools, fmt.Errorf("make spool file: %w", err)
		}
		spools = append(spools, spool)
		tee := bufio.NewWriterSize(spool, 1<<20)
		flush = append(flush, tee)
		j.tee = tee
		j.region = newRegion(ctx, discardAt{}, nil, nil)
		if err := j.region.promote(0); err != nil {
			return spools, err
		}
	}
	if err := w.b.unpackParallel(ctx, w.b.plan.jobs); err != nil {
		return spools, explainSpace(err, w.b.tempDir())
	}
	for _, tee := range flush {
		if err := tee.Flush(); err != nil {
			return spools, explainSpace(err, w.b.tempDir())
		}
	}
	return spools, nil
}

func explainSpace(err error, dir string) error {
	if noSpace(err) {
		return fmt.Errorf("no room in %s for the uncompressed layers, which an ext4 disk needs besides the disk itself (--tmp-dir names another place): %w: %w", dir, err, ErrTooSmall)
	}
	return err
}

// discardAt takes the place of the disk where only the tree is wanted.
type discardAt struct{}

// WriteAt pretends.
func (discardAt) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }

// fill makes the file system and puts everything into it.
func (w *ext4Writer) fill(ctx context.Context, uuid string, size ext4Size, spools []*os.File, listings [][]byte, encoded []byte) (err error) {
	dev, release, err := w.b.target.blockDevice(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	if err := mkfs.Ext4(ctx, dev, mkfs.Ext4Options{Blocks: size.blocks, Inodes: size.inodes, UUID: uuid}); err != nil {
		return explainFull(err, w.b.target)
	}
	mounted, err := fsmount.Writable(dev, fsmount.Ext4)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mounted.Close()) }()
	root := fmt.Sprintf("/proc/self/fd/%d", mounted.Fd())
	if err := os.Remove(filepath.Join(root, "lost+found")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := w.applyAll(ctx, root, spools); err != nil {
		return explainFull(err, w.b.target)
	}
	if err := writeOwn(root, listings, encoded); err != nil {
		return explainFull(err, w.b.target)
	}
	return explainFull(flushFileSystem(root), w.b.target)
}

func flushFileSystem(root string) error {
	dir, err := os.Open(root)
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return errors.Join(fmt.Errorf("flush file system: %w", err), dir.Close())
	}
	return dir.Close()
}

// explainFull gives a lack of space below the file system its class.
func explainFull(err error, t *target) error {
	if noSpace(err) {
		return fmt.Errorf("%w: %s: %w", err, t.why, ErrTooSmall)
	}
	return err
}

// applyAll unpacks the layers as containerd does, each after those that it lies on, and checks each against its tree.
func (w *ext4Writer) applyAll(ctx context.Context, root string, spools []*os.File) error {
	if err := os.Mkdir(filepath.Join(root, layerdisk.LayersDir), 0o755); err != nil {
		return err
	}
	done := make([]chan struct{}, len(w.b.plan.layers))
	for i := range done {
		done[i] = make(chan struct{})
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(w.b.opts.Parallel)
	for _, number := range w.b.plan.order {
		l := w.b.plan.layers[number]
		group.Go(func() error {
			var lower []string
			for _, below := range l.lower {
				select {
				case <-done[below]: // begun before this one
				case <-ctx.Done():
					return ctx.Err()
				}
				lower = append(lower, filepath.Join(root, layerdisk.LayerDir(below)))
			}
			if err := applyLayer(ctx, filepath.Join(root, layerdisk.LayerDir(number)), lower, spools[l.number], l.tree); err != nil {
				return fmt.Errorf("unpack layer %d of %s: %w", l.position, l.image, err)
			}
			close(done[number])
			return nil
		})
	}
	return group.Wait()
}

// applyLayer unpacks a layer on top of these directories, ordered from the top.
func applyLayer(ctx context.Context, dir string, lower []string, spool *os.File, t *tree.Tree) error {
	if err := mkdirExactly(dir); err != nil {
		return err
	}
	var opts []archive.ApplyOpt // a layer without lower ones has containerd's rules for a plain directory
	if len(lower) > 0 {
		opts = append(opts, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout), archive.WithParents(lower))
	}
	// A reader of its own, since two looks of a layer may be unpacked at once. No buffer: archive/tar seeks over what
	// it skips, and Apply copies with a buffer of its own.
	in := io.NewSectionReader(spool, 0, math.MaxInt64)
	if _, err := archive.Apply(ctx, dir, in, opts...); err != nil {
		return err
	}
	if err := settle(ctx, dir, t); err != nil {
		return err
	}
	got, err := attrs.FromDir(ctx, dir)
	if err != nil {
		return err
	}
	var want []attrs.Entry
	for e := range t.Entries() {
		want = append(want, e)
	}
	if diffs := attrs.Diff(want, got); len(diffs) > 0 {
		return fmt.Errorf("ext4 holds %d things otherwise than they are in the layer, first %s: %w", len(diffs), diffs[0], errdefs.ErrInternal)
	}
	return nil
}

func mkdirExactly(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return os.Chmod(dir, 0o755) // whatever the umask
}

// settle sets the times that containerd takes from the clock: those of whiteouts and of directories that the archive
// does not mention.
func settle(ctx context.Context, dir string, t *tree.Tree) error {
	for e := range t.Entries() {
		if err := ctx.Err(); err != nil {
			return err
		}
		whiteout := e.Type == attrs.CharDev && e.DevMajor == 0 && e.DevMinor == 0
		if !whiteout && e.Type != attrs.Directory {
			continue
		}
		ts := unix.Timespec{Sec: e.MtimeSec, Nsec: int64(e.MtimeNsec)}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, e.Path), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set time of %q: %w", e.Path, err)
		}
	}
	return nil
}

// writeOwn writes berth's own files, with fixed modes and times.
func writeOwn(root string, listings [][]byte, encoded []byte) error {
	for _, dir := range []string{layerdisk.OwnDir, layerdisk.ListingsDir} {
		if err := mkdirExactly(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	names := []string{layerdisk.IndexPath}
	contents := [][]byte{encoded}
	for number, listing := range listings {
		names, contents = append(names, layerdisk.ListingPath(number)), append(contents, listing)
	}
	for i, name := range names {
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, contents[i], 0o644); err != nil { //nolint:gosec // the disk's mode protects
			return err
		}
		if err := os.Chmod(path, 0o644); err != nil { //nolint:gosec // whatever the umask
			return err
		}
	}
	for _, name := range append(names, layerdisk.ListingsDir, layerdisk.OwnDir, layerdisk.LayersDir, ".") {
		if err := os.Chtimes(filepath.Join(root, name), time.Unix(0, 0), time.Unix(0, 0)); err != nil {
			return err
		}
	}
	return nil
}

// seal puts the index behind the file system and the header before it.
func (w *ext4Writer) seal(ctx context.Context, ix *layerdisk.Index, encoded []byte, size ext4Size) (*Result, error) {
	offset := size.blocks * blockBytes
	if _, err := w.b.target.WriteAt(encoded, offset); err != nil {
		return nil, fmt.Errorf("write index: %w", err)
	}
	if err := w.b.target.checkRoom(size.total); err != nil {
		return nil, err
	}
	if err := errors.Join(w.b.target.Sync(), ctx.Err()); err != nil {
		return nil, fmt.Errorf("flush disk: %w", err)
	}
	header := layerdisk.NewHeader(ix, encoded, offset, size.total)
	raw, err := header.MarshalBinary()
	if err != nil {
		return nil, err
	}
	if _, err := w.b.target.File.WriteAt(raw, 0); err != nil {
		return nil, fmt.Errorf("write header: %w", err)
	}
	return w.b.checked(header)
}

// blockDevice gives the target as a block device that can be mounted; release ends that.
func (t *target) blockDevice(ctx context.Context) (path string, release func() error, err error) {
	if t.device {
		// Our own exclusive claim would keep the mount away.
		shared, err := os.OpenFile(t.Name(), os.O_RDWR, 0)
		if err != nil {
			return "", nil, err
		}
		if err := t.Close(); err != nil {
			return "", nil, errors.Join(err, shared.Close())
		}
		t.File = shared
		return t.Name(), func() error { return nil }, nil
	}
	loop, user, err := device.AttachLoopWhileUsed(ctx, fmt.Sprintf("/proc/self/fd/%d", t.Fd()), device.LoopOptions{Tag: "berth build"})
	if err != nil {
		return "", nil, err
	}
	return loop.Path, func() error { return errors.Join(user.Close(), detach(ctx, loop)) }, nil
}

// detach waits for those who use the device a little longer than we do: a child between fork and exec has all our
// files.
func detach(ctx context.Context, loop device.Loop) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	for pause := time.Millisecond; ; pause = min(2*pause, 100*time.Millisecond) {
		err := device.DetachLoop(ctx, loop)
		if !errors.Is(err, blockdev.ErrInUse) {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}
