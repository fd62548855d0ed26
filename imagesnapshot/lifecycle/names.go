package lifecycle

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"berth.dev/berth/imagesnapshot"
)

// names are those of our volumes and volume snapshots: prefix, kind, the ID of the image snapshot, the number of the
// build, and the number of the copy.
type names struct{ prefix string }

const (
	kindVolume   = "v"
	kindStandard = "s"
	kindFlash    = "f"
	kindDonor    = "d"
)

func newNames(installation string) (names, error) {
	const digits = 12
	id := strings.ReplaceAll(strings.ToLower(installation), "-", "")
	if len(id) < digits || strings.Trim(id, "0123456789abcdef") != "" {
		return names{}, fmt.Errorf("installation %q is no UUID: %w", installation, errdefs.ErrInvalidArgument)
	}
	return names{"berth-" + id[:digits] + "-"}, nil
}

func (n names) volume(s *imagesnapshot.ImageSnapshot, attempt int) string {
	return fmt.Sprintf("%s%s-%s-%d", n.prefix, kindVolume, strings.ReplaceAll(s.ID, "-", ""), attempt)
}

func (n names) donor(s *imagesnapshot.ImageSnapshot, attempt, number int) string {
	return n.volumeSnapshot(kindDonor, s, attempt, number)
}

func (n names) volumeSnapshot(kind string, s *imagesnapshot.ImageSnapshot, attempt, number int) string {
	return fmt.Sprintf("%s%s-%s-%d-%d", n.prefix, kind, strings.ReplaceAll(s.ID, "-", ""), attempt, number)
}

// flashCopies are the temporary volume snapshots that the work of s may have made, by their names.
func (n names) flashCopies(s *imagesnapshot.ImageSnapshot, w *imagesnapshot.Work) []imagesnapshot.Leftover {
	if !s.Spec.Flash || w.Built == nil {
		return nil
	}
	var list []imagesnapshot.Leftover
	for i := range s.Spec.Copies.Flash {
		list = append(list, imagesnapshot.Leftover{Driver: w.Driver, VolumeSnapshotName: n.volumeSnapshot(kindFlash, s, w.Attempt, i)})
	}
	return list
}

// ours says whether a name can only be one that this installation gave. Others, too, begin names with berth.
func (n names) ours(name string) bool {
	rest, ok := strings.CutPrefix(name, n.prefix)
	if !ok {
		return false
	}
	parts := strings.Split(rest, "-")
	want := 4
	if parts[0] == kindVolume {
		want = 3
	}
	if len(parts) != want || parts[0] != kindVolume && parts[0] != kindStandard && parts[0] != kindFlash && parts[0] != kindDonor {
		return false
	}
	const idDigits = 32
	if len(parts[1]) != idDigits || strings.Trim(parts[1], "0123456789abcdef") != "" {
		return false
	}
	for _, number := range parts[2:] {
		if number == "" || strings.Trim(number, "0123456789") != "" {
			return false
		}
	}
	return true
}
