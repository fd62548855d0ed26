// Package stage makes layer disks usable on this node: it attaches them, proves what they are, mounts them read-only,
// hands out their layers to holders, and takes disks off the node when nothing uses them.
//
// Every step that changes something outside is journalled before it is done, and can be done again. After a crash or a
// reboot Restore therefore only has to look at where each disk should be, and do what is missing. A device's name
// proves nothing: what is mounted is always the device in which the disk's header, UUID and index digest were read.
//
// The order of calls is Open, Restore, Reconcile, then everything else, then Close. Close leaves the disks mounted, so
// that containers go on.
package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/blockdev"
)

const (
	journalName = "stage.db"
	disksName   = "d"
)

// Config of a Stager.
type Config struct {
	// Root is an existing directory, absolute and free of symbolic links. The journal is Root/stage.db, disks are
	// mounted below Root/d, which is made with mode 0700.
	Root string
	// Drivers by name. One that is a blockdev.Provisioner too can serve volume snapshots.
	Drivers map[string]blockdev.Attacher
	// IdleTimeout is how long a disk that nothing holds stays, unless Spec.Keep is set; 0 keeps every disk.
	IdleTimeout time.Duration
	// AttachWait bounds how long Acquire waits for disks that are on their way, counted from when they set out, so that
	// one slow disk delays an image by that much and not each of its layers; 0 never waits.
	AttachWait time.Duration
	// MinRate in bytes a second that a disk has to bring when it is staged for the first time; 0 takes every disk.
	MinRate int64
	// Observer may be nil.
	Observer Observer
}

// Stager is safe for concurrent use.
type Stager struct {
	*state
	// Layers finds and holds layers on the disks.
	Layers    *Layers
	shared    shared
	wishes    *wishes
	keeper    *keeper
	inspector *inspector
	stop      context.CancelFunc // guarded by mu
}

// state is what all parts know. It has no methods, so that parts can embed it without having those of each other.
type state struct {
	drivers map[string]blockdev.Attacher
	// root is the directory that disks are mounted below.
	root     string
	boot     string
	system   system
	observer Observer
	journal  *journal
	// crash, in tests, is called around each write of the journal.
	crash func(point string)
	// kick wakes the background loop; it holds one wake-up.
	kick chan struct{}

	// mu guards what follows and what disks say it guards. It is never held across anything that can wait.
	mu         sync.Mutex
	fleet      fleet
	restored   bool
	reconciled bool
	closed     bool
}

// Open opens the journal and does nothing else: no disk is touched before Restore. A journal that another process has
// open is errdefs.ErrUnavailable. A damaged one is set aside, under a name with the time in it, and a new one is begun:
// disks of the configuration and those that pulls want come back, others have to be staged again.
func Open(cfg Config) (*Stager, error) {
	return open(cfg, kernel{})
}

func open(cfg Config, sys system) (*Stager, error) {
	real, err := filepath.EvalSymlinks(cfg.Root)
	if err != nil {
		return nil, fmt.Errorf("open stage: %w", err)
	}
	if real != cfg.Root || !filepath.IsAbs(real) {
		return nil, fmt.Errorf("open stage: root %q: want the absolute path without symbolic links: %w", cfg.Root, errdefs.ErrInvalidArgument)
	}
	disks := filepath.Join(real, disksName)
	// Layers hold setuid files of images: nobody but root may reach them by path, see package fsmount.
	if err := os.Mkdir(disks, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("open stage: %w", err)
	}
	if err := os.Chmod(disks, 0o700); err != nil { //nolint:gosec // a directory needs its x
		return nil, fmt.Errorf("open stage: %w", err)
	}
	boot, err := bootID()
	if err != nil {
		return nil, fmt.Errorf("open stage: %w", err)
	}
	path := filepath.Join(real, journalName)
	aside, err := setDamagedAside(path)
	if err != nil {
		return nil, fmt.Errorf("open stage: %w", err)
	}
	j, err := openJournal(path)
	if err != nil {
		return nil, fmt.Errorf("open stage: %w", err)
	}
	j.aside = aside
	if cfg.Observer == nil {
		cfg.Observer = noObserver{}
	}
	return assemble(cfg, &state{
		drivers:  cfg.Drivers,
		root:     disks,
		boot:     boot,
		system:   sys,
		observer: cfg.Observer,
		journal:  j,
		kick:     make(chan struct{}, 1),
		fleet:    newFleet(),
	}), nil
}

// assemble puts the parts together around their state.
func assemble(cfg Config, st *state) *Stager {
	sh := shared{st}
	up, down, look := &raising{st, sh, cfg.MinRate}, &lowering{st, sh}, &inspector{st, sh}
	return &Stager{
		state:     st,
		Layers:    &Layers{st, sh, look, cfg.AttachWait},
		shared:    sh,
		wishes:    &wishes{st, sh, up, down},
		keeper:    &keeper{state: st, shared: sh, raising: up, lowering: down, idleTimeout: cfg.IdleTimeout, done: make(chan struct{})},
		inspector: look,
	}
}

// Restore brings the disks of the journal back to where they should be and starts the background work. It returns when
// each has been tried once. If ctx ends before, it returns its error and the rest goes on in the background; ctx may be
// one with a timeout for that. A disk that cannot be restored is no error: it stays in Disks with its error and is
// tried again.
func (s *Stager) Restore(ctx context.Context) error {
	s.mu.Lock()
	if s.restored || s.closed {
		s.mu.Unlock()
		return fmt.Errorf("restore disks: already restored or closed: %w", errdefs.ErrFailedPrecondition)
	}
	s.restored = true
	s.mu.Unlock()

	if s.journal.aside != "" {
		log.G(ctx).WithField("file", s.journal.aside).
			Error("the journal of disks was damaged and is set aside: disks of the configuration are attached again, attach others with berth attach")
	}
	records, bad, err := s.journal.load()
	if err != nil {
		return fmt.Errorf("restore disks: %w", err)
	}
	for _, err := range bad {
		log.G(ctx).WithError(err).Error("entry of the disk journal cannot be read, its disk is left alone")
	}
	s.mu.Lock()
	for _, rec := range records {
		s.fleet.add(&disk{rec: rec, journalled: true, pendingSince: time.Now(), key: newKey()})
	}
	s.mu.Unlock()
	s.warnForeign(ctx)

	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.mu.Lock()
	s.stop = stop
	s.mu.Unlock()
	go s.keeper.loop(life)
	if err := s.shared.wait(ctx, func() bool { return !s.fleet.anyPending() }); err != nil {
		return fmt.Errorf("restore disks: some are still on their way: %w", err)
	}
	return nil
}

// Reconcile replaces what is known of holds: what was held before a restart and is not among holds is free. It is
// called once after Restore and before the first Acquire; until then no disk is taken off the node. Holds of disks that
// the journal does not know are returned: their layers are lost until such a disk is staged, and they count from then
// on.
func (s *Stager) Reconcile(ctx context.Context, holds []Hold) (missing []Hold, err error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.restored || s.closed {
		return nil, fmt.Errorf("reconcile holds: disks are not restored yet: %w", errdefs.ErrFailedPrecondition)
	}
	known := make(map[string]bool)
	for _, d := range s.fleet.byName {
		known[d.rec.Identity.UUID] = true
	}
	s.fleet.holds = newHolds()
	for _, h := range holds {
		s.fleet.holds.put(h)
		if !known[h.DiskUUID] {
			missing = append(missing, h)
		}
	}
	s.fleet.holds.idleFrom(time.Now())
	s.reconciled = true
	s.shared.wake()
	return missing, nil
}

// Close stops the background work, waits for it, and closes the journal. Disks stay as they are.
func (s *Stager) Close() error {
	s.mu.Lock()
	stop, closed := s.stop, s.closed
	s.closed = true
	s.fleet.changed()
	s.mu.Unlock()
	if closed {
		return nil
	}
	if stop != nil {
		stop()
		<-s.keeper.done
	}
	return s.journal.close()
}
