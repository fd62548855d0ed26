package readahead

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/readahead/accesslist"
)

// node has disks that are plain directories, and lists of them.
type node struct {
	*testing.T
	*Reader
	disks map[string]Disk
	lists map[string]*accesslist.List
	err   error
	// gate, if not nil, holds up getting a list.
	gate chan struct{}
	// stuck, if not nil, does so whatever the context says.
	stuck chan struct{}

	mu       sync.Mutex
	visitors map[string][]context.CancelFunc
	here     int
	asked    []string
	ended    []Run
}

// newNode has a disk of each name with the images given as "name:layer,layer" and a list for each of them.
func newNode(t *testing.T, change func(*Config)) *node {
	n := &node{T: t, disks: map[string]Disk{}, lists: map[string]*accesslist.List{}, visitors: map[string][]context.CancelFunc{}}
	cfg := Config{Disks: n, Lists: n, Workers: 4, MemoryShare: 0.5, AtOnce: 2, Observer: n, available: func() (int64, error) { return 1 << 40, nil }}
	if change != nil {
		change(&cfg)
	}
	var err error
	n.Reader, err = New(t.Context(), cfg)
	require.NoError(t, err)
	return n
}

// stop closes the reader and sees that it has left all disks.
func (n *node) stop() {
	require.NoError(n, n.Close())
	n.mu.Lock()
	defer n.mu.Unlock()
	require.Zero(n, n.here)
}

func ref(name string) string { return "docker.io/library/" + name + ":1" }

func (n *node) add(name string, images ...layerdisktest.Image) {
	n.Helper()
	dir := n.TempDir()
	ix, _ := layerdisktest.Tree(n, dir, layerdisk.FileSystemExt4, func(layer, dir string) {
		require.NoError(n, os.WriteFile(filepath.Join(dir, "file"), make([]byte, 2*pieceBytes), 0o644))
	}, images...)
	n.disks[name] = Disk{
		Name: "disk " + name, Identity: layerdisk.Identity{UUID: name, IndexDigest: digest.FromString(name)}, MountPoint: dir, SizeBytes: 1 << 30, Index: ix,
	}
	for _, img := range images {
		l := &accesslist.List{Image: img.Reference, Platform: "linux/amd64"}
		for _, layer := range img.Layers {
			l.Files = append(l.Files, accesslist.FileRange{DiffID: layerdisktest.DiffID(layer), Path: "file", Length: 2 * pieceBytes})
		}
		n.lists[img.Reference] = l
	}
}

func (n *node) Visit(ctx context.Context, uuid string) (context.Context, Disk, func(), error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d, ok := n.disks[uuid]
	if !ok {
		return nil, Disk{}, nil, fmt.Errorf("disk %s: %w", uuid, errdefs.ErrNotFound)
	}
	ctx, cancel := context.WithCancel(ctx)
	n.visitors[uuid] = append(n.visitors[uuid], cancel)
	n.here++
	return ctx, d, func() {
		cancel()
		n.mu.Lock()
		defer n.mu.Unlock()
		n.here--
	}, nil
}

// leaves sends the disk away.
func (n *node) leaves(uuid string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.disks, uuid)
	for _, cancel := range n.visitors[uuid] {
		cancel()
	}
}

func (n *node) AccessList(ctx context.Context, d Disk, image string) (*accesslist.List, error) {
	n.mu.Lock()
	n.asked = append(n.asked, d.Identity.UUID+" "+image)
	n.mu.Unlock()
	if n.stuck != nil {
		<-n.stuck
	}
	if n.gate != nil {
		select {
		case <-n.gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if n.err != nil {
		return nil, n.err
	}
	l, ok := n.lists[image]
	if !ok {
		return nil, fmt.Errorf("list of %s: %w", image, errdefs.ErrNotFound)
	}
	return l, nil
}

func (n *node) ReadAhead(_ context.Context, r Run) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ended = append(n.ended, r)
}

// settle waits until nothing happens any more.
func (n *node) settle() []Run {
	synctest.Wait()
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ended
}

func inBubble(t *testing.T, change func(*Config), test func(n *node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, change)
		defer n.stop()
		test(n)
	})
}

func image(name string, layers ...string) layerdisktest.Image {
	return layerdisktest.Image{Reference: ref(name), Layers: layers}
}

// However often a start is told of, layer by layer or by many pulls at once, its list is replayed once for as long as
// the page cache likely has it.
func TestOnceForEachStart(t *testing.T) {
	inBubble(t, nil, func(n *node) {
		n.add("d", image("app", "a", "b"), image("other", "a"))
		for range 50 {
			n.Starting("d", ref("app"), layerdisktest.ChainID("b"))
			n.Starting("d", "", layerdisktest.ChainID("a", "b"))
		}
		ended := n.settle()
		require.Len(t, ended, 1)
		got := ended[0]
		require.Equal(t, Run{
			Image: ref("app"), Disk: "disk d", DiskUUID: "d", Listed: true, Result: ResultDone, TotalBytes: 4 * pieceBytes, Bytes: 4 * pieceBytes, Pieces: 4,
			Wanted: got.Wanted, Started: got.Started, Ended: got.Ended, Took: got.Took,
		}, got)
		require.Equal(t, []string{"d " + ref("app")}, n.asked)
		require.Equal(t, ended, n.Runs())
		require.Equal(t, Totals{Bytes: 4 * pieceBytes, Pieces: 4}, n.Totals())

		time.Sleep(again - time.Second)
		n.Starting("d", ref("app"), "")
		require.Len(t, n.settle(), 1)
		time.Sleep(time.Second)
		n.Starting("d", ref("app"), "")
		require.Len(t, n.settle(), 2, "by now it may have been pushed out")
	})
}

// Without a name it is the layers that tell which image it is, and only the whole stack does.
func TestImageIsToldByItsLayers(t *testing.T) {
	inBubble(t, nil, func(n *node) {
		n.add("d", image("app", "a", "b"), image("twin", "a", "b"), image("base", "z"))
		n.Starting("d", "", layerdisktest.ChainID("a"))
		require.Empty(t, n.settle())
		n.Starting("d", "", layerdisktest.ChainID("a", "b"))
		ended := n.settle()
		require.Len(t, ended, 2)
		require.ElementsMatch(t, []string{ref("app"), ref("twin")}, []string{ended[0].Image, ended[1].Image})
	})
}

func TestWithoutListOrMetadata(t *testing.T) {
	inBubble(t, nil, func(n *node) {
		n.add("d", image("app", "a"))
		delete(n.lists, ref("app"))
		n.Starting("d", ref("app"), "")
		n.Starting("unknown", ref("app"), "")
		ended := n.settle()
		require.Len(t, ended, 1)
		require.Equal(t, ResultNothing, ended[0].Result)
		require.Contains(t, ended[0].Reason, "ext4")
		n.Starting("d", ref("app"), "")
		require.Len(t, n.settle(), 1, "it is not looked for again at once")
	})
}

// A list that can be got again is wanted at the next start; what a list names that is not on the disk is not read.
func TestListThatFails(t *testing.T) {
	inBubble(t, nil, func(n *node) {
		n.add("d", image("app", "a", "b"))
		n.err = errors.New("store is broken")
		n.Starting("d", ref("app"), "")
		ended := n.settle()
		require.Equal(t, ResultFailed, ended[0].Result)
		require.Contains(t, ended[0].Reason, "store is broken")
		n.err = nil
		n.lists[ref("app")].Files[0].DiffID = layerdisktest.DiffID("elsewhere")
		n.Starting("d", ref("app"), "")
		ended = n.settle()
		require.Equal(t, ResultDone, ended[1].Result)
		require.Equal(t, int64(2*pieceBytes), ended[1].Bytes)
	})
}

// Only so many replays run at once; the others wait and are seen to.
func TestReplaysWait(t *testing.T) {
	const rate = 1 << 20
	inBubble(t, func(c *Config) { c.AtOnce, c.Workers, c.Rate = 1, 1, rate }, func(n *node) {
		n.add("d", image("first", "a"), image("second", "b"))
		n.Starting("d", ref("first"), "")
		synctest.Wait()
		n.Starting("d", ref("second"), "")
		synctest.Wait()
		runs := n.Runs()
		require.Equal(t, []Result{ResultRunning, ResultWaiting}, []Result{runs[0].Result, runs[1].Result})
		require.Equal(t, int64(pieceBytes), runs[0].Bytes, "the first piece is free, the next one has to wait")
		require.Equal(t, ref("first"), runs[0].Image)
		require.Equal(t, Totals{Bytes: pieceBytes, Pieces: 1, Running: 1, Waiting: 1}, n.Totals())
		time.Sleep(10 * time.Second)
		ended := n.settle()
		require.Len(t, ended, 2)
		require.Equal(t, ref("first"), ended[0].Image)
		// Four pieces of half a second each, the last of which nobody waits for.
		require.Equal(t, 1500*time.Millisecond, ended[1].Ended.Sub(ended[0].Wanted))
		require.Equal(t, int64(rate), ended[1].Rate())
	})
}

// A disk that leaves, and a daemon that stops, end replays that run and that wait; a later start on the disk when it is
// back reads.
func TestDiskLeaves(t *testing.T) {
	inBubble(t, func(c *Config) { c.AtOnce, c.Rate = 1, 1 }, func(n *node) {
		n.add("d", image("first", "a"), image("second", "b"))
		n.Starting("d", ref("first"), "")
		n.Starting("d", ref("second"), "")
		synctest.Wait()
		d := n.disks["d"]
		n.leaves("d")
		ended := n.settle()
		require.Len(t, ended, 2)
		for _, r := range ended {
			require.Equal(t, ResultStopped, r.Result)
		}
		n.disks["d"] = d
		n.Starting("d", ref("first"), "")
		synctest.Wait()
		require.Equal(t, ResultRunning, n.Runs()[0].Result)
	})
}

// A store of lists that hangs holds up nobody who tells of starts, and what cannot be remembered is forgotten.
func TestStartingNeverBlocks(t *testing.T) {
	inBubble(t, nil, func(n *node) {
		n.gate = make(chan struct{})
		n.add("d", image("app", "a"))
		for i := range 2 * maxWishes {
			n.Starting("d", fmt.Sprint("image ", i), "")
		}
		close(n.gate)
		n.settle()
		require.LessOrEqual(t, len(n.Runs()), keptRuns)
	})
}

// A disk or store that does not answer does not keep the daemon from stopping.
func TestCloseDoesNotHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, nil)
		n.stuck = make(chan struct{})
		n.add("d", image("app", "a"))
		n.Starting("d", ref("app"), "")
		synctest.Wait()
		require.True(t, errdefs.IsUnavailable(n.Close()))
		close(n.stuck)
		n.stop()
	})
}

// A replay fills its share of the memory and no more.
func TestMemoryIsSpared(t *testing.T) {
	inBubble(t, func(c *Config) { c.available = func() (int64, error) { return 5 * pieceBytes, nil } }, func(n *node) {
		n.add("d", image("app", "a", "b"))
		n.Starting("d", ref("app"), "")
		ended := n.settle()
		require.Equal(t, ResultMemory, ended[0].Result)
		require.Equal(t, int64(2*pieceBytes), ended[0].Bytes, "half of five pieces")
	})
}

// The memory is looked at again, and the smaller budget counts.
func TestMemoryIsLookedAtAgain(t *testing.T) {
	free, looks := int64(1<<40), 0
	b := newBudget(1, func() (int64, error) { looks++; return free, nil })
	require.True(t, b.take(recheckBytes))
	free = 1 << 20
	require.True(t, b.take(1<<20))
	require.False(t, b.take(1))
	require.Equal(t, 2, looks)
	b = newBudget(1, func() (int64, error) { return 0, errors.New("no /proc") })
	require.False(t, b.take(1), "then nothing is known")
	n, err := availableMemory()
	require.NoError(t, err)
	require.Positive(t, n)
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []Config{{}, {Workers: MaxWorkers + 1, AtOnce: 1}, {Workers: 1}, {Workers: 1, AtOnce: 1, MemoryShare: 2}, {Workers: 1, AtOnce: 1, Rate: -1}} {
		_, err := New(t.Context(), c)
		require.True(t, errdefs.IsInvalidArgument(err), err)
	}
}
