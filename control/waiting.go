package control

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Waits between attempts to attach a configured disk.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// StateWaiting is the state of a configured disk that is not attached yet.
const StateWaiting = "waiting"

// Waiting attaches the disks that the configuration names, and those that were found, in the background and as often as
// it takes: a disk that is missing or broken must not keep the node from serving. It is safe for concurrent use.
type Waiting struct {
	disks  Disks
	ledger *Ledger
	wg     sync.WaitGroup

	// mu guards all below.
	mu    sync.Mutex
	names map[string]DiskSpec // configured, waited for or not
	todo  map[string]*attempt
}

// attempt is the state of a disk that is waited for.
type attempt struct {
	spec DiskSpec
	// found says that it is not the configuration that names the disk.
	found  bool
	since  time.Time
	err    error
	cancel context.CancelFunc
}

// NewWaiting waits for nothing yet.
func NewWaiting(disks Disks, ledger *Ledger) *Waiting {
	return &Waiting{disks: disks, ledger: ledger, names: map[string]DiskSpec{}, todo: map[string]*attempt{}}
}

// Attach begins to attach the disks and returns at once; those that are configured already stay as they are. It ends
// with ctx; Wait returns when all has ended.
func (w *Waiting) Attach(ctx context.Context, specs []DiskSpec) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, spec := range specs {
		if _, ok := w.names[spec.Name]; ok {
			continue
		}
		w.names[spec.Name] = spec
		w.begin(ctx, &attempt{spec: spec})
	}
}

// attachFound begins to attach a disk that was found, unless that is being tried.
func (w *Waiting) attachFound(ctx context.Context, spec DiskSpec) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.todo[spec.Name]; !ok {
		w.begin(ctx, &attempt{spec: spec, found: true})
	}
}

// begin is called with mu held.
func (w *Waiting) begin(ctx context.Context, a *attempt) {
	ctx, cancel := context.WithCancel(ctx)
	a.since, a.cancel = time.Now(), cancel
	w.todo[a.spec.Name] = a
	w.wg.Go(func() {
		defer cancel()
		w.keepTrying(ctx, a)
	})
}

// tried says whether the disk is being waited for.
func (w *Waiting) tried(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.todo[name]
	return ok
}

// Wait returns when nothing is tried any more.
func (w *Waiting) Wait() { w.wg.Wait() }

func (w *Waiting) keepTrying(ctx context.Context, a *attempt) {
	fields := log.Fields{"disk": a.spec.Name, "volume": a.spec.VolumeID, "found": a.found}
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		_, err := w.disks.Attach(ctx, a.spec)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			w.done(a)
			log.G(ctx).WithFields(fields).Info("awaited disk attached")
			w.ledger.record(Event{Kind: DiskAttached, Disk: a.spec.Name})
			return
		}
		if a.found && errdefs.IsAlreadyExists(err) {
			// It serves under another name, which is all that is wanted.
			w.done(a)
			log.G(ctx).WithFields(fields).WithError(err).Info("found disk is attached in another way")
			return
		}
		w.failed(a, err)
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

func (w *Waiting) done(a *attempt) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.todo[a.spec.Name] == a {
		delete(w.todo, a.spec.Name)
	}
}

func (w *Waiting) failed(a *attempt, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	a.err = err
}

// remove stops waiting for a disk and says whether it was waited for.
func (w *Waiting) remove(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	a, ok := w.todo[name]
	if ok {
		a.cancel()
		delete(w.todo, name)
	}
	return ok
}

// foundSpecs are the found disks that are being tried.
func (w *Waiting) foundSpecs() []DiskSpec {
	w.mu.Lock()
	defer w.mu.Unlock()
	var specs []DiskSpec
	for _, a := range w.todo {
		if a.found {
			specs = append(specs, a.spec)
		}
	}
	return specs
}

func (w *Waiting) configured(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.names[name]
	return ok
}

// merge marks the configured disks among the given ones and adds those that are waited for.
func (w *Waiting) merge(disks []Disk) []Disk {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range disks {
		_, disks[i].Configured = w.names[disks[i].Name]
	}
	for name, a := range w.todo {
		i := slices.IndexFunc(disks, func(d Disk) bool { return d.Name == name })
		if i < 0 {
			disks = append(disks, Disk{Name: name, Driver: a.spec.Driver, VolumeID: a.spec.VolumeID, SnapshotID: a.spec.SnapshotID,
				State: StateWaiting, Since: a.since, Keep: a.spec.Keep, Configured: !a.found})
			i = len(disks) - 1
		}
		if a.err != nil && disks[i].LastError == "" {
			disks[i].LastError = a.err.Error()
		}
	}
	return disks
}
