package imageimport

import "context"

// Converge is what Run repeats.
func (im *Importer) Converge(ctx context.Context) { im.converge(ctx) }

// CrashAt has f called between all steps.
func (im *Importer) CrashAt(f func(step string)) { im.crash = f }

// Matches is what patterns of references are compared with.
func Matches(pattern, s string) bool { return matches(pattern, s) }
