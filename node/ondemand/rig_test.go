package ondemand_test

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/catalogtest"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/matcher"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/node/stage"
)

// fakeStage is a stage without disks: what is staged serves the index that the test gave it for the source.
type fakeStage struct {
	delay time.Duration

	mu      sync.Mutex
	fail    error
	bad     map[string]error             // by volume or volume snapshot
	sources map[string]*layerdisk.Lookup // by volume or volume snapshot
	disks   map[string]*stage.DiskStatus
	serves  map[string]*layerdisk.Lookup
	// staged and unstaged are the names in the order of the calls.
	staged, unstaged, drained []string
	most                      int
}

func (f *fakeStage) Stage(ctx context.Context, spec stage.Spec) (stage.DiskStatus, error) {
	f.mu.Lock()
	f.staged = append(f.staged, spec.Name)
	f.disks[spec.Name] = &stage.DiskStatus{Name: spec.Name, State: stage.StateAttaching}
	f.most = max(f.most, len(f.disks))
	fail := cmp.Or(f.fail, f.bad[spec.VolumeID+spec.VolumeSnapshotID])
	f.mu.Unlock()
	select {
	case <-time.After(f.delay):
	case <-ctx.Done():
		fail = ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if fail != nil {
		delete(f.disks, spec.Name)
		return stage.DiskStatus{}, fail
	}
	f.serves[spec.Name] = f.sources[spec.VolumeID+spec.VolumeSnapshotID]
	d := f.disks[spec.Name]
	d.State, d.UUID, d.IdleSince, d.Serving = stage.StateIdle, spec.Expect.UUID, time.Now(), true
	d.ImageSnapshot = spec.ImageSnapshot
	return *d, nil
}

func (f *fakeStage) Unstage(_ context.Context, name string, opts stage.UnstageOptions) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.disks[name]
	switch {
	case d == nil:
		return 0, fmt.Errorf("no disk %s: %w", name, errdefs.ErrNotFound)
	case d.Holders > 0 && opts.Drain:
		f.drained = append(f.drained, name)
		d.State = stage.StateDraining
		delete(f.serves, name)
		return d.Holders, nil
	case d.Holders > 0:
		return d.Holders, fmt.Errorf("disk %s is used: %w", name, errdefs.ErrFailedPrecondition)
	}
	f.unstaged = append(f.unstaged, name)
	delete(f.disks, name)
	delete(f.serves, name)
	return 0, nil
}

func (f *fakeStage) Disks() []stage.DiskStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []stage.DiskStatus
	for _, d := range f.disks {
		list = append(list, *d)
	}
	return list
}

func (f *fakeStage) Locate(q layerdisk.LayerName) (stage.Held, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, l := range f.serves {
		if _, _, ok := l.Chain(q.ChainID); ok {
			return stage.Held{DiskName: name, DiskUUID: f.disks[name].UUID}, nil
		}
	}
	return stage.Held{}, fmt.Errorf("not here: %w", errdefs.ErrNotFound)
}

// change the disk of an image snapshot.
func (f *fakeStage) change(name string, change func(*stage.DiskStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.disks[name])
}

func (f *fakeStage) names() (staged, unstaged, drained []string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string{}, f.staged...), append([]string{}, f.unstaged...), append([]string{}, f.drained...)
}

// feed is a catalog that the test drives.
type feed chan catalog.Change

func (f feed) Watch(context.Context) (<-chan catalog.Change, error) { return f, nil }

// counts observes.
type counts struct {
	mu       sync.Mutex
	outcomes map[ondemand.Outcome]int
	results  map[ondemand.Result]int
	// unmatched are the images.
	unmatched []string
	// credited are the IDs in the order of the calls.
	credited []string
}

func (c *counts) Unmatched(w ondemand.Wanted) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unmatched = append(c.unmatched, w.ImageRef)
}

func (c *counts) Chosen(o ondemand.Outcome, d matcher.Decision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, choice := range d.Chosen {
		c.credited = append(c.credited, choice.ID)
	}
	c.outcomes[o]++
}

func (c *counts) Attached(r ondemand.Result, _ time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.results[r]++
}

// rig is a chooser with all around it. It is for use in a synctest bubble.
type rig struct {
	*testing.T
	*ondemand.Chooser
	stage *fakeStage
	feed  feed
	counts
	entries map[string]catalog.Entry
}

func newRig(t *testing.T, change func(*ondemand.Config)) *rig {
	t.Helper()
	r := &rig{T: t, feed: make(feed), entries: map[string]catalog.Entry{}, stage: &fakeStage{
		delay: time.Second, sources: map[string]*layerdisk.Lookup{}, disks: map[string]*stage.DiskStatus{}, bad: map[string]error{}, serves: map[string]*layerdisk.Lookup{},
	}}
	r.outcomes, r.results = map[ondemand.Outcome]int{}, map[ondemand.Result]int{}
	cfg := ondemand.Config{Stage: r.stage, Drivers: []string{"loop"}, Wait: 5 * time.Second,
		Platform: matcher.Platform{OS: "linux", Architecture: "amd64"}, Observer: &r.counts}
	if change != nil {
		change(&cfg)
	}
	var err error
	r.Chooser, err = ondemand.New(context.Background(), cfg)
	require.NoError(t, err)
	ended := make(chan error, 1)
	go func() { ended <- r.Follow(context.Background(), r.feed, func() {}) }()
	t.Cleanup(func() {
		close(r.feed)
		require.NoError(t, <-ended)
		require.NoError(t, r.Close())
	})
	return r
}

// add an image snapshot with one image of these layers, named after it.
func (r *rig) add(id string, layers ...string) catalog.Entry {
	r.Helper()
	e := catalogtest.Entry(r, id, layerdisktest.Image{Reference: ref(id), Layers: layers})
	ix, _, err := e.Parse()
	require.NoError(r, err)
	r.stage.mu.Lock()
	r.stage.sources[e.Source.VolumeSnapshotID] = layerdisk.NewLookup(ix)
	r.stage.mu.Unlock()
	r.publish(e)
	return e
}

// publish returns when the entry is known: the second message is taken only then.
func (r *rig) publish(e catalog.Entry) {
	r.feed <- catalog.Change{Entry: &e}
	r.feed <- catalog.Change{Synced: true}
}

func ref(id string) string { return "registry.example/" + id + ":1" }

// want is what a pull of an image of these layers asks for at its lowest one.
func want(id string, layers ...string) ondemand.Wanted {
	chain := layerdisktest.ChainID(layers[0])
	w := ondemand.Wanted{LayerName: layerdisk.LayerName{ChainID: chain, DiffID: chain, Blob: layerdisktest.BlobDigest(layers[0])}, ImageRef: ref(id)}
	for _, l := range layers[1:] {
		w.Above = append(w.Above, layerdisktest.BlobDigest(l))
	}
	return w
}

// pull returns how long it took.
func (r *rig) pull(w ondemand.Wanted) time.Duration {
	start := time.Now()
	if _, err := r.stage.Locate(w.LayerName); err != nil {
		r.Ready(context.Background(), w)
	}
	return time.Since(start)
}
