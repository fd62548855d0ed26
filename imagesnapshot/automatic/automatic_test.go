package automatic_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/automatic"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// life is a life cycle and a builder that remember what they were asked.
type life struct {
	mu      sync.Mutex
	have    map[string]bool // by name
	asked   []lifecycle.AutomaticRequest
	plans   []lifecycle.PlanRequest
	bytes   int64
	planErr error
	askErr  error
	// outcomes are what the maker told.
	outcomes map[automatic.Outcome]int
}

func (l *life) observe(o automatic.Outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.outcomes[o]++
}

// recover from whatever was wrong.
func (l *life) recover() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes, l.planErr, l.askErr = 1<<30, nil, nil
}

func (l *life) Find(_ context.Context, name string) (*imagesnapshot.ImageSnapshot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.have[name] {
		return nil, fmt.Errorf("image snapshot %s: %w", name, errdefs.ErrNotFound)
	}
	return &imagesnapshot.ImageSnapshot{}, nil
}

func (l *life) EnsureAutomatic(_ context.Context, req lifecycle.AutomaticRequest) (lifecycle.CreateResult, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.asked = append(l.asked, req)
	if l.askErr != nil {
		return lifecycle.CreateResult{}, l.askErr
	}
	name := imagesnapshot.AutomaticName(req.Owner, req.Images, req.Platforms)
	existing := l.have[name]
	l.have[name] = true
	return lifecycle.CreateResult{Object: &imagesnapshot.ImageSnapshot{Metadata: imagesnapshot.Metadata{Name: name}}, Existing: existing}, nil
}

func (l *life) Plan(_ context.Context, req lifecycle.PlanRequest) (lifecycle.Plan, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.plans = append(l.plans, req)
	return lifecycle.Plan{Layers: []lifecycle.PlannedLayer{{BlobBytes: l.bytes / 2}, {BlobBytes: l.bytes - l.bytes/2}}}, l.planErr
}

// rig is a maker with all around it, for use in a synctest bubble.
type rig struct {
	*testing.T
	*automatic.Maker
	life *life
	// begin is the start of the bubble's time.
	begin time.Time
	// loseAll forgets what the maker has in memory, as a restart does.
	loseAll func()
}

const (
	nginx  = "docker.io/library/nginx:1.27"
	minute = time.Minute
)

var manifest = digest.FromString("manifest") //nolint:gochecknoglobals // a constant

func inBubble(t *testing.T, change func(*automatic.Config), test func(*rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{T: t, life: &life{have: map[string]bool{}, outcomes: map[automatic.Outcome]int{}, bytes: 1 << 30}, begin: time.Now()}
		cfg := automatic.Config{
			Engine: r.life, Planner: r.life, Owner: "automatic", MinBytes: 1 << 20, Delay: minute, Retry: 24 * time.Hour,
			Observer:   r.life.observe,
			Registries: []imagesnapshot.Registry{{Server: "registry.example", Secret: "pull"}},
		}
		if change != nil {
			change(&cfg)
		}
		start := func() (stop func()) {
			var err error
			r.Maker, err = automatic.New(cfg)
			require.NoError(t, err)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error)
			m := r.Maker
			go func() { ended <- m.Run(ctx) }()
			return func() {
				cancel()
				require.NoError(t, <-ended)
			}
		}
		stop := start()
		defer func() { stop() }()
		r.loseAll = func() {
			stop()
			stop = start()
		}
		test(r)
	})
}

func (r *rig) asked() []lifecycle.AutomaticRequest {
	r.life.mu.Lock()
	defer r.life.mu.Unlock()
	return slices.Clone(r.life.asked)
}

func (r *rig) plans() []lifecycle.PlanRequest {
	r.life.mu.Lock()
	defer r.life.mu.Unlock()
	return slices.Clone(r.life.plans)
}

func (r *rig) counted() map[automatic.Outcome]int {
	r.life.mu.Lock()
	defer r.life.mu.Unlock()
	return maps.Clone(r.life.outcomes)
}

func (r *rig) settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// E-5: what a pull wants and nothing has is made once, after the pull, of the manifest that was pulled.
func TestMadeOnceAfterThePull(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		for range 5 { // the layers of one pull, a while apart
			for range 20 { // and other pulls of the image
				r.Wanted(nginx, manifest)
			}
			r.settle(30 * time.Second)
		}
		require.Empty(r, r.asked(), "the pull still asks")
		r.settle(minute)
		require.Equal(r, []lifecycle.AutomaticRequest{{
			Owner: "automatic", Images: []string{"docker.io/library/nginx@" + manifest.String()},
			Registries:  []imagesnapshot.Registry{{Server: "registry.example", Secret: "pull"}},
			Annotations: map[string]string{automatic.AnnotationImage: nginx},
		}}, r.asked())
		require.Equal(r, "automatic", r.plans()[0].Owner)
		require.Equal(r, r.asked()[0].Images, r.plans()[0].Spec.Images)
		require.Equal(r, map[automatic.Outcome]int{automatic.OutcomeAsked: 1}, r.counted())

		r.loseAll()
		r.Wanted("docker.io/library/nginx:latest", manifest) // another name of it
		r.settle(minute)
		require.Len(r, r.asked(), 1)
		require.Len(r, r.plans(), 1, "the registry is not asked again")
		require.Equal(r, 1, r.counted()[automatic.OutcomeExists])

		r.Wanted(nginx, digest.FromString("the tag has moved"))
		r.settle(minute)
		require.Len(r, r.asked(), 2)
	})
}

// A pull that never ends is not waited for for ever.
func TestLongPull(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		for time.Since(r.begin) < 10*minute {
			require.Empty(r, r.asked())
			r.Wanted(nginx, manifest)
			r.settle(10 * time.Second)
		}
		require.Len(r, r.asked(), 1)
	})
}

// Without the digest nobody knows what was pulled, and names that are none are no harm.
func TestUnknownImagesAreLeftAlone(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		r.Wanted(nginx, "")
		r.Wanted("", manifest)
		r.Wanted("UPPER", manifest)
		r.Wanted(nginx, "sha256:short")
		r.settle(time.Hour)
		require.Empty(r, r.plans())
		require.Empty(r, r.counted())
	})
}

func TestAllowAndDeny(t *testing.T) {
	for _, c := range []struct {
		ref  string
		want bool
	}{
		{"registry.example/team/app:1", true},
		{"registry.example/team:1", true},
		{"registry.example/teammates/app:1", false},
		{"registry.example/team/secret/app:1", false},
		{"registry.example/team/secretly:1", true},
		{"docker.io/library/nginx:1", false},
		{"quay.io/x:1", true},
	} {
		t.Run(c.ref, func(t *testing.T) {
			inBubble(t, func(cfg *automatic.Config) {
				cfg.Allow, cfg.Deny = []string{"registry.example/team", "quay.io/"}, []string{"registry.example/team/secret"}
			}, func(r *rig) {
				r.Wanted(c.ref, manifest)
				r.settle(minute)
				require.Equal(r, c.want, len(r.asked()) == 1)
				require.Equal(r, !c.want, r.counted()[automatic.OutcomeDenied] == 1)
				require.Len(r, r.plans(), len(r.asked()), "the registry is not asked for what is denied")
			})
		})
	}
}

// What is refused is not looked at with each pull: trouble that may pass after a minute, then later and later, the rest
// after a day.
func TestRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		set   func(*life)
		want  automatic.Outcome
		after time.Duration
	}{
		"too small":       {func(l *life) { l.bytes = 1<<20 - 1 }, automatic.OutcomeTooSmall, 24 * time.Hour},
		"unauthenticated": {func(l *life) { l.planErr = errdefs.ErrUnauthenticated }, automatic.OutcomeNoAccess, 24 * time.Hour},
		"denied":          {func(l *life) { l.planErr = errdefs.ErrPermissionDenied }, automatic.OutcomeNoAccess, 24 * time.Hour},
		"not there":       {func(l *life) { l.planErr = errdefs.ErrNotFound }, automatic.OutcomeNoAccess, 24 * time.Hour},
		"registry down":   {func(l *life) { l.planErr = errors.New("no route") }, automatic.OutcomeError, minute},
		"quota":           {func(l *life) { l.askErr = errdefs.ErrResourceExhausted }, automatic.OutcomeQuota, minute},
		"store down":      {func(l *life) { l.askErr = errdefs.ErrUnavailable }, automatic.OutcomeError, minute},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(cfg *automatic.Config) { cfg.Delay = 0 }, func(r *rig) {
				c.set(r.life)
				wanted := func() int {
					r.Wanted(nginx, manifest)
					synctest.Wait()
					return r.counted()[c.want]
				}
				require.Equal(r, 1, wanted())
				r.settle(c.after - time.Second)
				require.Equal(r, 1, wanted())
				r.settle(time.Second)
				require.Equal(r, 2, wanted())
				if c.after == minute {
					r.settle(minute)
					require.Equal(r, 2, wanted(), "later and later")
					r.settle(minute)
					require.Equal(r, 3, wanted())
				}
				r.life.recover()
				r.settle(48 * time.Hour)
				wanted()
				require.Equal(r, 1, r.counted()[automatic.OutcomeAsked], "it is made once it can be")
			})
		})
	}
}

// However many images, the memory is bounded.
func TestManyImagesAtOnce(t *testing.T) {
	inBubble(t, nil, func(r *rig) {
		for i := range 300 {
			r.Wanted(fmt.Sprintf("registry.example/image-%d:1", i), manifest)
		}
		r.settle(minute)
		require.Len(r, r.asked(), 256)
		require.Equal(r, 44, r.counted()[automatic.OutcomeDropped])
	})
}

func TestConfigIsChecked(t *testing.T) {
	for _, cfg := range []automatic.Config{{Retry: 0}, {Retry: time.Hour, MinBytes: -1}, {Retry: time.Hour, Delay: -1}} {
		_, err := automatic.New(cfg)
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	}
}
