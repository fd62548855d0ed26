// Package policy has the rules by which image snapshots are made, kept and given up. They are functions of what is
// given to them: they read no clock, no store and no storage.
package policy

import (
	"fmt"
	"reflect"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/imagesnapshot"
)

const day = 24 * time.Hour

// Expires says when the content of an image snapshot expires: RetentionDays after it became usable. Zero is never.
func Expires(s *imagesnapshot.ImageSnapshot) time.Time {
	if s.Spec.RetentionDays <= 0 {
		return time.Time{}
	}
	return s.Status.Ready.Add(time.Duration(s.Spec.RetentionDays) * day)
}

// LastUse is the time of the last match. For an image snapshot that never matched it is the time since which it could
// have.
func LastUse(s *imagesnapshot.ImageSnapshot) time.Time {
	last := s.Created
	for _, t := range []time.Time{s.Status.Ready, s.Status.LastMatched} {
		if t.After(last) {
			last = t
		}
	}
	return last
}

// NeedsBuild says whether a change of the spec concerns what is on the disk, or how many volume snapshots hold it.
func NeedsBuild(old, updated imagesnapshot.Spec) bool {
	part := func(s imagesnapshot.Spec) any {
		return []any{s.Images, s.Platforms, s.Size, s.Registries, s.Copies.Standard}
	}
	return !reflect.DeepEqual(part(old), part(updated))
}

// Fate is what happens to an image snapshot as time passes.
type Fate int

// Fates.
const (
	// Keep it as it is.
	Keep Fate = iota
	// Retire it: nodes must not choose it any more, and it is deleted a little later (Q11).
	Retire
	// Delete it.
	Delete
)

// Verdict is what is due by the clock for an image snapshot.
type Verdict struct {
	Fate Fate
	// Until is when to ask again, for Keep; zero is when the image snapshot changes.
	Until time.Time
	// Reason and Message of the other fates.
	Reason  imagesnapshot.Reason
	Message string
}

// Age says at the time now what becomes of an image snapshot that no work is under way for. lastUse may be later than
// LastUse says, because matches are written late. unusedAutomatic is how long an automatic one may go unused (E-30).
func Age(s *imagesnapshot.ImageSnapshot, now, lastUse time.Time, unusedAutomatic time.Duration) Verdict {
	expires := s.Status.Expires
	expired := !expires.IsZero() && !now.Before(expires)
	switch s.Status.Phase {
	case imagesnapshot.PhaseFailed, imagesnapshot.PhaseUnavailable:
		if !expired {
			return Verdict{Until: expires}
		}
		return Verdict{
			Fate: Delete, Reason: imagesnapshot.ReasonKeptLongEnough,
			Message: fmt.Sprintf("%s since %s", s.Status.Reason, s.Status.LastUpdated.Format(time.RFC3339)),
		}
	case imagesnapshot.PhaseAvailable, imagesnapshot.PhaseUpdateFailed:
	default:
		return Verdict{}
	}
	if expired {
		return Verdict{
			Fate: Retire, Reason: imagesnapshot.ReasonExpired,
			Message: fmt.Sprintf("its %d days are over", s.Spec.RetentionDays),
		}
	}
	if s.Origin != imagesnapshot.OriginAutomatic {
		return Verdict{Until: expires}
	}
	// Q8: one that was never used goes so long after it was made, one that was used so long after its last use.
	unused := lastUse.Add(unusedAutomatic)
	if !now.Before(unused) {
		return Verdict{
			Fate: Retire, Reason: imagesnapshot.ReasonUnused,
			Message: fmt.Sprintf("made automatically and not used for %s", unusedAutomatic),
		}
	}
	return Verdict{Until: Earlier(expires, unused)}
}

// Earlier returns the earlier of two times. A zero time means never.
func Earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// SizeFor estimates the volume for layers that have these sizes compressed: three times their sum (Q15), in whole GiB,
// and at least leastGiB.
func SizeFor(blobBytes []int64, leastGiB int) int64 {
	const times = 3
	var sum int64
	for _, n := range blobBytes {
		sum += n
	}
	return max(int64(leastGiB)<<30, RoundGiB(times*sum))
}

// RoundGiB rounds a number of bytes up to whole GiB.
func RoundGiB(bytes int64) int64 { return (bytes + 1<<30 - 1) >> 30 << 30 }

// BuildReason is the reason with which a build ends that failed with err.
func BuildReason(err error) imagesnapshot.Reason {
	switch {
	case errdefs.IsNotFound(err), errdefs.IsUnauthorized(err), errdefs.IsPermissionDenied(err):
		return imagesnapshot.ReasonImageUnavailable
	case errdefs.IsResourceExhausted(err):
		return imagesnapshot.ReasonTooSmall
	}
	return imagesnapshot.ReasonBuildFailed
}

// MaxStorageFailures in a row end the work, if nothing is built yet or nothing is to be expected. With the waits
// between them, and those of package retry, that is about ten minutes.
const MaxStorageFailures = 10

// WaitForStorage says whether work goes on after the storage failed with err, so many times in a row. built says that
// the disk is written.
func WaitForStorage(err error, failures int, built bool) bool {
	// Not all parts of the storage may know of what was just made, and many drivers report whatever passes as an
	// internal error.
	passing := blockdev.Retryable(err) || errdefs.IsFailedPrecondition(err) || errdefs.IsResourceExhausted(err) ||
		errdefs.IsNotFound(err) || errdefs.IsInternal(err)
	// What is built is not thrown away because the storage is busy, as with a detachment that takes an hour: the
	// deadline ends that.
	worthWaiting := built && blockdev.Retryable(err)
	return passing && (failures < MaxStorageFailures || worthWaiting)
}
