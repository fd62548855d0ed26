package program

import (
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// OneLine is an error in one line. Errors that were joined are separated by "; " and said once. The name of a class,
// such as "not found", is left out where it stands alone beside words that say more, and where it is repeated.
func OneLine(err error) string {
	var lines []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		if line = once(strings.TrimSpace(line)); line != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	said := slices.DeleteFunc(slices.Clone(lines), func(line string) bool { return slices.Contains(classes(), line) })
	if len(said) == 0 {
		said = lines
	}
	return strings.Join(said, "; ")
}

// once leaves out what "part: part" repeats.
func once(line string) string {
	return strings.Join(slices.Compact(strings.Split(line, ": ")), ": ")
}

func classes() []string {
	var words []string
	for _, class := range []error{
		errdefs.ErrUnknown, errdefs.ErrInvalidArgument, errdefs.ErrNotFound, errdefs.ErrAlreadyExists,
		errdefs.ErrPermissionDenied, errdefs.ErrResourceExhausted, errdefs.ErrFailedPrecondition, errdefs.ErrConflict,
		errdefs.ErrNotModified, errdefs.ErrAborted, errdefs.ErrOutOfRange, errdefs.ErrNotImplemented,
		errdefs.ErrInternal, errdefs.ErrUnavailable, errdefs.ErrDataLoss, errdefs.ErrUnauthenticated,
	} {
		words = append(words, class.Error())
	}
	return words
}
