package imageimport

import (
	"context"
	"time"
)

// Converge is what Run repeats.
func (im *Importer) Converge(ctx context.Context) { im.converge(ctx) }

// CrashAt has f called between all steps.
func (im *Importer) CrashAt(f func(step string)) {
	im.reconciler.registrar.crash, im.reconciler.withdrawer.crash = f, f
}

// FreeSince is when a disk was first seen used by nothing but registered images; zero if something else uses it.
func (im *Importer) FreeSince(uuid string) time.Time { return im.states.of(uuid).freeSince }

// Matches is what patterns of references are compared with.
func Matches(pattern, s string) bool { return matches(pattern, s) }
