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
	// lookRest times the duration of a look is the rest before another look begins. So pulls of images that no catalog
	// has load a catalog for at most a tenth of the time.
	lookRest = 9
)

// looks reads catalogs that report changes only now and then, so that a pull finds what was published just before it.
type looks struct {
	// turn is held by the goroutine that looks.
	turn chan struct{}
	// begun is when the last look began, next is when another one may begin. Only the holder of turn uses them.
	begun, next time.Time

	mu       sync.Mutex // guards catalogs
	catalogs map[catalog.Looker]bool
}

func newLooks() *looks {
	return &looks{turn: make(chan struct{}, 1), catalogs: map[catalog.Looker]bool{}}
}

// add adds a catalog to look at, if it supports looks, until remove is called.
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

// look looks at all catalogs, for at most that long. It reports whether there was a look that began after the call.
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
		return true // another pull looked while this one waited for its turn
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
