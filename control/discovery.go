package control

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"
)

// FoundDisk is a layer disk among the node's block devices.
type FoundDisk struct {
	// Driver and VolumeID attach it.
	Driver, VolumeID string
	UUID             string
	IndexDigest      digest.Digest
	// Device it is on; Others have the very same disk and are not used.
	Device string
	Others []string
}

// name is stable: it comes from the disk and not from where it is.
func (f FoundDisk) name() string {
	short := strings.ReplaceAll(f.UUID, "-", "")
	return "found-" + short[:min(len(short), 12)]
}

// Checker asks disks whether they still answer.
type Checker interface {
	Disks
	// Check takes the disk out of service if it does not answer as it did; that is the error.
	Check(ctx context.Context, name string) error
}

// Discovery has every disk that is found attached and kept, and gives up those that have gone and that nothing uses. A
// disk that is detached by hand stays so until it goes and comes again, or the daemon starts again. Found may be called
// by any goroutine, Run is called once.
type Discovery struct {
	disks   Checker
	waiting *Waiting
	ledger  *Ledger
	kick    chan struct{}

	// mu guards found, which is nil until the first look.
	mu    sync.Mutex
	found map[string]FoundDisk

	// taken are the volumes that are there and were begun to attach, or are attached in another way. Only Run uses it.
	taken map[string]bool
}

// NewDiscovery attaches nothing before Run.
func NewDiscovery(disks Checker, waiting *Waiting, ledger *Ledger) *Discovery {
	return &Discovery{disks: disks, waiting: waiting, ledger: ledger, kick: make(chan struct{}, 1), taken: map[string]bool{}}
}

// Found says what is there now, all of it.
func (d *Discovery) Found(all []FoundDisk) {
	found := make(map[string]FoundDisk, len(all))
	for _, f := range all {
		found[f.VolumeID] = f
	}
	d.mu.Lock()
	d.found = found
	d.mu.Unlock()
	select {
	case d.kick <- struct{}{}:
	default:
	}
}

// lookAgain is how often what is found and what is attached are compared without a reason: a disk that failed and whose
// last user has gone is given up by then.
const lookAgain = 10 * time.Second

// Run compares what is found with what is attached, until ctx ends.
func (d *Discovery) Run(ctx context.Context) {
	ticker := time.NewTicker(lookAgain)
	defer ticker.Stop()
	for {
		changed := false
		select {
		case <-ctx.Done():
			return
		case <-d.kick:
			changed = true
		case <-ticker.C:
		}
		if err := d.compare(ctx, changed); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).Error("cannot compare found disks with attached ones")
		}
	}
}

func (d *Discovery) compare(ctx context.Context, changed bool) error {
	d.mu.Lock()
	found := d.found
	d.mu.Unlock()
	if found == nil {
		return nil // nothing is known before the first look
	}
	list, err := d.disks.List(ctx)
	if err != nil {
		return err
	}
	if changed {
		// Whatever has come or gone may be what a disk is on: ask before somebody finds out by an error.
		for _, disk := range list {
			if disk.Serving {
				_ = d.disks.Check(ctx, disk.Name) // it says so itself
			}
		}
		if list, err = d.disks.List(ctx); err != nil {
			return err
		}
	}
	d.giveUp(ctx, list, found)
	for _, f := range sorted(found) {
		d.take(ctx, f, list)
	}
	return nil
}

func sorted(found map[string]FoundDisk) []FoundDisk {
	all := make([]FoundDisk, 0, len(found))
	for _, f := range found {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b FoundDisk) int { return cmp.Compare(a.VolumeID, b.VolumeID) })
	return all
}

// stateFailed is the stage's word for a disk that should serve and does not.
const stateFailed = "failed"

// take has a found disk attached, if it is not and was not.
func (d *Discovery) take(ctx context.Context, f FoundDisk, list []Disk) {
	spec := DiskSpec{Name: f.name(), Driver: f.Driver, VolumeID: f.VolumeID, Keep: true, Expect: f.IndexDigest}
	for _, disk := range list {
		same := disk.Driver == f.Driver && disk.VolumeID == f.VolumeID
		if !same && disk.UUID != f.UUID {
			continue
		}
		if d.waiting.tried(spec.Name) {
			return
		}
		d.taken[f.VolumeID] = true
		if same && disk.State == stateFailed {
			// It has come back, or can be read again: better now than at the next attempt of the stage.
			spec.Name, spec.Keep = disk.Name, disk.Keep
			d.waiting.attachFound(ctx, spec)
		}
		return
	}
	if d.taken[f.VolumeID] {
		return
	}
	d.taken[f.VolumeID] = true
	entry := log.G(ctx).WithFields(log.Fields{"disk": spec.Name, "uuid": f.UUID, "index": f.IndexDigest, "device": f.Device})
	if len(f.Others) > 0 {
		entry.WithField("others", f.Others).Warn("several devices have the same layer disk, one of them is used")
	} else {
		entry.Info("layer disk found")
	}
	d.waiting.attachFound(ctx, spec)
}

// giveUp forgets what is no longer there: attempts to attach it, and disks that nothing uses.
func (d *Discovery) giveUp(ctx context.Context, list []Disk, found map[string]FoundDisk) {
	for volume := range d.taken {
		if _, ok := found[volume]; !ok {
			delete(d.taken, volume)
		}
	}
	for _, spec := range d.waiting.foundSpecs() {
		if _, ok := found[spec.VolumeID]; !ok {
			d.waiting.remove(spec.Name)
		}
	}
	for _, disk := range list {
		_, there := found[disk.VolumeID]
		// The stage keeps a disk that is in use, to have it back as soon as it is there.
		if there || disk.State != stateFailed || disk.Holders > 0 || disk.Name != (FoundDisk{UUID: disk.UUID}).name() {
			continue
		}
		if err := d.detach(ctx, disk.Name); err != nil {
			log.G(ctx).WithError(err).WithField("disk", disk.Name).Warn("found disk has gone and cannot be given up, it is tried again")
			continue
		}
		log.G(ctx).WithField("disk", disk.Name).Info("found disk has gone")
		d.ledger.record(Event{Kind: DiskDetached, Disk: disk.Name, Detail: "its device has gone"})
	}
}

// giveUpWait bounds giving up one disk: whatever still reads from it may hang with it, and disks that come meanwhile
// are not to wait. The stage goes on with what was begun.
const giveUpWait = time.Minute

func (d *Discovery) detach(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, giveUpWait)
	defer cancel()
	_, err := d.disks.Detach(ctx, name, false)
	return err
}

// checkEvery is how soon a disk that fails is noticed that no pull asks for.
const checkEvery = 30 * time.Second

// KeepChecking asks every disk that serves now and then whether it still answers, until ctx ends: a disk may fail
// without its device going away, and containers that run from it get errors without anybody asking for a layer.
func KeepChecking(ctx context.Context, disks Checker) {
	ticker := time.NewTicker(checkEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		list, err := disks.List(ctx)
		if err != nil {
			log.G(ctx).WithError(err).Error("cannot check disks")
			continue
		}
		for _, disk := range list {
			if disk.Serving {
				_ = disks.Check(ctx, disk.Name) // it says so itself
			}
		}
	}
}
