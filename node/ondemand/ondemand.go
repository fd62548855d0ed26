// Package ondemand has the layer disk that a pull needs attached while the pull runs: when no attached disk has a
// layer, it asks the matcher which image snapshot of the catalog has it, starts attaching that one's disk in the
// background, and waits for it no longer than configured. However many pulls need a disk, it is attached once; a pull
// that goes on without it leaves it to the next one.
//
// A choice decides which disks are attached, never which bytes are served. A node has at most so many disks; the one
// that was not used for longest makes room, never one that is used or kept.
package ondemand

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/matcher"
	"berth.dev/berth/node/stage"
)

// Stage has disks ready on this node; it is a *stage.Stager.
type Stage interface {
	Stage(ctx context.Context, spec stage.Spec) (stage.DiskStatus, error)
	Unstage(ctx context.Context, name string, opts stage.UnstageOptions) (holders int, err error)
	Disks() []stage.DiskStatus
	Locate(q layerdisk.LayerName) (stage.Held, error)
}

// Config of a Chooser.
type Config struct {
	Stage Stage
	// Drivers that this node has. Entries of others cannot be attached here.
	Drivers []string
	// Wait bounds how long pulls wait for a disk, from when it was first wanted; 0 never waits.
	Wait time.Duration
	// MaxDisks that are attached at once, those attached otherwise included; 0 is no limit.
	MaxDisks int
	// AttachCostBytes of download must be saved by a disk that is to be attached; see matcher.Rules.
	AttachCostBytes int64
	// Platform of this node.
	Platform matcher.Platform
	// Observer may be nil.
	Observer Observer
}

// Observer is told what was chosen and what came of it, in words of fixed sets. It must not block.
type Observer interface {
	// Chosen is told the decision too; it is empty with OutcomeError, and shared: it must not be changed.
	Chosen(o Outcome, d matcher.Decision)
	Attached(r Result, took time.Duration)
	// Unmatched is told of each layer that no attached disk has, of an image that no image snapshot has which may be
	// used.
	Unmatched(w Wanted)
}

// Outcome of one question to the matcher.
type Outcome string

// Outcomes.
const (
	// OutcomeAttach: a disk is attached because of it.
	OutcomeAttach Outcome = "attach"
	// OutcomeJoin: the disk is being attached already.
	OutcomeJoin Outcome = "join"
	// OutcomeNone: nothing is to be attached.
	OutcomeNone Outcome = "none"
	// OutcomeError: the question was refused.
	OutcomeError Outcome = "error"
)

// Outcomes lists all.
func Outcomes() []Outcome { return []Outcome{OutcomeAttach, OutcomeJoin, OutcomeNone, OutcomeError} }

// Result of attaching a disk.
type Result string

// Results.
const (
	ResultReady Result = "ready"
	// ResultLate is one that a pull did not wait for any longer.
	ResultLate   Result = "late"
	ResultFailed Result = "failed"
	// ResultNoRoom: as many disks as allowed are attached, and all of them are used or kept.
	ResultNoRoom Result = "no-room"
)

// Results lists all.
func Results() []Result { return []Result{ResultReady, ResultLate, ResultFailed, ResultNoRoom} }

// Wanted is a layer that a pull is about to ask for, and what is known of the image it is of.
type Wanted struct {
	layerdisk.LayerName
	// ImageRef and Manifest of the image, Above the compressed layers on top of this one; all may be unknown.
	ImageRef string
	Manifest digest.Digest
	Above    []digest.Digest
}

// Chooser is safe for concurrent use. No lock of it is held while anything is waited for.
type Chooser struct {
	Config
	index *matcher.Index
	// stop ends what runs in the background.
	stop    context.CancelFunc
	running sync.WaitGroup
	last    records

	mu     sync.Mutex // guards all below
	closed bool
	items  map[string]*item   // by ID
	byUUID map[string][]*item // by the UUID of the disk
	// touched are the items that the index was told something about.
	touched map[string]*item
	// pending is what is being attached, by the name of the disk.
	pending map[string]*attachment
	// fresh is when disks were attached here.
	fresh map[string]time.Time

	// begin and letGo start run and unstage in the background.
	begin func(a *attachment, spec stage.Spec)
	letGo func(disk string)
}

// New makes a chooser that knows no entries; Follow brings them. Close ends what it does in the background.
func New(ctx context.Context, cfg Config) (*Chooser, error) {
	if cfg.MaxDisks < 0 || cfg.Wait < 0 || cfg.AttachCostBytes < 0 {
		return nil, fmt.Errorf("%d disks, wait of %s, attach cost of %d bytes: none may be negative: %w",
			cfg.MaxDisks, cfg.Wait, cfg.AttachCostBytes, errdefs.ErrInvalidArgument)
	}
	if cfg.Observer == nil {
		cfg.Observer = noObserver{}
	}
	ctx, stop := context.WithCancel(ctx)
	c := &Chooser{
		Config: cfg, index: matcher.NewIndex(), stop: stop, last: newRecords(),
		items: map[string]*item{}, byUUID: map[string][]*item{}, touched: map[string]*item{},
		pending: map[string]*attachment{}, fresh: map[string]time.Time{},
	}
	c.begin = func(a *attachment, spec stage.Spec) { c.running.Go(func() { c.run(ctx, a, spec) }) }
	// What is let go is let go even while the node stops: the stage takes note of it first.
	leaving := context.WithoutCancel(ctx)
	c.letGo = func(disk string) { c.running.Go(func() { c.unstage(leaving, disk) }) }
	return c, nil
}

type noObserver struct{}

func (noObserver) Chosen(Outcome, matcher.Decision) {}
func (noObserver) Attached(Result, time.Duration)   {}
func (noObserver) Unmatched(Wanted)                 {}

// Close gives up what is being attached and waits for that.
func (c *Chooser) Close() error {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.running.Wait()
	return nil
}

// Entries is the number of those that are known.
func (c *Chooser) Entries() int { return c.index.Len() }

// Ready has disks attached for a layer that no attached disk has. It returns at once if no image snapshot has the
// layer, otherwise when the chosen disks are attached, could not be attached, or were waited for long enough.
func (c *Chooser) Ready(ctx context.Context, w Wanted) {
	if c.index.Len() == 0 {
		c.Observer.Unmatched(w)
		return
	}
	now := time.Now()
	d, err := c.decide(c.request(w, now), now)
	r := Record{Time: now, ImageRef: w.ImageRef, ChainID: w.ChainID, Decision: d}
	if err != nil {
		c.Observer.Chosen(OutcomeError, d)
		r.Decision.Reason = err.Error()
		c.last.put(r)
		return
	}
	attachments, outcome := c.attach(d.Chosen)
	c.Observer.Chosen(outcome, d)
	if d.NothingMatched {
		c.Observer.Unmatched(w)
	}
	if outcome == OutcomeAttach {
		log.G(ctx).WithField("image", w.ImageRef).WithField("reason", d.Reason).Info("attaching layer disks for a pull")
	}
	for _, a := range attachments {
		r.Disks = append(r.Disks, a.wait(ctx, c.Wait))
	}
	r.Waited = time.Since(now)
	c.last.put(r)
}

// ImageSnapshot is the name and the ID of one that the attached disk with this UUID is of; ok is false if it is of none
// that is known. Several of the same content have the same disk: it is the first of them by name then.
func (c *Chooser) ImageSnapshot(diskUUID string) (name, id string, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, it := range c.byUUID[diskUUID] {
		if !ok || it.name < name {
			name, id, ok = it.name, it.id, true
		}
	}
	return name, id, ok
}

// Last choice for an image by its reference as containerd tells it, or for one of these layers where containerd did not
// tell the image; the latest of them. ok is false if none was made or all are forgotten.
func (c *Chooser) Last(imageRef string, chainIDs ...digest.Digest) (last Record, ok bool) {
	keys := []string{imageRef}
	for _, id := range chainIDs {
		keys = append(keys, id.String())
	}
	for _, key := range keys {
		if r, found := c.last.get(key); found && (!ok || r.Time.After(last.Time)) {
			last, ok = r, true
		}
	}
	return last, ok
}

// explained is the number of candidates that a record explains.
const explained = 5

func (c *Chooser) request(w Wanted, now time.Time) matcher.Request {
	img := matcher.Image{Reference: w.ImageRef, Platform: c.Platform, ManifestDigest: w.Manifest,
		Layers: []matcher.Layer{{LayerName: w.LayerName}}}
	if img.Reference == "" && img.ManifestDigest == "" || len(img.Reference) > matcher.MaxReferenceBytes {
		img.Reference = "image of layer " + w.ChainID.String() // matches by its layers alone
	}
	for _, blob := range w.Above {
		img.Layers = append(img.Layers, matcher.Layer{LayerName: layerdisk.LayerName{Blob: blob}})
	}
	return matcher.Request{
		Images: []matcher.Image{img}, Now: now, Explain: explained,
		Rules: matcher.Rules{AutoMatch: true, Order: matcher.OrderSaved, AttachCostBytes: c.AttachCostBytes},
	}
}

// attach starts attaching what is chosen and not attached, and gives what is under way now.
func (c *Chooser) attach(chosen []matcher.Choice) (under []*attachment, outcome Outcome) {
	c.mu.Lock()
	defer c.mu.Unlock()
	outcome = OutcomeNone
	for _, choice := range chosen {
		it := c.items[choice.ID]
		if it == nil || c.closed {
			continue // withdrawn meanwhile
		}
		a := c.pending[it.disk]
		if a == nil && choice.Attached {
			continue
		}
		if a == nil {
			a = &attachment{item: it, started: time.Now(), done: make(chan struct{})}
			c.pending[it.disk] = a
			c.begin(a, it.spec())
			outcome = OutcomeAttach
		}
		if outcome == OutcomeNone {
			outcome = OutcomeJoin
		}
		under = append(under, a)
	}
	return under, outcome
}

// Follow keeps what is known up to date with a catalog until ctx ends; synced is called when everything there was is
// known. What cannot be used is logged.
func (c *Chooser) Follow(ctx context.Context, l catalog.Lister, synced func()) error {
	changes, err := l.Watch(ctx)
	if err != nil {
		return fmt.Errorf("follow catalog: %w", err)
	}
	for {
		select {
		case change, ok := <-changes:
			if !ok {
				return ctx.Err()
			}
			c.learn(ctx, change, synced)
		case <-ctx.Done(): // the catalog may hang, as network file systems do
			return ctx.Err()
		}
	}
}

func (c *Chooser) learn(ctx context.Context, change catalog.Change, synced func()) {
	switch {
	case change.Synced:
		synced()
	case change.Problem != nil:
		log.G(ctx).WithError(change.Problem).Warn("part of the catalog cannot be used")
	case change.Deleted:
		c.remove(change.Entry.ID)
	default:
		if err := c.put(change.Entry); err != nil {
			log.G(ctx).WithError(err).WithField("id", change.Entry.ID).Warn("catalog entry is left out")
			c.remove(change.Entry.ID)
		}
	}
}

// put makes an entry known.
func (c *Chooser) put(e *catalog.Entry) error {
	ix, identity, err := e.Parse()
	if err != nil {
		return err
	}
	if !e.HasDisk() {
		return c.putWithoutDisk(e)
	}
	it := &item{id: e.ID, name: e.Name, source: e.Source, identity: identity}
	it.disk = it.diskName()
	if !slices.Contains(c.Drivers, e.Source.Driver) {
		it.never = fmt.Sprintf("it has no driver %q", e.Source.Driver)
	}
	candidate := matcher.Candidate{Name: e.Name, ID: e.ID, Created: e.Created, State: stateOf(e), Expires: e.Expires, Unreachable: it.never}
	candidate.Images, candidate.Layers = matcher.Content(ix)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.index.Put(candidate); err != nil {
		return err
	}
	if old := c.items[e.ID]; old != nil {
		c.drop(old, old.disk != it.disk)
	}
	c.items[it.id] = it
	c.byUUID[identity.UUID] = append(c.byUUID[identity.UUID], it)
	return nil
}

// putWithoutDisk makes one known that cannot be used, so that an explanation can say why.
func (c *Chooser) putWithoutDisk(e *catalog.Entry) error {
	candidate := matcher.Candidate{Name: e.Name, ID: e.ID, Created: e.Created, State: stateOf(e), Expires: e.Expires}
	for _, ref := range e.Images {
		candidate.Images = append(candidate.Images, matcher.CandidateImage{Reference: ref})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.index.Put(candidate); err != nil {
		return err
	}
	if old := c.items[e.ID]; old != nil {
		c.drop(old, true)
	}
	return nil
}

func (c *Chooser) remove(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.index.Remove(id)
	if it := c.items[id]; it != nil {
		c.drop(it, true)
	}
}

// drop forgets an item; the caller holds mu. Its disk, if it is attached because of it, is let go when nothing uses it
// any more: the storage may want to delete what it comes from.
func (c *Chooser) drop(it *item, leave bool) {
	delete(c.items, it.id)
	delete(c.touched, it.id)
	uuid := it.identity.UUID
	c.byUUID[uuid] = slices.DeleteFunc(c.byUUID[uuid], func(other *item) bool { return other == it })
	if len(c.byUUID[uuid]) == 0 {
		delete(c.byUUID, uuid)
	}
	if leave && !c.closed {
		c.leave(it.disk)
	}
}
