// Package lifecycle makes image snapshots happen: it takes them from what a user asked for to a volume snapshot in the
// storage, and down again.
//
// One Engine owns all image snapshots of a store. Its methods are the use cases of every front end; they only write to
// the store. Run does the work: for each image snapshot one goroutine at a time, which takes one step after another.
// Before a step does anything outside the store, what it is going to do stands in Status.Work, and every step can be
// repeated; so a process that is killed between any two instructions is followed by one that goes on, and nothing in
// the storage is without an owner for long. What a crash leaves in the storage without a journal, Sweep finds by its
// name.
//
// No lock is held while the storage, a registry or a build is waited for.
package lifecycle

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/readahead/accesslist"
)

// Builder makes layer disks. Errors are NotFound for images that are not there, InvalidArgument and NotImplemented for
// those that cannot be used, Unauthenticated and PermissionDenied by the registry, TooSmallError, DataLoss for a base
// that is damaged. Their texts hold no secret.
type Builder interface {
	// Plan finds out what the images consist of, without fetching layers.
	Plan(ctx context.Context, req PlanRequest) (Plan, error)
	// Build writes the disk. When it returns nothing of it runs any more, whatever the outcome.
	Build(ctx context.Context, req BuildRequest) (BuildResult, error)
}

// PlanRequest says what would be built.
type PlanRequest struct {
	// Owner whose secrets may be used.
	Owner string
	Spec  imagesnapshot.Spec
}

// Plan is what the images consist of.
type Plan struct {
	// Layers that differ, in the order of the disk.
	Layers []PlannedLayer
	// Chains are all stacks of layers.
	Chains []digest.Digest
}

// PlannedLayer is one layer of a plan.
type PlannedLayer struct {
	DiffID    digest.Digest
	BlobBytes int64
}

// BuildRequest says what to build and where.
type BuildRequest struct {
	PlanRequest
	// Name of the image snapshot, for logs and names of processes.
	Name string
	// Device to write to. It is blank, or holds a layer disk to start from if Reuse says so.
	Device blockdev.Device
	Reuse  bool
	// Traced are access lists of images on the disk, see builder.Options.
	Traced []*accesslist.List
	// Progress may be told how far it is, in percent, from any goroutine but one at a time.
	Progress func(percent int)
}

// BuildResult is what a build made.
type BuildResult struct {
	// Index is the encoded index, as read back from the disk.
	Index                                []byte
	DiskBytes, FetchedBytes, ReusedBytes int64
}

// TooSmallError says that a disk does not fit the volume. Its class is errdefs.ErrResourceExhausted.
type TooSmallError struct {
	// NeededBytes of volume.
	NeededBytes int64
	Err         error
}

func (e *TooSmallError) Error() string { return e.Err.Error() }

// Unwrap gives the class and the cause.
func (e *TooSmallError) Unwrap() []error { return []error{errdefs.ErrResourceExhausted, e.Err} }

// Config of an Engine.
type Config struct {
	Store   store.Store
	Watcher store.Watcher
	Indexes store.Indexes
	// AccessLists, if not nil, say which files builds place together.
	AccessLists store.AccessLists

	// Backend is where builds put what they make, and Driver its name.
	Backend
	Driver string
	// Others are storage that image snapshots may be on already, by their drivers' names: those stay usable, and can be
	// deleted.
	Others map[string]Backend
	// LegacyDriver is the driver of image snapshots that name none, which are from before there was a choice.
	LegacyDriver string
	Builder      Builder

	// Installation is a UUID that tells our volumes and volume snapshots from those of other installations on the same
	// storage.
	Installation string
	Limits       imagesnapshot.Limits
	// MaxBuilds at once; 0 is 1.
	MaxBuilds int
	Times     Times
	// Observer may be nil.
	Observer Observer
}

// Observer is told what becomes of image snapshots, each thing once, after it was written. It must not block. Reasons
// are of a fixed set.
type Observer interface {
	BuildStarted()
	BuildEnded(o BuildOutcome)
	// Matched is told of each use.
	Matched()
	// Ended is told why one became unavailable though it was made well, and why one was deleted.
	Ended(e Ending, reason imagesnapshot.Reason)
	Swept(r SweepReport)
}

// BuildOutcome is how the work for one content ended, from its beginning to the complete volume snapshots.
type BuildOutcome struct {
	// Reason is imagesnapshot.ReasonReady or ReasonUpdated if it succeeded.
	Reason imagesnapshot.Reason
	// Took is counted from when a place among the builds was free.
	Took time.Duration
	// FetchedBytes, compressed, and ReusedBytes, unpacked; 0 where nothing was built.
	FetchedBytes, ReusedBytes int64
}

// Ending is how the life of an image snapshot ends.
type Ending string

// Endings.
const (
	// EndingExpired: it was usable and became unavailable in time.
	EndingExpired Ending = "expired"
	// EndingDeleted: nothing is left of it.
	EndingDeleted Ending = "deleted"
)

// Endings lists all.
func Endings() []Ending { return []Ending{EndingExpired, EndingDeleted} }

type noObserver struct{}

func (noObserver) BuildStarted()                      {}
func (noObserver) BuildEnded(BuildOutcome)            {}
func (noObserver) Matched()                           {}
func (noObserver) Ended(Ending, imagesnapshot.Reason) {}
func (noObserver) Swept(SweepReport)                  {}

// Times are the periods of a life; zero fields are the defaults in their comments.
type Times struct {
	// KeepFailed is how long a failure is kept with its reason: a day.
	KeepFailed time.Duration
	// ExpiredGrace is how long an expired one is Unavailable before it is deleted, so that nodes learn of it: 10
	// minutes.
	ExpiredGrace time.Duration
	// UnusedAutomatic is how long an automatic one may go unused: 3 days (E-30).
	UnusedAutomatic time.Duration
	// Sweep is the time between two sweeps: 10 minutes.
	Sweep time.Duration
	// FlushMatches is how long matches are collected before they are written: 30 seconds.
	FlushMatches time.Duration
}

func (t Times) withDefaults() Times {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.KeepFailed, 24 * time.Hour},
		{&t.ExpiredGrace, 10 * time.Minute},
		{&t.UnusedAutomatic, 72 * time.Hour},
		{&t.Sweep, 10 * time.Minute},
		{&t.FlushMatches, 30 * time.Second},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return t
}

// Engine is the life cycle of all image snapshots of one store.
type Engine struct {
	Config
	names names
	// slots has a token for each build that may run.
	slots chan struct{}
	// admit makes counting an owner's image snapshots and adding one a single thing.
	admit sync.Mutex
	// indexes keeps an index from being dropped between its being kept and its being referred to.
	indexes sync.Mutex
	matches matches
	queue   queue
}

// New checks the configuration. It does nothing else; Run works.
func New(cfg Config) (*Engine, error) {
	if err := cfg.Limits.Check(); err != nil {
		return nil, err
	}
	n, err := newNames(cfg.Installation)
	if err != nil {
		return nil, err
	}
	if cfg.MaxBuilds < 0 {
		return nil, fmt.Errorf("%d builds at once: %w", cfg.MaxBuilds, errdefs.ErrInvalidArgument)
	}
	cfg.MaxBuilds = max(1, cfg.MaxBuilds)
	cfg.Times = cfg.Times.withDefaults()
	if cfg.Observer == nil {
		cfg.Observer = noObserver{}
	}
	e := &Engine{Config: cfg, names: n, slots: make(chan struct{}, cfg.MaxBuilds)}
	e.matches.counts = make(map[string]*matchCount)
	e.queue.tasks = make(map[string]*task)
	return e, nil
}

// Find gives the image snapshot of a name or an ID; NotFound. A name wins.
func (e *Engine) Find(ctx context.Context, nameOrID string) (*imagesnapshot.ImageSnapshot, error) {
	s, err := e.Store.Get(ctx, nameOrID)
	if !errdefs.IsNotFound(err) {
		return s, err
	}
	if nameOrID != "" {
		list, listErr := e.Store.List(ctx, store.Filter{ID: nameOrID})
		if listErr != nil {
			return nil, listErr
		}
		if len(list) > 0 {
			return list[0], nil
		}
	}
	return nil, err
}

// errSuperseded says that an image snapshot is another one by now.
var errSuperseded = fmt.Errorf("image snapshot was deleted meanwhile: %w", errdefs.ErrNotFound)

// mutate changes the object of a name and ID, again and again until nobody else changed it in between. change may be
// called several times; its error ends it.
func (e *Engine) mutate(ctx context.Context, name, id string, change func(*imagesnapshot.ImageSnapshot) error) (*imagesnapshot.ImageSnapshot, error) {
	for {
		s, err := e.Store.Get(ctx, name)
		if err != nil {
			return nil, err
		}
		if s.ID != id {
			return nil, errSuperseded
		}
		if err := change(s); err != nil {
			return nil, err
		}
		updated, err := e.Store.Update(ctx, s)
		if !errdefs.IsConflict(err) {
			return updated, err
		}
	}
}

// names are those of our volumes and volume snapshots: prefix, kind, the ID of the image snapshot, the number of the
// build, and the number of the copy.
type names struct{ prefix string }

const (
	kindVolume   = "v"
	kindStandard = "s"
	kindFlash    = "f"
)

func newNames(installation string) (names, error) {
	const digits = 12
	id := strings.ReplaceAll(strings.ToLower(installation), "-", "")
	if len(id) < digits || strings.Trim(id, "0123456789abcdef") != "" {
		return names{}, fmt.Errorf("installation %q is no UUID: %w", installation, errdefs.ErrInvalidArgument)
	}
	return names{"berth-" + id[:digits] + "-"}, nil
}

func (n names) volume(s *imagesnapshot.ImageSnapshot, attempt int) string {
	return fmt.Sprintf("%s%s-%s-%d", n.prefix, kindVolume, strings.ReplaceAll(s.ID, "-", ""), attempt)
}

func (n names) snapshot(kind string, s *imagesnapshot.ImageSnapshot, attempt, number int) string {
	return fmt.Sprintf("%s%s-%s-%d-%d", n.prefix, kind, strings.ReplaceAll(s.ID, "-", ""), attempt, number)
}

// ours says whether a name can only be one that this installation gave. Others, too, begin names with berth.
func (n names) ours(name string) bool {
	rest, ok := strings.CutPrefix(name, n.prefix)
	if !ok {
		return false
	}
	parts := strings.Split(rest, "-")
	want := 4
	if parts[0] == kindVolume {
		want = 3
	}
	if len(parts) != want || parts[0] != kindVolume && parts[0] != kindStandard && parts[0] != kindFlash {
		return false
	}
	const idDigits = 32
	if len(parts[1]) != idDigits || strings.Trim(parts[1], "0123456789abcdef") != "" {
		return false
	}
	for _, number := range parts[2:] {
		if number == "" || strings.Trim(number, "0123456789") != "" {
			return false
		}
	}
	return true
}
