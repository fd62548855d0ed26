package control_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/control"
	"berth.dev/berth/layerdisk"
)

// fakeStage has disks in memory; each volume in faults fails that often before it attaches.
type fakeStage struct {
	mu     sync.Mutex
	disks  map[string]control.Disk
	faults map[string]int
	// exists makes every disk be attached already, in another way.
	exists bool
	// stuck is a disk whose Detach never ends by itself.
	stuck  string
	log    []string
	layers map[digest.Digest]control.Location
	images map[string]control.Image
}

var (
	_ control.Checker = (*fakeStage)(nil)
	_ control.Layers  = (*fakeStage)(nil)
)

func newFakeStage() *fakeStage {
	return &fakeStage{disks: map[string]control.Disk{}, faults: map[string]int{},
		layers: map[digest.Digest]control.Location{}, images: map[string]control.Image{}}
}

func (f *fakeStage) List(context.Context) ([]control.Disk, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []control.Disk
	for _, d := range f.disks {
		all = append(all, d)
	}
	return all, nil
}

func (f *fakeStage) Attach(ctx context.Context, s control.DiskSpec) (control.Disk, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, "attach "+s.Name)
	if f.faults[s.VolumeID] != 0 {
		f.faults[s.VolumeID]--
		return control.Disk{}, fmt.Errorf("volume %s is not there: %w", s.VolumeID, errdefs.ErrUnavailable)
	}
	if f.exists {
		return control.Disk{}, fmt.Errorf("the same layer disk is staged: %w", errdefs.ErrAlreadyExists)
	}
	d := control.Disk{Name: s.Name, Driver: s.Driver, VolumeID: s.VolumeID, Keep: s.Keep, State: "idle", Serving: true, Layers: 3,
		IndexDigest: s.Expect}
	f.disks[s.Name] = d
	return d, ctx.Err()
}

func (f *fakeStage) Detach(ctx context.Context, name string, drain bool) (int, error) {
	if name == f.stuck {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf("detach %s %v", name, drain))
	d, ok := f.disks[name]
	switch {
	case !ok:
		return 0, fmt.Errorf("no such disk: %w", errdefs.ErrNotFound)
	case d.Holders > 0 && !drain:
		return d.Holders, fmt.Errorf("%d snapshots use it: %w", d.Holders, errdefs.ErrFailedPrecondition)
	case d.Holders > 0:
		return d.Holders, nil
	}
	delete(f.disks, name)
	return 0, nil
}

func (f *fakeStage) Locate(_ context.Context, l layerdisk.LayerName) (control.Location, error) {
	if loc, ok := f.layers[l.ChainID]; ok {
		return loc, nil
	}
	return control.Location{}, fmt.Errorf("no disk has the layer: %w", errdefs.ErrNotFound)
}

func (f *fakeStage) FindImage(_ context.Context, ref string, _ ocispec.Platform) (control.Image, error) {
	if img, ok := f.images[ref]; ok {
		return img, nil
	}
	return control.Image{}, fmt.Errorf("no disk has it: %w", errdefs.ErrNotFound)
}

func newService(t *testing.T, f *fakeStage) (*control.Service, *control.Waiting, *control.Ledger) {
	t.Helper()
	ledger := control.NewLedger()
	waiting := control.NewWaiting(f, ledger)
	node := control.Node{Version: "v1.2.3", PID: 42, Started: time.Unix(1700000000, 0), Root: "/var/lib/berth"}
	s := control.NewService(node, f, f, waiting, ledger)
	require.NotNil(t, s)
	return s, waiting, ledger
}
