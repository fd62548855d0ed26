package blockdevtest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"berth.dev/berth/blockdev"
)

// Action is one call of a Fake.
type Action struct {
	// Call counts all calls from 1.
	Call int
	// Op is the method's name, Object the ID or name it was about, empty for lists.
	Op, Object string
	// Err is what it answered.
	Err error
}

// Fault makes calls of a Fake fail.
type Fault struct {
	// Op to fail; empty is every one.
	Op string
	// Call, if not 0, is the one call that fails, counted over all calls from 1. Otherwise Times calls fail, and 0 is
	// all of them.
	Call, Times int
	Err         error
	// Done says that the operation is done all the same, and only its answer lost.
	Done bool
}

// Fake is a driver in memory. Its devices are paths that no kernel knows: OpenDevice opens them. It is its own storage,
// so a restart of a process is to go on with the same Fake.
type Fake struct {
	maxAttachments int

	// mu guards what follows.
	mu sync.Mutex
	cloud
	faults  []Fault
	actions []Action
	calls   int
	hook    func(ctx context.Context, a Action) error
	wrong   Misbehaviour
	rolls   map[string]uint64
	tokens  map[string]tokens
}

// cloud is what there is, whether calls see it or not.
type cloud struct {
	volumes   map[string]*fakeVolume
	snapshots map[string]*fakeSnapshot
	attached  map[string]*fakeDevice
	// inUse are devices that are gone and still used: their names are not given again.
	inUse map[*fakeDevice]bool
	// madeVolumes counts volumes, made everything else.
	madeVolumes, made int
}

var (
	_ blockdev.Attacher          = (*Fake)(nil)
	_ blockdev.Provisioner       = (*Fake)(nil)
	_ blockdev.VolumeSnapshotter = (*Fake)(nil)
)

// NewFake makes an empty fake. maxAttachments of 0 is no limit.
func NewFake(maxAttachments int) *Fake {
	return &Fake{
		maxAttachments: maxAttachments,
		cloud: cloud{
			volumes:   make(map[string]*fakeVolume),
			snapshots: make(map[string]*fakeSnapshot),
			attached:  make(map[string]*fakeDevice),
			inUse:     make(map[*fakeDevice]bool),
		},
		rolls:  make(map[string]uint64),
		tokens: make(map[string]tokens),
	}
}

// Plan replaces the faults to come and begins to count calls from 1 again. The first fault that fits a call is taken.
func (f *Fake) Plan(faults ...Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.faults, f.calls = faults, 0
}

// OnCall calls hook before each operation, without any lock, to make it slow or fail. Nil ends that.
func (f *Fake) OnCall(hook func(ctx context.Context, a Action) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// Actions are the calls so far, in the order of their ends: all of them, unless there were very many.
func (f *Fake) Actions() []Action {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.actions)
}

// do runs one operation under the lock, with the faults planned for it and as badly as the cloud behaves.
func (f *Fake) do(ctx context.Context, op, object string, operation func() error) error {
	f.mu.Lock()
	f.calls++
	a := Action{Call: f.calls, Op: op, Object: object}
	hook, latency := f.hook, f.draw(f.wrong.Latency, "latency "+op, object)
	f.mu.Unlock()

	if hook != nil {
		a.Err = hook(ctx, a)
	}
	if a.Err == nil {
		a.Err = pause(ctx, latency/2)
	}
	f.mu.Lock()
	if a.Err == nil {
		a.Err = ctx.Err()
	}
	if a.Err == nil {
		f.finish(time.Now())
		fault := f.fault(a)
		if fault.Err == nil || fault.Done {
			a.Err = f.perform(a, operation)
		}
		if fault.Err != nil {
			a.Err = fault.Err
		}
	}
	f.mu.Unlock()
	if a.Err == nil {
		a.Err = pause(ctx, latency/2)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.actions = append(f.actions, a)
	if len(f.actions) > maxActions {
		f.actions = slices.Delete(f.actions, 0, maxActions/2)
	}
	if a.Err != nil {
		return fmt.Errorf("%s %s: %w", op, object, a.Err)
	}
	return nil
}

// maxActions bounds the memory of tests of many steps.
const maxActions = 1 << 16

// fault finds the fault of a call and uses it up.
func (f *Fake) fault(a Action) Fault {
	for i, fault := range f.faults {
		if fault.Op != "" && fault.Op != a.Op || fault.Call != 0 && fault.Call != a.Call {
			continue
		}
		if fault.Times > 0 {
			f.faults[i].Times--
			if f.faults[i].Times == 0 {
				f.faults = slices.Delete(slices.Clone(f.faults), i, i+1)
			}
		}
		return fault
	}
	return Fault{}
}

// Properties of the fake: it can do everything.
func (f *Fake) Properties() blockdev.Properties {
	return blockdev.Properties{MaxAttachments: f.maxAttachments, ReadOnlyAttach: true, VolumeSnapshots: true}
}
