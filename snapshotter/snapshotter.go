package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// MetadataFile is the name of the database below the root.
const MetadataFile = "metadata.db"

// metadataLockTimeout is how long Open waits for another process to release the metadata.
const metadataLockTimeout = 5 * time.Second

// Snapshotter is containerd's overlay snapshotter, except that layers which a LayerSource has are adopted instead of
// being fetched and unpacked. It is safe for concurrent use.
type Snapshotter struct {
	overlay   snapshots.Snapshotter // with the store of rows; removes directories only in Cleanup
	cleaner   snapshots.Cleaner     // overlay again
	rows      rows
	stacks    *stacks
	maker     *maker
	mender    *mender
	unpacker  *unpacker
	committer *committer
	holds     *holds
	observer  Observer
	step      func(string)
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// Open opens the snapshotter on its root directory and repairs what a crash may have left there. It does not touch
// the source: disks may be attached later. Close it when done.
func Open(ctx context.Context, cfg Config) (*Snapshotter, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("open snapshotter: %w", err)
	}
	if err := os.MkdirAll(cfg.Root, 0o700); err != nil {
		return nil, fmt.Errorf("create snapshotter root: %w", err)
	}
	// Mounts must not name symbolic links: the id-mapped lower directories of a user-namespace pod cannot follow them.
	root, err := filepath.EvalSymlinks(cfg.Root)
	if err != nil {
		return nil, fmt.Errorf("resolve snapshotter root: %w", err)
	}
	if err := checkMountPath(root); err != nil {
		return nil, fmt.Errorf("resolve snapshotter root: %w", err)
	}
	meta, err := storage.NewMetaStore(filepath.Join(root, MetadataFile), func(o *bolt.Options) error {
		o.Timeout = metadataLockTimeout
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open metadata: %w", err)
	}
	s, err := newSnapshotter(root, meta, cfg)
	if err == nil {
		err = s.recover(ctx)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open snapshotter in %s: %w", root, err), meta.Close())
	}
	return s, nil
}

func newSnapshotter(root string, meta *storage.MetaStore, cfg Config) (*Snapshotter, error) {
	// WithRemapIDs costs nothing where it is not asked for: containerd sends id maps only to a snapshotter that is
	// configured with the capability "remap-ids".
	wrapped, err := overlay.NewSnapshotter(root, overlay.WithMetaStore(meta), overlay.AsynchronousRemove,
		overlay.WithRemapIDs, overlay.WithMountOptions(cfg.MountOptions))
	if err != nil {
		return nil, fmt.Errorf("open overlay snapshotter: %w", err)
	}
	cleaner, ok := wrapped.(snapshots.Cleaner)
	if !ok {
		return nil, fmt.Errorf("overlay snapshotter does not clean up: %w", errdefs.ErrNotImplemented)
	}
	if cfg.Observer == nil {
		cfg.Observer = nobody{}
	}
	if cfg.step == nil {
		cfg.step = func(string) {}
	}
	boot, err := bootID()
	if err != nil {
		return nil, err
	}
	s := &Snapshotter{
		overlay: wrapped, cleaner: cleaner, rows: rows{store{meta}, newIndex()}, holds: &holds{source: cfg.Source},
		observer: cfg.Observer, step: cfg.step,
	}
	s.stacks = &stacks{root: root, rows: s.rows, source: cfg.Source, holds: s.holds, step: s.step}
	s.mender = newMender(s.stacks, cfg.Maker, cfg.MendWait, boot)
	s.maker = &maker{overlay: wrapped, rows: s.rows, stacks: s.stacks, mender: s.mender}
	s.unpacker = &unpacker{rows: s.rows, stacks: s.stacks, maker: s.maker, holds: s.holds, observer: s.observer,
		protocol: cfg.Protocol, step: s.step}
	s.committer = &committer{rows: s.rows, stacks: s.stacks, holds: s.holds, observer: s.observer, step: s.step}
	return s, nil
}

// recover builds the index and puts directories out of the way that a crash left without a row in the store: their
// numbers are given out again, and overlay cannot rename a new directory onto one of them. Cleanup deletes them.
func (s *Snapshotter) recover(ctx context.Context) error {
	ids := map[string]string{}
	err := s.rows.read(ctx, func(ctx context.Context) (err error) {
		if ids, err = storage.IDMap(ctx); err != nil {
			return fmt.Errorf("list snapshot numbers: %w", err)
		}
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			s.rows.index.add(info.Labels[labelRef], info.Parent, info.Name)
			return nil
		})
	})
	// A store that nobody has written to yet has no tables.
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("read metadata: %w", err)
	}
	if err := s.rows.forgetHeld(ctx, s.mender.boot); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("forget holds of earlier boots: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(s.stacks.root, mendDir)); err != nil {
		return fmt.Errorf("remove layers that were half made: %w", err)
	}
	return setAside(filepath.Join(s.stacks.root, "snapshots"), ids)
}

// Adopted lists the snapshots whose content lies on layer disks, and so the holds that the source should have: whatever
// else it holds for this snapshotter is a leftover of a crash. A snapshot that was served from several disks is listed
// once for each of them.
func (s *Snapshotter) Adopted(ctx context.Context) ([]Adopted, error) {
	var list []Adopted
	mends := s.mender.list()
	err := s.rows.read(ctx, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all, err := held(info.Labels)
			if err != nil {
				return fmt.Errorf("read snapshot %s: %w", info.Name, err)
			}
			r, err := recordOf(info.Labels)
			if err != nil {
				return fmt.Errorf("read snapshot %s: %w", info.Name, err)
			}
			for _, l := range all {
				a := Adopted{Name: info.Name, Holder: l.Holder, DiskUUID: l.DiskUUID, LayerNumber: l.LayerNumber,
					Local: r == nil, Mend: mends[info.Name]}
				if r != nil {
					a.ChainID, a.DiffID = r.ChainID, r.DiffID
				} else {
					a.ChainID = digestOf(info.Labels[labelRef])
				}
				list = append(list, a)
			}
			return nil
		})
	})
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("list adopted snapshots: %w", err)
	}
	return list, nil
}

// Stat implements snapshots.Snapshotter.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, err := s.overlay.Stat(ctx, key)
	info.Labels = publicLabels(info.Labels)
	return info, err //nolint:wrapcheck // the wrapped snapshotter speaks for itself
}

// Usage implements snapshots.Snapshotter. An adopted layer uses nothing: its bytes are not on this node's own disk.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return s.overlay.Usage(ctx, key) //nolint:wrapcheck // the wrapped snapshotter speaks for itself
}

// Prepare implements snapshots.Snapshotter. An extraction Prepare, which names a target, may be answered with
// errdefs.ErrAlreadyExists or with read-only mounts, see Protocol. errdefs.ErrUnavailable names the disk that is
// missing from what parent consists of.
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	info, err := applyOpts(opts)
	if err != nil {
		return nil, err
	}
	labels := publicLabels(info.Labels)
	if target, ok := extractionTarget(key, labels); ok {
		return s.unpacker.prepare(ctx, key, parent, labels, target)
	}
	mounts, below, err := s.maker.createOn(ctx, s.overlay.Prepare, key, parent, labels)
	if err != nil {
		return nil, err
	}
	if top := below.top.adopted; top != nil {
		s.observer.Start(ctx, Start{ChainID: top.ChainID, DiskUUID: top.DiskUUID})
	}
	return mounts, nil
}

// View implements snapshots.Snapshotter; errors are those of Prepare.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	info, err := applyOpts(opts)
	if err != nil {
		return nil, err
	}
	return s.maker.create(ctx, s.overlay.View, key, parent, publicLabels(info.Labels))
}

// Mounts implements snapshots.Snapshotter. errdefs.ErrUnavailable names the disk that is missing.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	n, err := s.rows.node(ctx, key)
	if err != nil {
		return nil, err
	}
	mounts, err := s.overlay.Mounts(ctx, key)
	if err != nil {
		return nil, err //nolint:wrapcheck // the wrapped snapshotter speaks for itself
	}
	below, err := s.mender.below(ctx, n.info.Parent)
	if err != nil {
		return nil, err
	}
	if mounts, err = below.rewrite(mounts); err != nil {
		return nil, err
	}
	return unpackForm(mounts, n.info.Labels)
}

// Close implements snapshots.Snapshotter. Mounts stay as they are.
func (s *Snapshotter) Close() error {
	s.mender.close()
	return s.overlay.Close() //nolint:wrapcheck // the wrapped snapshotter speaks for itself
}

// applyOpts are the labels and the parent that a client sets.
func applyOpts(opts []snapshots.Opt) (snapshots.Info, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return snapshots.Info{}, fmt.Errorf("apply snapshot option: %w", err)
		}
	}
	return info, nil
}

// nobody is the observer of those who want to know nothing.
type nobody struct{}

func (nobody) Hit(context.Context, Hit)     {}
func (nobody) Miss(context.Context, Miss)   {}
func (nobody) Start(context.Context, Start) {}
