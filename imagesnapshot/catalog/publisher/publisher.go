// Package publisher keeps in one catalog what another one lists: the image snapshots of a node in a directory that
// other nodes read.
package publisher

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/internal/backoff"
	"berth.dev/berth/internal/durable"
	"berth.dev/berth/readahead/accesslist"
)

// Config of a Publisher.
type Config struct {
	From catalog.Lister
	To   catalog.Publisher
	// Publishable says whether those who read To can use an entry. Others are not published; nil publishes all.
	Publishable func(e *catalog.Entry) bool
	// Lists, if not nil, gives the access lists of the image snapshot of an entry's ID, which ListsTo gets.
	Lists   func(ctx context.Context, id string) ([]*accesslist.List, error)
	ListsTo catalog.ListPublisher
	// Target names To, and Records is a directory, made if it is missing, that remembers what was published in which
	// target: so what went away while nobody ran is withdrawn later, and nothing of others ever is.
	Target, Records string
}

// record lists what was published in one target.
type record struct {
	Target string   `json:"target"`
	IDs    []string `json:"ids"`
}

const recordSuffix = ".json"

func recordFile(records, target string) string {
	sum := sha256.Sum256([]byte(target))
	return filepath.Join(records, hex.EncodeToString(sum[:16])+recordSuffix)
}

// Publisher publishes what one catalog lists in another one.
type Publisher struct {
	cfg Config
	// published are the IDs that To may have of us.
	published map[string]bool
	// pending is what is still to be sent to To: an entry, or nil to withdraw it.
	pending map[string]*catalog.Entry
	// stale are the IDs of entries whose lists To may not have as they are.
	stale map[string]bool
	// touched are the IDs that TouchLists was called with.
	touched chan string
}

// maxTouched may wait; of more, the lists are published with the next change of their entries.
const maxTouched = 1024

// New makes a publisher. It does nothing until Run.
func New(cfg Config) *Publisher { return &Publisher{cfg: cfg, touched: make(chan string, maxTouched)} }

// TouchLists says that the access lists of an image snapshot have changed. It does not block, and is safe for
// concurrent use.
func (p *Publisher) TouchLists(id string) {
	select {
	case p.touched <- id:
	default:
	}
}

// Waits after something could not be sent to To.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// Run publishes and withdraws until ctx ends, and then returns nil; it does not wait for a directory that hangs, as
// those on a network may. What cannot be done now is tried again.
func (p *Publisher) Run(ctx context.Context) error {
	if err := os.MkdirAll(p.cfg.Records, 0o700); err != nil {
		return fmt.Errorf("publish image snapshots: %w", err)
	}
	rec, _, err := durable.Read[record](recordFile(p.cfg.Records, p.cfg.Target))
	if err != nil {
		return fmt.Errorf("publish image snapshots: %w", err)
	}
	p.published, p.pending, p.stale = make(map[string]bool), make(map[string]*catalog.Entry), make(map[string]bool)
	for _, id := range rec.IDs {
		p.published[id] = true
	}
	changes, err := p.cfg.From.Watch(ctx)
	if err != nil {
		return fmt.Errorf("publish image snapshots: %w", err)
	}
	retry, failures := time.NewTimer(0), 0
	defer retry.Stop()
	listed := make(map[string]bool)
	for {
		select {
		case <-ctx.Done():
			return nil
		case c, ok := <-changes:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("publish image snapshots: the catalog that they are in ended: %w", errdefs.ErrUnavailable)
			}
			p.learn(c, listed)
			if c.Synced {
				listed = nil
			}
		case id := <-p.touched:
			p.stale[id] = true
		case <-retry.C:
		}
		if listed != nil {
			continue // what is not listed yet is not gone
		}
		done := make(chan error, 1)
		go func() { done <- p.flush(ctx) }()
		select {
		case <-ctx.Done():
			return nil
		case err = <-done:
		}
		if err == nil {
			failures = 0
			continue
		}
		wait := backoff.Doubling{First: firstRetry, Most: lastRetry}.After(failures)
		failures++
		log.G(ctx).WithError(err).WithField("retry_in", wait).Warn("image snapshots are not published to other nodes")
		retry.Reset(wait)
	}
}

// learn notes a change. listed are the entries of the first listing, nil after it.
func (p *Publisher) learn(c catalog.Change, listed map[string]bool) {
	switch {
	case c.Synced:
		for id := range p.published {
			if !listed[id] {
				p.pending[id] = nil
			}
		}
	case c.Entry == nil: // a problem, which those who use the catalog report
	case !c.Deleted && (p.cfg.Publishable == nil || p.cfg.Publishable(c.Entry)):
		p.pending[c.Entry.ID] = c.Entry
		if listed != nil {
			listed[c.Entry.ID] = true
		}
	case p.published[c.Entry.ID]:
		p.pending[c.Entry.ID] = nil
	default:
		delete(p.pending, c.Entry.ID)
	}
}

// flush sends To what is pending. What fails stays pending.
func (p *Publisher) flush(ctx context.Context) error {
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(p.pending)) {
		e := p.pending[id]
		err := p.tell(ctx, id, e)
		if err == nil || e != nil && errdefs.IsInvalidArgument(err) {
			delete(p.pending, id) // one that is no entry never will be
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, p.flushLists(ctx))...)
}

// flushLists publishes the lists that may have changed, of entries that To has.
func (p *Publisher) flushLists(ctx context.Context) error {
	if p.cfg.Lists == nil {
		return nil
	}
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(p.stale)) {
		if _, waits := p.pending[id]; waits {
			continue
		}
		var err error
		if p.published[id] {
			var lists []*accesslist.List
			if lists, err = p.cfg.Lists(ctx, id); err == nil {
				err = p.cfg.ListsTo.PublishAccessLists(ctx, id, lists)
			}
		}
		if err == nil {
			delete(p.stale, id)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (p *Publisher) tell(ctx context.Context, id string, e *catalog.Entry) error {
	if e == nil {
		if err := p.cfg.To.Withdraw(ctx, id); err != nil {
			return err
		}
		return p.note(id, false)
	}
	// Before it is there, so that it is never forgotten.
	if err := p.note(id, true); err != nil {
		return err
	}
	if err := p.cfg.To.Publish(ctx, *e); err != nil {
		return err
	}
	p.stale[id] = true
	return nil
}

// note records what To may have.
func (p *Publisher) note(id string, published bool) error {
	if p.published[id] == published {
		return nil
	}
	ids := maps.Clone(p.published)
	if published {
		ids[id] = true
	} else {
		delete(ids, id)
	}
	if err := durable.Write(recordFile(p.cfg.Records, p.cfg.Target), record{p.cfg.Target, slices.Sorted(maps.Keys(ids))}); err != nil {
		return err
	}
	p.published = ids
	return nil
}

// WithdrawElsewhere withdraws what was published in targets other than except, which a configuration named before. With
// an empty except it withdraws everything. The next call tries again what fails.
func WithdrawElsewhere(ctx context.Context, records, except string, open func(target string) (catalog.Publisher, error)) error {
	entries, err := os.ReadDir(records)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), recordSuffix) {
			continue
		}
		path := filepath.Join(records, e.Name())
		rec, found, err := durable.Read[record](path)
		if err == nil && found && rec.Target != except {
			err = withdrawAll(ctx, path, rec, open)
		}
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("withdraw what was published elsewhere: %w", err)
	}
	return nil
}

func withdrawAll(ctx context.Context, path string, rec record, open func(target string) (catalog.Publisher, error)) error {
	to, err := open(rec.Target)
	if err != nil {
		return err
	}
	for _, id := range rec.IDs {
		if err := to.Withdraw(ctx, id); err != nil {
			return err
		}
	}
	return durable.Remove(path)
}
