// Package containerdconfig knows what containerd has to be told about berthd, version by version: it writes the snippet
// and checks a configuration for it. The facts are read from containerd's sources: services/server/config (1.7),
// cmd/containerd/server/config, plugins/transfer and internal/cri/config (2.x).
package containerdconfig

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"

	"github.com/containerd/errdefs"
)

// Version of containerd, as far as its configuration depends on it.
type Version struct {
	Major, Minor int
}

// Oldest returns the oldest version that is tested and supported.
func Oldest() Version { return Version{1, 7} }

// Newest returns the newest version that is tested; newer versions are taken to be like it.
func Newest() Version { return Version{2, 4} }

var versionNumber = regexp.MustCompile(`\bv?([0-9]{1,4})\.([0-9]{1,4})(?:\.[0-9]+)?\b`)

// ParseVersion reads "2.4", "v2.4.2", or what "containerd --version" prints. A text without a number is
// errdefs.ErrInvalidArgument, and a version before Oldest is errdefs.ErrNotImplemented.
func ParseVersion(text string) (Version, error) {
	// "containerd --version" names a module path, whose "/v2" has no dot, before the version.
	m := versionNumber.FindStringSubmatch(text)
	if m == nil {
		return Version{}, fmt.Errorf("%q is no version of containerd: write it like 2.4: %w", text, errdefs.ErrInvalidArgument)
	}
	major, err := strconv.Atoi(m[1])
	if err != nil {
		return Version{}, err
	}
	minor, err := strconv.Atoi(m[2])
	if err != nil {
		return Version{}, err
	}
	v := Version{major, minor}
	if v.Before(Oldest()) {
		return Version{}, fmt.Errorf("containerd %s is too old: %s or later is needed: %w", v, Oldest(), errdefs.ErrNotImplemented)
	}
	return v, nil
}

// Before reports whether v is older than w.
func (v Version) Before(w Version) bool {
	return cmp.Or(cmp.Compare(v.Major, w.Major), cmp.Compare(v.Minor, w.Minor)) < 0
}

// String returns the version without its patch level.
func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// ConfigVersion returns the version of the configuration file's format that this containerd writes.
func (v Version) ConfigVersion() int {
	switch {
	case v.Major < 2:
		return 2
	case v.Before(Version{2, 3}):
		return 3
	default:
		return 4
	}
}

// defaultHasDropIns reports whether the file that "containerd config default" writes imports
// /etc/containerd/conf.d/*.toml. Without an imports key in the file, or without a file, no version reads that
// directory, though "containerd config dump" prints the key: cmd/containerd/server/config.LoadConfig follows only the
// imports of files, and the default's imports are in no file.
func (v Version) defaultHasDropIns() bool { return !v.Before(Version{2, 2}) }

// hasErofsDefault reports whether the transfer service's default unpack_config has EROFS images too.
func (v Version) hasErofsDefault() bool { return !v.Before(Version{2, 3}) }

// pullsByTransfer reports whether CRI pulls through the transfer service unless told otherwise. Then annotations are
// switched on per plugin (exports), and disable_snapshot_annotations = false would switch the whole node to the old
// way.
func (v Version) pullsByTransfer() bool { return !v.Before(Version{2, 1}) }

// These are the capabilities that a proxy plugin can announce, as containerd names them.
const (
	capaRemapIDs = "remap-ids"
	capaRebase   = "rebase"
)

// Capabilities returns the capabilities to announce to this containerd; docs/snapshotter.md has the rule.
func (v Version) Capabilities() []string {
	switch {
	case v.Before(Version{2, 3}):
		// 1.7 cannot mount what "remap-ids" promises. 2.0 to 2.2 map the IDs of the directory above all layers but not
		// of what is mounted below it, so layers on several file systems cannot be mapped (core/mount/mount_linux.go).
		// Without the capability containerd copies the image of a pod in a user namespace, which is slow and works.
		return nil
	case v.Before(Version{2, 4}):
		// With "rebase" and parallel unpacking, 2.2 and 2.3 do not name the parent when they ask for a layer. No answer
		// can then say that the layer is there, so everything would be pulled.
		return []string{capaRemapIDs}
	}
	return []string{capaRemapIDs, capaRebase}
}
