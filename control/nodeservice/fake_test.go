package nodeservice_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/control/nodeservice"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/stage"
)

// fakeStager has disks, layers and images in memory; the volumes in gone cannot be attached.
type fakeStager struct {
	mu     sync.Mutex
	disks  map[string]stage.DiskStatus
	gone   map[string]bool
	layers map[digest.Digest]stage.Held
	images map[string][]stage.FoundImage
}

var (
	_ disks.Stager       = (*fakeStager)(nil)
	_ nodeservice.Layers = (*fakeStager)(nil)
)

func (f *fakeStager) Disks() []stage.DiskStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Values(f.disks))
}

func (f *fakeStager) Stage(_ context.Context, s stage.Spec) (stage.DiskStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.gone[s.VolumeID] {
		return stage.DiskStatus{}, fmt.Errorf("volume %s is not there: %w", s.VolumeID, errdefs.ErrUnavailable)
	}
	d := stage.DiskStatus{Name: s.Name, Driver: s.Driver, VolumeID: s.VolumeID, VolumeSnapshotID: s.VolumeSnapshotID, Keep: s.Keep,
		State: stage.StateIdle, Serving: true, Layers: 3, IndexDigest: s.Expect.IndexDigest}
	f.disks[s.Name] = d
	return d, nil
}

func (f *fakeStager) Unstage(_ context.Context, name string, opts stage.UnstageOptions) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, ok := f.disks[name]
	switch {
	case !ok:
		return 0, fmt.Errorf("no such disk: %w", errdefs.ErrNotFound)
	case d.Holders > 0 && !opts.Drain:
		return d.Holders, fmt.Errorf("%d snapshots use it: %w", d.Holders, errdefs.ErrFailedPrecondition)
	case d.Holders > 0:
		return d.Holders, nil
	}
	delete(f.disks, name)
	return 0, nil
}

func (f *fakeStager) Check(context.Context, string) error { return nil }

func (f *fakeStager) Locate(q layerdisk.LayerName) (stage.Held, error) {
	if held, ok := f.layers[q.ChainID]; ok {
		return held, nil
	}
	return stage.Held{}, fmt.Errorf("no disk has the layer: %w", errdefs.ErrNotFound)
}

func (f *fakeStager) Images(ref string, platform platforms.Matcher) []stage.FoundImage {
	var found []stage.FoundImage
	for _, img := range f.images[ref] {
		if platform.Match(img.Image.Platform) {
			found = append(found, img)
		}
	}
	return found
}

// image on a disk, whose manifest is its own platform.
func image(t *testing.T, disk, platform string) stage.FoundImage {
	t.Helper()
	p, err := platforms.Parse(platform)
	require.NoError(t, err)
	return stage.FoundImage{DiskName: disk, Image: layerdisk.Image{Platform: p, RawManifest: []byte(platform), RawConfig: []byte("config")}}
}

func newService(t *testing.T, change ...func(*nodeservice.Config)) (*nodeservice.Service, *fakeStager, *events.Ledger) {
	t.Helper()
	f := &fakeStager{disks: map[string]stage.DiskStatus{}, gone: map[string]bool{},
		layers: map[digest.Digest]stage.Held{}, images: map[string][]stage.FoundImage{}}
	ledger := events.NewLedger()
	cfg := nodeservice.Config{
		Node:  nodeservice.Node{Version: "v1.2.3", PID: 42, Started: time.Unix(1700000000, 0), Root: "/var/lib/berth"},
		Disks: disks.NewKeeper(f, ledger), Layers: f, Ledger: ledger,
	}
	for _, c := range change {
		c(&cfg)
	}
	return nodeservice.New(cfg), f, ledger
}
