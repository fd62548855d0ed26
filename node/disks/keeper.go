// Package disks keeps the layer disks of a node: it attaches those that the configuration names, those that are found
// among the block devices and those that somebody asks for, checks that they answer, and gives up those that are gone.
// Package stage makes each disk usable.
package disks

import (
	"context"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/internal/backoff"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/stage"
)

// These are the waits between attempts to attach a disk.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// StateWaiting is the state of a disk that is wanted and that no attempt has attached yet.
const StateWaiting stage.State = "waiting"

// Stager makes layer disks usable on this node; a *stage.Stager does.
type Stager interface {
	Disks() []stage.DiskStatus
	// Stage returns when the disk serves. Staging a disk again changes nothing.
	Stage(ctx context.Context, spec stage.Spec) (stage.DiskStatus, error)
	// Unstage refuses a disk in use with errdefs.ErrFailedPrecondition. If opts ask to drain it, the disk only stops
	// serving new layers, and holders is the number of snapshots that still use it.
	Unstage(ctx context.Context, name string, opts stage.UnstageOptions) (holders int, err error)
	// Check takes the disk out of service if it does not answer as it did before, and returns why.
	Check(ctx context.Context, name string) error
}

var _ Stager = (*stage.Stager)(nil)

// Disk is a layer disk that is attached or meant to be.
type Disk struct {
	stage.DiskStatus
	// Configured disks are attached at every start.
	Configured bool
}

// Keeper attaches and detaches the node's layer disks. It attaches configured and found disks in the background and
// tries until that succeeds: a disk that is missing or broken must not keep the node from serving. It is safe for
// concurrent use.
type Keeper struct {
	stager Stager
	ledger *events.Ledger
	wg     sync.WaitGroup

	// mu guards all below.
	mu         sync.Mutex
	configured map[string]stage.Spec // awaited or not
	awaited    map[string]*attempt
}

// attempt is the state of a disk that is awaited.
type attempt struct {
	spec stage.Spec
	// found says that the disk was found and that the configuration does not name it.
	found  bool
	since  time.Time
	err    error
	cancel context.CancelFunc
	// refused says that the disk is not tried; err is why.
	refused bool
}

// NewKeeper returns a keeper that attaches nothing yet.
func NewKeeper(stager Stager, ledger *events.Ledger) *Keeper {
	return &Keeper{stager: stager, ledger: ledger, configured: map[string]stage.Spec{}, awaited: map[string]*attempt{}}
}

// List returns the attached and the awaited disks, sorted by name.
func (k *Keeper) List() []Disk {
	attached := k.stager.Disks()
	k.mu.Lock()
	defer k.mu.Unlock()
	var list []Disk
	for _, d := range attached {
		_, configured := k.configured[d.Name]
		if a := k.awaited[d.Name]; a != nil && d.LastError == nil {
			d.LastError = a.err
		}
		list = append(list, Disk{d, configured})
	}
	for name, a := range k.awaited {
		if slices.ContainsFunc(attached, func(d stage.DiskStatus) bool { return d.Name == name }) {
			continue
		}
		list = append(list, Disk{stage.DiskStatus{Name: name, Driver: a.spec.Driver, VolumeID: a.spec.VolumeID,
			VolumeSnapshotID: a.spec.VolumeSnapshotID, State: StateWaiting, Since: a.since, Keep: a.spec.Keep, LastError: a.err}, !a.found})
	}
	slices.SortFunc(list, func(a, b Disk) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// Attach attaches a disk and returns when it serves.
func (k *Keeper) Attach(ctx context.Context, spec stage.Spec) (Disk, error) {
	status, err := k.stager.Stage(ctx, spec)
	if err != nil {
		return Disk{}, err
	}
	k.abandon(spec.Name)
	k.ledger.Record(events.Event{Kind: events.DiskAttached, Disk: status.Name})
	k.mu.Lock()
	defer k.mu.Unlock()
	_, configured := k.configured[status.Name]
	return Disk{status, configured}, nil
}

// Detach detaches a disk, or stops awaiting one that was never attached. It returns the number of snapshots that still
// use a drained disk; 0 means that the disk is detached.
func (k *Keeper) Detach(ctx context.Context, name string, drain bool) (holders int, err error) {
	awaited := k.abandon(name)
	holders, err = k.stager.Unstage(ctx, name, stage.UnstageOptions{Drain: drain})
	if awaited && errdefs.IsNotFound(err) {
		err = nil
	}
	if err != nil {
		return 0, err
	}
	k.ledger.Record(events.Event{Kind: events.DiskDetached, Disk: name})
	return holders, nil
}

// Configure begins to attach the disks and returns at once; those that are configured already stay as they are. The
// attempts end with ctx; Wait returns when all have ended.
func (k *Keeper) Configure(ctx context.Context, specs []stage.Spec) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, spec := range specs {
		if _, ok := k.configured[spec.Name]; ok {
			continue
		}
		k.configured[spec.Name] = spec
		k.begin(ctx, &attempt{spec: spec})
	}
}

// attachFound begins to attach a disk that was found, unless attempts are under way.
func (k *Keeper) attachFound(ctx context.Context, spec stage.Spec) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.awaited[spec.Name]; !ok {
		k.begin(ctx, &attempt{spec: spec, found: true})
	}
}

// begin is called with mu held.
func (k *Keeper) begin(ctx context.Context, a *attempt) {
	ctx, cancel := context.WithCancel(ctx)
	a.since, a.cancel = time.Now(), cancel
	k.awaited[a.spec.Name] = a
	k.wg.Go(func() {
		defer cancel()
		k.keepTrying(ctx, a)
	})
}

// Tries reports whether a disk that is not attached is tried again in the background: one that is awaited, or that was
// attached before.
func (k *Keeper) Tries(name string) bool {
	return k.awaits(name) || slices.ContainsFunc(k.stager.Disks(), func(d stage.DiskStatus) bool { return d.Name == name })
}

// awaits reports whether attempts to attach the disk are under way.
func (k *Keeper) awaits(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, ok := k.awaited[name]
	return ok && !a.refused
}

// Wait returns when no attempts are under way any more.
func (k *Keeper) Wait() { k.wg.Wait() }

func (k *Keeper) keepTrying(ctx context.Context, a *attempt) {
	fields := log.Fields{"disk": a.spec.Name, "volume": a.spec.VolumeID, "found": a.found}
	for failures := 0; ; failures++ {
		_, err := k.stager.Stage(ctx, a.spec)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			k.done(a)
			log.G(ctx).WithFields(fields).Info("awaited disk is attached")
			k.ledger.Record(events.Event{Kind: events.DiskAttached, Disk: a.spec.Name})
			return
		}
		if a.found && errdefs.IsAlreadyExists(err) {
			// The disk serves under another name, which is enough.
			k.done(a)
			log.G(ctx).WithFields(fields).WithError(err).Info("found disk is attached in another way")
			return
		}
		k.failed(a, err)
		wait := backoff.Doubling{First: firstRetry, Most: lastRetry}.After(failures)
		log.G(ctx).WithFields(fields).WithField("retry_in", wait).WithError(err).Warn("awaited disk cannot be attached")
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

func (k *Keeper) done(a *attempt) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.awaited[a.spec.Name] == a {
		delete(k.awaited, a.spec.Name)
	}
}

func (k *Keeper) failed(a *attempt, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a.err = err
}

// abandon ends the attempts to attach a disk and reports whether any were under way.
func (k *Keeper) abandon(name string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, ok := k.awaited[name]
	if ok {
		a.cancel()
		delete(k.awaited, name)
	}
	return ok
}

// foundSpecs returns the specs of the found disks that are awaited.
func (k *Keeper) foundSpecs() []stage.Spec {
	k.mu.Lock()
	defer k.mu.Unlock()
	var specs []stage.Spec
	for _, a := range k.awaited {
		if a.found {
			specs = append(specs, a.spec)
		}
	}
	return specs
}

// refuse lists a found disk with the reason why it is not used, and reports whether that is new.
func (k *Keeper) refuse(spec stage.Spec, reason error) (isNew bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if a := k.awaited[spec.Name]; a != nil {
		if a.refused {
			a.err = reason
		}
		return false
	}
	k.awaited[spec.Name] = &attempt{spec: spec, found: true, since: time.Now(), err: reason, cancel: func() {}, refused: true}
	return true
}

// NameFor derives a disk's name from the ID of its volume or volume snapshot: the last part of a path without its file
// extension, in lower case, with '-' for what a name cannot have.
func NameFor(volumeID string) string {
	base := strings.ToLower(filepath.Base(volumeID))
	if ext := filepath.Ext(base); ext != base {
		base = strings.TrimSuffix(base, ext)
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '_' || r == '-' {
			return r
		}
		return '-'
	}, base)
	return strings.Trim(name[:min(len(name), 64)], ".-_")
}
