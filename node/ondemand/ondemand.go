// Package ondemand attaches the layer disk that a pull needs while the pull runs: when no attached disk has a layer, it
// asks the matcher which image snapshot of the catalog has the layer, starts to attach its disk in the background, and
// waits for it no longer than configured. However many pulls need a disk, it is attached once. If a pull goes on
// without the disk, the next pull can use it.
//
// A choice decides which disks are attached, never which bytes are served. The number of a node's disks is limited. The
// disk that has been unused for the longest time makes room, never one that is in use or kept.
package ondemand

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/matcher"
	"berth.dev/berth/node/stage"
)

// Stage makes disks usable on this node; a *stage.Stager does.
type Stage interface {
	Stage(ctx context.Context, spec stage.Spec) (stage.DiskStatus, error)
	Unstage(ctx context.Context, name string, opts stage.UnstageOptions) (holders int, err error)
	Disks() []stage.DiskStatus
	Locate(q layerdisk.LayerName) (stage.Held, error)
}

// Config is the configuration of a Chooser.
type Config struct {
	Stage Stage
	// Drivers are those that this node has. Disks of entries with other drivers cannot be attached here.
	Drivers []string
	// Wait bounds how long pulls wait for a disk, counted from when it was first wanted; with 0 they never wait.
	Wait time.Duration
	// MaxDisks bounds the disks attached at once, including those that were attached otherwise; 0 means no limit.
	MaxDisks int
	// AttachCostBytes is how much download a disk must save to be attached; see matcher.Rules.
	AttachCostBytes int64
	// Platform is that of this node.
	Platform matcher.Platform
	// Observer may be nil.
	Observer Observer
}

// Observer learns what was chosen and how attaching it ended, in words of fixed sets. Its methods must not block.
type Observer interface {
	// Chosen is called for each question to the matcher, with its decision, which is empty with OutcomeError. The
	// decision omits choices whose disks could not be attached. The decision is shared and must not be changed.
	Chosen(o Outcome, d matcher.Decision)
	Attached(r Result, took time.Duration)
	// Unmatched is called for a layer that no attached disk has, if no usable image snapshot has its image.
	Unmatched(w Wanted)
}

// Outcome is the outcome of one question to the matcher.
type Outcome string

// These are the values of Outcome.
const (
	// OutcomeAttach: a disk is being attached because of the question.
	OutcomeAttach Outcome = "attach"
	// OutcomeJoin: the disk is being attached already.
	OutcomeJoin Outcome = "join"
	// OutcomeNone: nothing is to be attached.
	OutcomeNone Outcome = "none"
	// OutcomeError: the question was refused.
	OutcomeError Outcome = "error"
)

// Outcomes returns all values of Outcome.
func Outcomes() []Outcome { return []Outcome{OutcomeAttach, OutcomeJoin, OutcomeNone, OutcomeError} }

// Result is how attaching a disk ended.
type Result string

// These are the values of Result.
const (
	ResultReady Result = "ready"
	// ResultLate: a pull did not wait for the disk any longer.
	ResultLate   Result = "late"
	ResultFailed Result = "failed"
	// ResultNoRoom: as many disks as allowed are attached, and all of them are used or kept.
	ResultNoRoom Result = "no-room"
)

// Results returns all values of Result.
func Results() []Result { return []Result{ResultReady, ResultLate, ResultFailed, ResultNoRoom} }

// Wanted is a layer that a pull is about to ask for, and what is known about its image.
type Wanted struct {
	layerdisk.LayerName
	// ImageRef and Manifest are those of the image, Above are the compressed layers on top of this one. All may be
	// unknown.
	ImageRef string
	Manifest digest.Digest
	Above    []digest.Digest
}

// Chooser chooses and attaches disks for pulls. It is safe for concurrent use, and holds no lock while it waits.
type Chooser struct {
	Config
	view     *view
	attacher *attacher
	// stop ends what runs in the background.
	stop  context.CancelFunc
	looks *looks
	last  records
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
	v := newView(cfg.Drivers)
	return &Chooser{Config: cfg, view: v, attacher: newAttacher(ctx, cfg, v), stop: stop, looks: newLooks(), last: newRecords()}, nil
}

type noObserver struct{}

func (noObserver) Chosen(Outcome, matcher.Decision) {}
func (noObserver) Attached(Result, time.Duration)   {}
func (noObserver) Unmatched(Wanted)                 {}

// Close ends attaching and waits until nothing runs in the background.
func (c *Chooser) Close() error {
	c.attacher.close()
	c.stop()
	c.attacher.running.Wait()
	return nil
}

// Entries returns the number of known catalog entries.
func (c *Chooser) Entries() int { return c.view.index.Len() }

// Ready attaches disks for a layer that no attached disk has. If no known image snapshot has the image, it first looks
// at the catalogs that report changes only now and then. It returns at once if no image snapshot has the layer.
// Otherwise it returns when the chosen disks are attached or Wait is over. If one cannot be attached, the next best is
// chosen within the same wait.
func (c *Chooser) Ready(ctx context.Context, w Wanted) {
	if c.Entries() == 0 && (!c.looks.look(ctx, c.Wait) || c.Entries() == 0) {
		c.Observer.Unmatched(w)
		return
	}
	r := Record{Time: time.Now(), ImageRef: w.ImageRef, ChainID: w.ChainID}
	c.choose(ctx, w, &r)
	r.Waited = time.Since(r.Time)
	if r.Decision.NothingMatched {
		c.Observer.Unmatched(w)
	}
	c.last.put(r)
}

// choose chooses until the chosen disks are attached, or nothing is left to choose, or the wait is over.
func (c *Chooser) choose(ctx context.Context, w Wanted, r *Record) {
	var passed []*item
	defer func() { c.view.consider(passed) }()
	looked := false
	for since := r.Time; ; {
		d, err := c.decide(c.request(w, r.Time), time.Now())
		r.Decision = d
		if err != nil {
			r.Decision.Reason = err.Error()
			c.Observer.Chosen(OutcomeError, d)
			return
		}
		if d.NothingMatched && !looked {
			looked = true
			if c.looks.look(ctx, c.Wait) {
				continue
			}
		}
		attachments, outcome := c.attacher.attach(d.Chosen, since, slices.Clone(passed))
		if outcome == OutcomeAttach {
			log.G(ctx).WithField("image", w.ImageRef).WithField("reason", d.Reason).Info("attaching layer disks for a pull")
		}
		var failed []*item
		for _, a := range attachments {
			result := a.wait(ctx, c.Wait)
			r.Disks = append(r.Disks, result)
			if result.Result == ResultFailed {
				failed = append(failed, a.item)
				since = slices.MinFunc([]time.Time{since, a.wanted}, time.Time.Compare)
			}
		}
		c.chosen(outcome, d, failed)
		if len(failed) == 0 || ctx.Err() != nil || time.Since(since) >= c.Wait {
			return
		}
		c.view.passOver(failed)
		passed = append(passed, failed...)
	}
}

// chosen credits the choices and passes them to the observer, without those that could not be attached.
func (c *Chooser) chosen(o Outcome, d matcher.Decision, failed []*item) {
	if len(failed) > 0 {
		d.Chosen = slices.DeleteFunc(slices.Clone(d.Chosen), func(choice matcher.Choice) bool {
			return slices.ContainsFunc(failed, func(it *item) bool { return it.id == choice.ID })
		})
	}
	c.view.credit(d.Chosen)
	c.Observer.Chosen(o, d)
}

// ImageSnapshot finds the image snapshot that a disk belongs to, by the disk's UUID. ok is false if no known one has
// that disk. If several have the same content, it is the one that was chosen last, else the one for which the disk was
// attached, else the first by name.
func (c *Chooser) ImageSnapshot(diskUUID string) (name, id string, ok bool) {
	it, sure := c.view.owner(diskUUID)
	if it == nil {
		return "", "", false
	}
	if !sure {
		for _, d := range c.Stage.Disks() {
			if other := c.view.item(d.ImageSnapshot.ID); d.UUID == diskUUID && other != nil && other.identity.UUID == diskUUID {
				it = other
			}
		}
	}
	return it.name, it.id, true
}

// Last returns the latest choice for an image, by its reference as containerd gives it, or for one of these layers if
// containerd did not name the image. ok is false if no choice was made or all are forgotten.
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
		img.Reference = "image of layer " + w.ChainID.String() // the match is by layers alone
	}
	for _, blob := range w.Above {
		img.Layers = append(img.Layers, matcher.Layer{LayerName: layerdisk.LayerName{Blob: blob}})
	}
	return matcher.Request{
		Images: []matcher.Image{img}, Now: now, Explain: explained,
		Rules: matcher.Rules{AutoMatch: true, Order: matcher.OrderSaved, AttachCostBytes: c.AttachCostBytes},
	}
}

// Follow learns the entries of a catalog and their changes until ctx ends. It calls synced when it knows all entries
// that existed at the beginning. It logs entries that cannot be used.
func (c *Chooser) Follow(ctx context.Context, l catalog.Lister, synced func()) error {
	changes, err := l.Watch(ctx)
	if err != nil {
		return fmt.Errorf("follow catalog: %w", err)
	}
	defer c.looks.add(l)()
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
	case change.Looked:
	case change.Synced:
		synced()
	case change.Problem != nil:
		log.G(ctx).WithError(change.Problem).Warn("part of the catalog cannot be used")
	case change.Deleted:
		c.removed(c.view.remove(change.Entry.ID))
	default:
		replaced, err := c.view.put(change.Entry)
		if err != nil {
			log.G(ctx).WithError(err).WithField("id", change.Entry.ID).Warn("catalog entry is left out")
			replaced = c.view.remove(change.Entry.ID)
		}
		c.removed(replaced)
	}
}

// removed detaches the disk of an item that was removed, if there is one.
func (c *Chooser) removed(it *item) {
	if it != nil {
		c.attacher.detachUnused(it.disk)
	}
}
