package ondemand

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/log"

	"berth.dev/berth/imagesnapshot/catalog"
)

const (
	// lookWait bounds one look at the catalogs: a network file system that hangs must not keep pulls waiting.
	lookWait = time.Second
	// lookRest is how many times as long as a look took no other one is begun: pulls of images that no catalog has cost
	// it at most a tenth of the time.
	lookRest = 9
)

// looks are looks at catalogs that tell of changes only now and then, so that a pull finds what was published just
// before it.
type looks struct {
	// turn is held by who looks.
	turn chan struct{}
	// begun is when the last look began, next when another one may; who has the turn uses them.
	begun, next time.Time

	mu       sync.Mutex // guards catalogs
	catalogs map[catalog.Looker]bool
}

func newLooks() *looks {
	return &looks{turn: make(chan struct{}, 1), catalogs: map[catalog.Looker]bool{}}
}

// add a catalog to look at, if it is one, until remove is called.
func (l *looks) add(lister catalog.Lister) (remove func()) {
	c, ok := lister.(catalog.Looker)
	if !ok {
		return func() {}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.catalogs[c] = true
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.catalogs, c)
	}
}

func (l *looks) all() (list []catalog.Looker) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.catalogs {
		list = append(list, c)
	}
	return list
}

// look at all catalogs, for at most that long. It says whether there was a look that began after the call.
func (l *looks) look(ctx context.Context, most time.Duration) bool {
	catalogs, called := l.all(), time.Now()
	if len(catalogs) == 0 || most <= 0 {
		return false
	}
	bounded, cancel := context.WithTimeout(ctx, min(most, lookWait))
	defer cancel()
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-bounded.Done():
		return false
	}
	if l.begun.After(called) {
		return true // by another pull, while this one waited for its turn
	}
	now := time.Now()
	if now.Before(l.next) {
		return false
	}
	l.begun = now
	for _, c := range catalogs {
		if err := c.Look(bounded); err != nil {
			log.G(ctx).WithError(err).Debug("a pull goes on without a look at a catalog")
		}
	}
	l.next = time.Now().Add(lookRest * time.Since(now))
	return true
}
