package disks_test

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/stage"
)

// fakeStager has disks in memory; each volume in faults fails that often before it attaches.
type fakeStager struct {
	mu     sync.Mutex
	disks  map[string]stage.DiskStatus
	faults map[string]int
	// exists makes every disk be attached already, in another way.
	exists bool
	// stuck is a disk whose Unstage never ends by itself.
	stuck string
	log   []string
}

var _ disks.Stager = (*fakeStager)(nil)

func newFakeStager() *fakeStager {
	return &fakeStager{disks: map[string]stage.DiskStatus{}, faults: map[string]int{}}
}

func newKeeper(f *fakeStager) (*disks.Keeper, *events.Ledger) {
	ledger := events.NewLedger()
	return disks.NewKeeper(f, ledger), ledger
}

func (f *fakeStager) Disks() []stage.DiskStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []stage.DiskStatus
	for _, d := range f.disks {
		all = append(all, d)
	}
	return all
}

func (f *fakeStager) Stage(ctx context.Context, s stage.Spec) (stage.DiskStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, "attach "+s.Name)
	if f.faults[s.VolumeID] != 0 {
		f.faults[s.VolumeID]--
		return stage.DiskStatus{}, fmt.Errorf("volume %s is not there: %w", s.VolumeID, errdefs.ErrUnavailable)
	}
	if f.exists {
		return stage.DiskStatus{}, fmt.Errorf("the same layer disk is staged: %w", errdefs.ErrAlreadyExists)
	}
	d := stage.DiskStatus{Name: s.Name, Driver: s.Driver, VolumeID: s.VolumeID, Keep: s.Keep, State: stage.StateIdle, Serving: true, Layers: 3,
		IndexDigest: s.Expect.IndexDigest}
	f.disks[s.Name] = d
	return d, ctx.Err()
}

func (f *fakeStager) Unstage(ctx context.Context, name string, opts stage.UnstageOptions) (int, error) {
	if name == f.stuck {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf("detach %s %v", name, opts.Drain))
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

// Check takes a disk out of service if its volume has faults.
func (f *fakeStager) Check(_ context.Context, name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	d, ok := f.disks[name]
	if !ok || f.faults[d.VolumeID] == 0 {
		return nil
	}
	d.State, d.Serving = stage.StateFailed, false
	f.disks[name] = d
	return errors.New("input/output error")
}

func (f *fakeStager) change(name string, change func(*stage.DiskStatus)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.disks[name]
	change(&d)
	f.disks[name] = d
}

func (f *fakeStager) fault(volume string, times int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults[volume] = times
}

func (f *fakeStager) took() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	log := f.log
	f.log = nil
	return log
}
