package disks

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/stage"
)

// Found is a layer disk among the node's block devices.
type Found struct {
	// Driver and VolumeID attach it.
	Driver, VolumeID string
	UUID             string
	IndexDigest      digest.Digest
	// Device has the disk. Others are devices that have the same disk; they are not used.
	Device string
	Others []string
}

// name is stable: it comes from the disk and not from where it is.
func (f Found) name() string {
	short := strings.ReplaceAll(f.UUID, "-", "")
	return "found-" + short[:min(len(short), 12)]
}

// nameByIndex names a disk whose UUID another disk has too.
func (f Found) nameByIndex() string {
	short := f.IndexDigest.Encoded()
	return "found-" + short[:min(len(short), 12)]
}

// Discovery attaches and keeps every disk that is found, and gives up disks that are gone and unused. A disk that was
// detached by hand stays detached until it goes and comes again, or the daemon starts again. Any goroutine may call
// Update; Run is called once.
type Discovery struct {
	stager Stager
	keeper *Keeper
	ledger *events.Ledger
	kick   chan struct{}

	// mu guards found, which is nil until the first look.
	mu    sync.Mutex
	found map[string]Found

	// taken has the volumes that are there and that attaching was begun for, or that are attached in another way. Only
	// Run uses it.
	taken map[string]bool
}

// NewDiscovery makes a discovery that attaches through the keeper. It does nothing before Run.
func NewDiscovery(keeper *Keeper) *Discovery {
	return &Discovery{stager: keeper.stager, keeper: keeper, ledger: keeper.ledger, kick: make(chan struct{}, 1), taken: map[string]bool{}}
}

// Update takes all disks that are there now.
func (d *Discovery) Update(all []Found) {
	found := make(map[string]Found, len(all))
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

// lookAgain is how often Run compares the found disks with the attached ones when no change was reported. By then it
// gives up a disk that failed and whose last user is gone.
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
		d.compare(ctx, changed)
	}
}

func (d *Discovery) compare(ctx context.Context, changed bool) {
	d.mu.Lock()
	found := d.found
	d.mu.Unlock()
	if found == nil {
		return // nothing is known before the first look
	}
	if changed {
		// A device that came or went may be one that a disk is on: check before somebody finds out by an error.
		check(ctx, d.stager)
	}
	list := d.stager.Disks()
	d.giveUp(ctx, list, found)
	all := sorted(found)
	for _, f := range all {
		if reason := rival(f, all, list); reason != nil {
			d.refuse(ctx, f, reason)
			continue
		}
		d.keeper.abandon(f.nameByIndex()) // if it was refused before
		d.take(ctx, f, list)
	}
}

func sorted(found map[string]Found) []Found {
	all := make([]Found, 0, len(found))
	for _, f := range found {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b Found) int { return cmp.Compare(a.VolumeID, b.VolumeID) })
	return all
}

// rival says why a found disk cannot be used: another disk has the same UUID but another index, and layers in use are
// remembered by UUID. The attached disk keeps the UUID, else the first by volume ID, so that all nodes choose alike.
func rival(f Found, all []Found, list []stage.DiskStatus) error {
	refusal := func(by string, index digest.Digest) error {
		return fmt.Errorf("%s has the same UUID %s and another index, %s: detach one of the two, or build one anew: %w",
			by, f.UUID, index, errdefs.ErrAlreadyExists)
	}
	attached := slices.IndexFunc(list, func(disk stage.DiskStatus) bool { return disk.UUID == f.UUID && disk.IndexDigest != "" })
	if attached >= 0 {
		if disk := list[attached]; disk.IndexDigest != f.IndexDigest {
			return refusal("disk "+disk.Name, disk.IndexDigest)
		}
		return nil
	}
	first := all[slices.IndexFunc(all, func(other Found) bool { return other.UUID == f.UUID })]
	if first.IndexDigest != f.IndexDigest {
		return refusal("the layer disk on "+first.Device, first.IndexDigest)
	}
	return nil
}

// refuse shows a disk that is not used, and logs the reason once.
func (d *Discovery) refuse(ctx context.Context, f Found, reason error) {
	spec := stage.Spec{Name: f.nameByIndex(), Driver: f.Driver, VolumeID: f.VolumeID, Keep: true}
	if d.keeper.refuse(spec, reason) {
		log.G(ctx).WithError(reason).WithFields(log.Fields{"disk": spec.Name, "device": f.Device, "index": f.IndexDigest}).
			Warn("found layer disk is not used")
	}
}

// take begins to attach a found disk, unless it is attached or was before.
func (d *Discovery) take(ctx context.Context, f Found, list []stage.DiskStatus) {
	spec := stage.Spec{Name: f.name(), Driver: f.Driver, VolumeID: f.VolumeID, Keep: true,
		Expect: layerdisk.Identity{IndexDigest: f.IndexDigest}}
	for _, disk := range list {
		same := disk.Driver == f.Driver && disk.VolumeID == f.VolumeID
		if !same && disk.UUID != f.UUID {
			continue
		}
		if d.keeper.awaits(spec.Name) {
			return
		}
		d.taken[f.VolumeID] = true
		if same && disk.State == stage.StateFailed {
			// The disk is back, or can be read again: attach it now rather than at the next attempt of the stage.
			spec.Name, spec.Keep = disk.Name, disk.Keep
			d.keeper.attachFound(ctx, spec)
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
	d.keeper.attachFound(ctx, spec)
}

// giveUp forgets what is no longer there: attempts to attach it, and disks that nothing uses.
func (d *Discovery) giveUp(ctx context.Context, list []stage.DiskStatus, found map[string]Found) {
	for volume := range d.taken {
		if _, ok := found[volume]; !ok {
			delete(d.taken, volume)
		}
	}
	for _, spec := range d.keeper.foundSpecs() {
		if _, ok := found[spec.VolumeID]; !ok {
			d.keeper.abandon(spec.Name)
		}
	}
	for _, disk := range list {
		_, there := found[disk.VolumeID]
		// The stage keeps a disk that is in use, to attach it again as soon as it is there.
		if there || disk.State != stage.StateFailed || disk.Holders > 0 || disk.Name != (Found{UUID: disk.UUID}).name() {
			continue
		}
		if err := d.detach(ctx, disk.Name); err != nil {
			log.G(ctx).WithError(err).WithField("disk", disk.Name).Warn("found disk has gone and cannot be given up, it is tried again")
			continue
		}
		log.G(ctx).WithField("disk", disk.Name).Info("found disk has gone")
		d.ledger.Record(events.Event{Kind: events.DiskDetached, Disk: disk.Name, Detail: "its device has gone"})
	}
}

// giveUpWait bounds giving up one disk: whatever still reads from it may hang with it, and disks that come meanwhile
// must not wait. The stage completes what was begun.
const giveUpWait = time.Minute

func (d *Discovery) detach(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, giveUpWait)
	defer cancel()
	_, err := d.stager.Unstage(ctx, name, stage.UnstageOptions{})
	return err
}

// checkEvery is how soon the failure of a disk is noticed if no pull asks for it.
const checkEvery = 30 * time.Second

// KeepChecking checks now and then whether every disk that serves still answers, until ctx ends: a disk may fail
// without its device going away, and containers that run from it get errors without anybody asking for a layer.
func KeepChecking(ctx context.Context, stager Stager) {
	ticker := time.NewTicker(checkEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		check(ctx, stager)
	}
}

// check checks whether every disk that serves still answers.
func check(ctx context.Context, stager Stager) {
	for _, disk := range stager.Disks() {
		if disk.Serving {
			_ = stager.Check(ctx, disk.Name) // the stager reports the failure itself
		}
	}
}
