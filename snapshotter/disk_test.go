package snapshotter_test

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/snapshotter"
)

// disk is a real EROFS image with one directory per layer, mounted read-only.
type disk struct {
	uuid   string
	mount  string
	layers []layer
}

// newDisk unpacks layers as a builder would and mounts them at root/d/<k>.
func newDisk(t testing.TB, root string, k int, layers ...layer) *disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	d := &disk{uuid: fmt.Sprintf("00000000-0000-4000-8000-%012d", k), mount: filepath.Join(root, "d", strconv.Itoa(k)), layers: layers}
	tree, img := t.TempDir(), filepath.Join(t.TempDir(), "disk.img")
	for i, l := range layers {
		dir := filepath.Join(tree, "l", strconv.FormatInt(int64(i), 36))
		require.NoError(t, os.MkdirAll(dir, 0o755))
		_, err := archive.Apply(t.Context(), dir, bytes.NewReader(l.tar), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout))
		require.NoError(t, err)
		require.NoError(t, os.Chown(dir, l.owner, l.owner))
	}
	out, err := exec.CommandContext(t.Context(), "mkfs.erofs", img, tree).CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, os.MkdirAll(d.mount, 0o755))
	m := mount.Mount{Type: "erofs", Source: img, Options: []string{"ro", "loop"}}
	require.NoError(t, m.Mount(d.mount))
	t.Cleanup(func() { require.NoError(t, mount.UnmountAll(d.mount, unix.MNT_DETACH)) })
	return d
}

func (d *disk) dir(number int) string {
	return filepath.Join(d.mount, "l", strconv.FormatInt(int64(number), 36))
}

// source is a LayerSource over disks, with the faults that tests want. It finds layers as the stage does: by chain ID
// on disks that have the same stack, else by diff ID, else by blob.
type source struct {
	mu       sync.Mutex
	disks    []*disk
	missing  map[string]bool   // disks, by UUID, that were taken away
	holds    map[string]string // holder -> disk UUID
	log      []string
	acquire  func(snapshotter.LayerRequest) error
	release  error
	lie      func(*snapshotter.HeldLayer)
	requests []snapshotter.LayerRequest
}

var _ snapshotter.LayerSource = (*source)(nil)

func newSource(disks ...*disk) *source {
	return &source{disks: disks, missing: map[string]bool{}, holds: map[string]string{}}
}

func (s *source) Acquire(ctx context.Context, holder string, want snapshotter.LayerRequest) (snapshotter.HeldLayer, error) {
	s.mu.Lock()
	fault := s.acquire
	s.requests = append(s.requests, want)
	s.mu.Unlock()
	if fault != nil {
		if err := fault(want); err != nil {
			return snapshotter.HeldLayer{}, err
		}
	}
	if err := ctx.Err(); err != nil {
		return snapshotter.HeldLayer{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, by := range []struct {
		match layerdisk.Match
		ok    func(layer) bool
	}{
		{layerdisk.MatchChainID, func(l layer) bool { return l.chainID == want.ChainID }},
		{layerdisk.MatchDiffID, func(l layer) bool { return want.DiffID != "" && l.diffID == want.DiffID }},
		{layerdisk.MatchBlob, func(l layer) bool { return want.Blob != "" && l.blobID == want.Blob }},
	} {
		for _, d := range s.disks {
			i := slices.IndexFunc(d.layers, by.ok)
			if i < 0 || s.missing[d.uuid] {
				continue
			}
			s.holds[holder] = d.uuid
			s.log = append(s.log, "acquire")
			held := snapshotter.HeldLayer{
				Dir: d.dir(i), DiskUUID: d.uuid, LayerNumber: i, DiffID: d.layers[i].diffID, MatchedBy: by.match,
				BlobSize: int64(len(d.layers[i].blob)),
			}
			if s.lie != nil {
				s.lie(&held)
			}
			return held, nil
		}
	}
	return snapshotter.HeldLayer{}, fmt.Errorf("no attached disk has chain %s: %w", want.ChainID, errdefs.ErrNotFound)
}

func (s *source) Release(_ context.Context, holder string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.release != nil {
		return s.release
	}
	delete(s.holds, holder)
	s.log = append(s.log, "release")
	return nil
}

func (s *source) LayerDir(_ context.Context, diskUUID string, number int) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.disks {
		if d.uuid == diskUUID && !s.missing[diskUUID] {
			return d.dir(number), nil
		}
	}
	return "", fmt.Errorf("disk %s is not attached: %w", diskUUID, errdefs.ErrUnavailable)
}

// change alters the source between two requests.
func (s *source) change(fn func(*source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fn(s)
}

func (s *source) holders() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.holds)
}

// reconcile does what the stage does after a start: holds are those of the adopted snapshots and no others.
func (s *source) reconcile(t testing.TB, sn *snapshotter.Snapshotter) {
	t.Helper()
	adopted, err := sn.Adopted(t.Context())
	require.NoError(t, err)
	s.change(func(s *source) {
		s.holds = map[string]string{}
		for _, a := range adopted {
			s.holds[a.Holder] = a.DiskUUID
		}
	})
}

// watcher is an observer that remembers.
type watcher struct {
	mu     sync.Mutex
	hits   []snapshotter.Hit
	misses []snapshotter.Miss
	starts []snapshotter.Start
}

func (w *watcher) Start(_ context.Context, s snapshotter.Start) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.starts = append(w.starts, s)
}

func (w *watcher) Hit(_ context.Context, h snapshotter.Hit) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hits = append(w.hits, h)
}

func (w *watcher) Miss(_ context.Context, m snapshotter.Miss) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.misses = append(w.misses, m)
}

// take returns what was seen since the last time.
func (w *watcher) take() (hits []snapshotter.Hit, misses []snapshotter.Miss) {
	w.mu.Lock()
	defer w.mu.Unlock()
	hits, misses, w.hits, w.misses = w.hits, w.misses, nil, nil
	return hits, misses
}

// pick are those layers of an image that go onto a disk.
func pick(im *image, numbers ...int) []layer {
	var out []layer
	for _, n := range numbers {
		out = append(out, im.layers[n])
	}
	return out
}

func digests(layers []layer) []digest.Digest {
	var out []digest.Digest
	for _, l := range layers {
		out = append(out, l.blobID)
	}
	slices.Sort(out)
	return out
}
