package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// LayerMaker makes layers anew that no disk has any more.
type LayerMaker interface {
	// MakeLayer writes the layer's files into layer.Dir as containerd's unpacker would. It returns without error only
	// if the files are those of the diff ID and are on the disk; what is in the directory otherwise is deleted. It may
	// take as long as fetching the layer does.
	MakeLayer(ctx context.Context, layer LostLayer) error
}

// LostLayer is a layer that an adopted snapshot needs and no attached disk has.
type LostLayer struct {
	ChainID, DiffID digest.Digest
	// Dir is an empty directory, Parents are those of the layers below, the highest first.
	Dir     string
	Parents []string
}

// Mend is what is done about the lost layer of a snapshot.
type Mend struct {
	// Running says that the layer is being made anew now.
	Running bool
	// Err is why that failed the last time; it is tried again when something needs the layer.
	Err error
}

// mendDir is the directory below the root in which layers are made. Open deletes what a crash left there.
const mendDir = "mend"

// mender remakes lost layers in their snapshots' own directories. From then on these are like any snapshot that
// was unpacked.
type mender struct {
	stacks *stacks
	maker  LayerMaker // nil if layers cannot be made
	wait   time.Duration
	boot   string // ID of this boot of the machine

	life    context.Context //nolint:containedctx // ends what goes on after a request has given up waiting
	stop    context.CancelFunc
	running sync.WaitGroup

	mu     sync.Mutex          // guards tasks, mends and closed
	tasks  map[string]*mending // by the name of the snapshot on top
	mends  map[string]Mend     // by the name of the snapshot
	closed bool
}

// mending is one stack on its way.
type mending struct {
	done chan struct{}
	err  error
}

func newMender(s *stacks, maker LayerMaker, wait time.Duration, boot string) *mender {
	m := &mender{stacks: s, maker: maker, wait: wait, boot: boot, tasks: map[string]*mending{}, mends: map[string]Mend{}}
	m.life, m.stop = context.WithCancel(context.Background())
	return m
}

// close ends what is under way and waits for that.
func (m *mender) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.stop()
	m.running.Wait()
}

// below does what stacks.below does, but remakes what is lost, and waits for that for a bounded time. It goes on
// afterwards: whoever asks again finds it done, or waits again.
func (m *mender) below(ctx context.Context, parent string) (lowers, error) {
	l, lost := m.stacks.below(ctx, parent)
	if lost == nil || m.maker == nil || !errdefs.IsUnavailable(lost) || ctx.Err() != nil {
		return l, lost
	}
	task := m.start(ctx, parent)
	if task == nil {
		return l, lost
	}
	timer := time.NewTimer(m.wait)
	defer timer.Stop()
	select {
	case <-task.done:
	case <-timer.C:
		return lowers{}, fmt.Errorf("%w; the layers are being made anew, try again", lost)
	case <-ctx.Done():
		return lowers{}, fmt.Errorf("wait for layers that are made anew: %w", ctx.Err())
	}
	if task.err != nil {
		// Its class must not show: to containerd "not found" would mean the snapshot.
		return lowers{}, fmt.Errorf("%w; %v", lost, task.err) //nolint:errorlint // see above
	}
	return m.stacks.below(ctx, parent)
}

// start has the stack mended unless that is under way; nil after close.
func (m *mender) start(ctx context.Context, top string) *mending { //nolint:contextcheck // the work outlives the request
	m.mu.Lock()
	defer m.mu.Unlock()
	if task := m.tasks[top]; task != nil || m.closed {
		return task
	}
	task := &mending{done: make(chan struct{})}
	m.tasks[top] = task
	life := log.WithLogger(m.life, log.G(ctx))
	m.running.Go(func() {
		task.err = m.mend(life, top)
		if task.err != nil && life.Err() == nil {
			log.G(life).WithError(task.err).WithField("snapshot", top).Error("layers of a lost disk cannot be made anew")
		}
		m.mu.Lock()
		delete(m.tasks, top)
		m.mu.Unlock()
		close(task.done)
	})
	return task
}

// note what is done about a snapshot's layer; the zero value forgets it.
func (m *mender) note(name string, what Mend) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if what == (Mend{}) {
		delete(m.mends, name)
		return
	}
	m.mends[name] = what
}

// list what is noted.
func (m *mender) list() map[string]Mend {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.mends)
}

// mend makes all lost layers of a stack, the lowest first: each is unpacked on top of those below.
func (m *mender) mend(ctx context.Context, top string) error {
	nodes, err := m.stacks.rows.lineage(ctx, top)
	if err != nil {
		return err
	}
	dirs := make([]string, len(nodes))
	for i := len(nodes) - 1; i >= 0; i-- {
		n := nodes[i]
		dirs[i] = m.stacks.upperDir(n.id)
		if n.adopted == nil {
			continue
		}
		if dir, err := m.stacks.layerDir(ctx, n); err == nil {
			dirs[i] = dir
			continue
		}
		m.note(n.info.Name, Mend{Running: true})
		err := m.makeAnew(ctx, n, dirs[i+1:])
		m.note(n.info.Name, Mend{Err: err})
		if err != nil {
			return fmt.Errorf("snapshot %s: %w", n.info.Name, err)
		}
	}
	return nil
}

// makeAnew makes one layer. The order is: data, directory, database; a crash before the last leaves a snapshot that is
// adopted still, and a directory that is made anew.
func (m *mender) makeAnew(ctx context.Context, n node, parents []string) (err error) {
	work := filepath.Join(m.stacks.root, mendDir, uuid.NewString())
	dir := filepath.Join(work, "fs")
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // as the wrapped snapshotter makes it
		return fmt.Errorf("create directory for a layer: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if len(parents) > 0 {
		like, err := lookAt(ctx, parents[0])
		if err != nil {
			return fmt.Errorf("read layer below: %w", err)
		}
		if err := chownLike(dir, like); err != nil {
			return err
		}
	}
	err = m.maker.MakeLayer(ctx, LostLayer{ChainID: n.adopted.ChainID, DiffID: n.adopted.DiffID, Dir: dir, Parents: parents})
	if err != nil {
		return err //nolint:wrapcheck // it says which layer
	}
	m.stacks.step("made anew")
	if err := m.replace(ctx, n, work); err != nil {
		return fmt.Errorf("put layer in place: %w", err)
	}
	m.stacks.step("mended")
	log.G(ctx).WithFields(log.Fields{"snapshot": n.info.Name, "chain_id": n.adopted.ChainID, "disk": n.adopted.DiskUUID}).
		Info("snapshot has its layer on this node's own disk now")
	return nil
}

// replace makes the snapshot a local one whose files are in work.
func (m *mender) replace(ctx context.Context, n node, work string) error {
	own := filepath.Dir(m.stacks.upperDir(n.id))
	return m.stacks.rows.write(ctx, func(ctx context.Context) error {
		now, err := lookup(ctx, n.info.Name)
		if err != nil {
			return err
		}
		if now.id != n.id || now.adopted == nil || len(now.adopted.Moved) != len(n.adopted.Moved) {
			return fmt.Errorf("the snapshot has changed meanwhile: %w", errdefs.ErrUnavailable)
		}
		// The snapshot's own directory holds nothing that anybody uses: it is empty, or was put there right before a
		// crash.
		if err := os.Rename(own, filepath.Join(work, "before")); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("take directory away: %w", err)
		}
		if err := os.Mkdir(filepath.Join(work, "now"), 0o700); err != nil {
			return fmt.Errorf("create snapshot directory: %w", err)
		}
		if err := os.Rename(filepath.Join(work, "fs"), filepath.Join(work, "now", "fs")); err != nil {
			return fmt.Errorf("fill snapshot directory: %w", err)
		}
		if err := os.Rename(filepath.Join(work, "now"), own); err != nil {
			return fmt.Errorf("put snapshot directory in place: %w", err)
		}
		if err := syncDirs(own, filepath.Dir(own)); err != nil {
			return err
		}
		m.stacks.step("in place")
		// A disk that comes back must not leave under containers that were started from it.
		held, err := heldRecord{Boot: m.boot, Held: now.adopted.locations()}.encode()
		if err != nil {
			return err
		}
		labels := with(now.info.Labels, labelHeld, held)
		delete(labels, labelAdopted)
		labels[labelRef] = now.adopted.ChainID.String()
		_, err = storage.UpdateInfo(ctx, snapshots.Info{Name: n.info.Name, Labels: labels}, "labels")
		return err //nolint:wrapcheck // wrapped by the caller
	})
}

// syncDirs returns when the names in the directories are on the disk.
func syncDirs(dirs ...string) error {
	for _, dir := range dirs {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("sync directory %s: %w", dir, err)
		}
		err = errors.Join(unix.Fsync(fd), unix.Close(fd))
		if err != nil {
			return fmt.Errorf("sync directory %s: %w", dir, err)
		}
	}
	return nil
}
