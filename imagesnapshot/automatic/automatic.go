// Package automatic makes image snapshots of images that pulls want and no image snapshot has (E-5, E-20). It works
// beside the pulls, takes exactly the manifest that was pulled, and asks once for each image, however many pulls want
// it.
//
// A pull only notes that it wants an image. When it has asked for nothing more for a while, so that a build does not
// compete with it, one worker finds out whether the image may and should have an image snapshot, and asks the life
// cycle for it. The life cycle keeps that through restarts. Notes that nobody acted on are lost with the process; the
// next pull makes them again.
//
// The credentials of pods are not used. This package sees an image as builds do, with the credentials that it is
// configured with, and leaves alone what those do not let it see.
package automatic

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/internal/backoff"
)

// Engine keeps image snapshots; *lifecycle.Engine is one.
type Engine interface {
	Find(ctx context.Context, nameOrID string) (*imagesnapshot.ImageSnapshot, error)
	EnsureAutomatic(ctx context.Context, req lifecycle.AutomaticRequest) (lifecycle.CreateResult, error)
}

// Planner says what an image consists of, as a build will see it; a lifecycle.Builder is one.
type Planner interface {
	Plan(ctx context.Context, req lifecycle.PlanRequest) (lifecycle.Plan, error)
}

// Config of a Maker.
type Config struct {
	Engine  Engine
	Planner Planner
	// Owner whose image snapshots they are, and whose secrets Registries name.
	Owner      string
	Registries []imagesnapshot.Registry
	// Allow and Deny are beginnings of references, whole components of them. If Allow is not empty, only those are
	// made; Deny wins.
	Allow, Deny []string
	// MinBytes is the smallest image that is worth it, in compressed bytes.
	MinBytes int64
	// Delay after the last question of a pull, so that the build does not compete with it. The whole wait is at most
	// ten times as long, counted from the first question.
	Delay time.Duration
	// Retry is the longest time until an image is looked at again that was too small or could not be seen.
	Retry time.Duration
	// Observer may be nil. It must not block.
	Observer func(Outcome)
}

// Outcome is the result for an image that a pull wanted.
type Outcome string

// Outcomes.
const (
	// OutcomeAsked: an image snapshot is being made.
	OutcomeAsked Outcome = "asked"
	// OutcomeExists: there is one already, in whatever phase; one that failed is not tried again before it is gone.
	OutcomeExists Outcome = "exists"
	// OutcomeDenied: the configuration does not allow it.
	OutcomeDenied Outcome = "denied"
	// OutcomeTooSmall: fetching it takes too little time to be worth it.
	OutcomeTooSmall Outcome = "too-small"
	// OutcomeNoAccess: builds cannot see it; it was pulled with other credentials.
	OutcomeNoAccess Outcome = "no-access"
	// OutcomeQuota: the owner's quota is used up, by image snapshots that may not be eliminated now.
	OutcomeQuota Outcome = "quota"
	// OutcomeError: something else went wrong.
	OutcomeError Outcome = "error"
	// OutcomeDropped: too many images at once.
	OutcomeDropped Outcome = "dropped"
)

// Outcomes lists all.
func Outcomes() []Outcome {
	return []Outcome{OutcomeAsked, OutcomeExists, OutcomeDenied, OutcomeTooSmall, OutcomeNoAccess, OutcomeQuota, OutcomeError, OutcomeDropped}
}

// AnnotationImage is the reference that a pull named, on image snapshots that were made because of it: the spec has the
// digest instead of the tag.
const AnnotationImage = "berth.dev/image"

// Maker is safe for concurrent use.
type Maker struct {
	cfg Config
	// wake has a token when something is new in pending.
	wake chan struct{}

	mu sync.Mutex // guards what follows
	// pending and refused are by canonical reference.
	pending map[string]*pending
	refused map[string]refusal
}

// pending is an image that a pull wanted.
type pending struct {
	// image by its digest, and as the pull named it.
	image, named string
	first, due   time.Time
}

// refusal is when an image may be looked at again, and how often it was refused.
type refusal struct {
	until time.Time
	times int
}

const (
	// maxPending and maxRefused bound the memory: a node runs some hundred images.
	maxPending, maxRefused = 256, 4096
	// longestWait of Config.Delay.
	longestWait = 10
	// firstRetry after trouble that may pass; it doubles up to Config.Retry.
	firstRetry = time.Minute
	// lookTimeout bounds the examination of one image, which takes a few requests to a registry.
	lookTimeout = 5 * time.Minute
)

// New checks the configuration. Run works.
func New(cfg Config) (*Maker, error) {
	if cfg.MinBytes < 0 || cfg.Delay < 0 || cfg.Retry <= 0 {
		return nil, fmt.Errorf("automatic image snapshots: smallest image of %d bytes, delay of %s, retry after %s: %w", cfg.MinBytes, cfg.Delay, cfg.Retry, errdefs.ErrInvalidArgument)
	}
	if cfg.Observer == nil {
		cfg.Observer = func(Outcome) {}
	}
	return &Maker{cfg: cfg, wake: make(chan struct{}, 1), pending: make(map[string]*pending), refused: make(map[string]refusal)}, nil
}

// Wanted notes that a pull wants an image that no image snapshot has. ref is the reference as the pull names it,
// manifest the digest of its manifest for this node's platform. Without both it does nothing, because nobody would know
// what was pulled. It does not block.
func (m *Maker) Wanted(ref string, manifest digest.Digest) {
	image, named, err := canonical(ref, manifest)
	if err != nil {
		return
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Before(m.refused[image].until) {
		return
	}
	p := m.pending[image]
	if p == nil {
		if len(m.pending) >= maxPending {
			m.cfg.Observer(OutcomeDropped)
			return
		}
		p = &pending{image: image, named: named, first: now}
		m.pending[image] = p
	}
	p.due = now.Add(m.cfg.Delay)
	if latest := p.first.Add(longestWait * m.cfg.Delay); latest.Before(p.due) {
		p.due = latest
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// canonical returns the reference by digest, which names what was pulled whatever the tag means by now, and that with
// the tag.
func canonical(ref string, manifest digest.Digest) (image, named string, err error) {
	parsed, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", "", err
	}
	if err := manifest.Validate(); err != nil {
		return "", "", err
	}
	byDigest, err := reference.WithDigest(reference.TrimNamed(parsed), manifest)
	if err != nil {
		return "", "", err
	}
	return byDigest.String(), parsed.String(), nil
}

// Run works until ctx ends.
func (m *Maker) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		next, due := m.next()
		if next != nil && !due.After(time.Now()) {
			m.done(next, m.look(ctx, next))
			continue
		}
		if next != nil {
			timer.Reset(time.Until(due))
		}
		select {
		case <-timer.C:
		case <-m.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// next returns the pending image that is due first, or nil if no image is pending. The image stays pending.
func (m *Maker) next() (first *pending, due time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.pending {
		if first == nil || p.due.Before(due) {
			first, due = p, p.due
		}
	}
	return first, due
}

// done notes the outcome of a look.
func (m *Maker) done(p *pending, outcome Outcome) {
	m.cfg.Observer(outcome)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pending, p.image)
	if outcome == OutcomeAsked || outcome == OutcomeExists {
		delete(m.refused, p.image)
		return
	}
	if len(m.refused) >= maxRefused {
		clear(m.refused) // the next pulls bring back those that matter
	}
	r, wait := m.refused[p.image], m.cfg.Retry
	if outcome == OutcomeError || outcome == OutcomeQuota { // which may pass
		wait = backoff.Doubling{First: firstRetry, Most: wait}.After(r.times)
	}
	m.refused[p.image] = refusal{until: time.Now().Add(wait), times: r.times + 1}
}

// look finds out whether an image should have an image snapshot, and asks for it.
func (m *Maker) look(ctx context.Context, p *pending) Outcome {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	entry := log.G(ctx).WithField("image", p.image)
	if !m.cfg.allows(p.image) {
		entry.Debug("no automatic image snapshot: the configuration does not allow it")
		return OutcomeDenied
	}
	images := []string{p.image}
	_, err := m.cfg.Engine.Find(ctx, imagesnapshot.AutomaticName(m.cfg.Owner, images, nil))
	if err == nil {
		return OutcomeExists
	}
	if !errdefs.IsNotFound(err) {
		entry.WithError(err).Warn("no automatic image snapshot: image snapshots cannot be looked up")
		return OutcomeError
	}
	plan, err := m.cfg.Planner.Plan(ctx, lifecycle.PlanRequest{Owner: m.cfg.Owner, Spec: imagesnapshot.Spec{Images: images, Registries: m.cfg.Registries}})
	if err != nil {
		return m.cannotSee(ctx, entry, err)
	}
	if n := bytesOf(plan); n < m.cfg.MinBytes {
		entry.WithField("bytes", n).Debug("no automatic image snapshot: the image is too small")
		return OutcomeTooSmall
	}
	r, err := m.cfg.Engine.EnsureAutomatic(ctx, lifecycle.AutomaticRequest{
		Owner: m.cfg.Owner, Images: images, Registries: m.cfg.Registries, Annotations: map[string]string{AnnotationImage: p.named},
	})
	switch {
	case errdefs.IsResourceExhausted(err):
		entry.WithError(err).Warn("no automatic image snapshot: there is no room for it")
		return OutcomeQuota
	case err != nil:
		entry.WithError(err).Warn("no automatic image snapshot")
		return OutcomeError
	case r.Existing:
		return OutcomeExists
	}
	entry.WithField("image_snapshot", r.Object.Name).Info("automatic image snapshot is made")
	return OutcomeAsked
}

// cannotSee distinguishes images that builds may not see from trouble on the way.
func (m *Maker) cannotSee(ctx context.Context, entry *log.Entry, err error) Outcome {
	switch {
	case ctx.Err() != nil:
		return OutcomeError
	case errdefs.IsNotFound(err), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		entry.WithField("reason", imagesnapshot.Redact(err.Error())).Info("no automatic image snapshot: builds may not see the image")
		return OutcomeNoAccess
	}
	entry.WithField("reason", imagesnapshot.Redact(err.Error())).Warn("no automatic image snapshot: the image cannot be looked at")
	return OutcomeError
}

func bytesOf(p lifecycle.Plan) int64 {
	var sum int64
	for _, l := range p.Layers {
		sum += l.BlobBytes
	}
	return sum
}
