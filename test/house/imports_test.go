package house_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/tools/go/packages"
)

// area is a folder with all packages below it, as far as no area inside it has them.
type area struct {
	// own are the packages of the module that it may import, beside those of the area itself; "x/..." is x and all
	// below it.
	own []string
	// foreign, if not nil, are the prefixes of the only packages of other modules that it may import.
	foreign []string
}

// areas are the map of docs/architecture.md: imports go down only. A package that none of them has fails the test, so
// that a new one is given its place.
func areas() map[string]area {
	format := []string{
		"github.com/containerd/errdefs", "github.com/containerd/platforms", "github.com/distribution/reference",
		"github.com/google/uuid", "github.com/klauspost/compress", "github.com/opencontainers/go-digest",
		"github.com/opencontainers/image-spec", "github.com/zeebo/blake3", "golang.org/x/sync", "golang.org/x/sys",
	}
	format = slices.Clip(format)
	return map[string]area{
		// Leaves: what a foreign reader or a foreign matcher can take as it is.
		"layerdisk": {foreign: format},
		"matcher":   {own: []string{"layerdisk"}, foreign: []string{"github.com/opencontainers/go-digest"}},
		"matcher/dialect": {
			own: []string{"matcher"}, foreign: []string{"github.com/containerd/errdefs"},
		},
		"proto":               {},
		"internal/backoff":    {foreign: []string{}},
		"internal/config":     {own: []string{"blockdev/attached", "blockdev/loopdev", "matcher/dialect"}}, // for their names and settings
		"internal/boltfile":   {foreign: []string{"github.com/containerd/errdefs", "golang.org/x/sys"}},
		"internal/durable":    {foreign: []string{}},
		"internal/metrics":    {},
		"internal/program":    {},
		"internal/unixsocket": {},
		"internal/version":    {foreign: []string{}},

		// Block storage knows no containers.
		"blockdev": {own: []string{"internal/durable", "internal/backoff", "internal/unixsocket"}, foreign: []string{
			"github.com/container-storage-interface/spec", "github.com/containerd/errdefs", "github.com/google/uuid",
			"github.com/moby/sys/mountinfo", "github.com/opencontainers/go-digest", "golang.org/x/sys",
			"google.golang.org/grpc", "google.golang.org/protobuf",
		}},
		"blockdev/attached": {own: []string{"blockdev/...", "internal/durable", "layerdisk"}},
		"blockdev/drivers":  {own: []string{"blockdev/...", "internal/..."}},

		// The snapshotter answers containerd and knows layers by their names only.
		"snapshotter": {own: []string{"layerdisk"}},

		"builder": {own: []string{"blockdev", "blockdev/device", "blockdev/fsmount", "layerdisk/...", "readahead/accesslist"}},

		// Image snapshots know no nodes, and builds only as processes.
		"imagesnapshot":           {own: []string{"blockdev", "blockdev/retry", "layerdisk", "readahead/accesslist", "internal/backoff", "internal/durable"}},
		"imagesnapshot/buildproc": {own: []string{"builder/...", "imagesnapshot/...", "layerdisk", "readahead/accesslist"}},
		"imagesnapshot/catalog":   {own: []string{"imagesnapshot", "imagesnapshot/store", "internal/backoff", "internal/durable", "layerdisk", "readahead/accesslist"}},
		"imagesnapshot/assembly":  {own: []string{"blockdev", "blockdev/drivers", "imagesnapshot/...", "internal/...", "layerdisk", "matcher/...", "readahead/accesslist"}},

		// Lists and readers know disks, not containerd; only a trial run needs its client.
		"readahead": {
			own:     []string{"blockdev", "blockdev/device", "blockdev/fsmount", "layerdisk/..."},
			foreign: append(format, "github.com/containerd/log"),
		},
		"readahead/trialrun": {own: []string{"blockdev", "blockdev/fsmount", "blockdev/retry", "layerdisk", "readahead/..."}},

		// What runs on a node. Its parts meet in daemon.
		"node/containerdconfig": {},
		"node/disks":            {own: []string{"internal/backoff", "layerdisk", "node/events", "node/stage"}},
		"node/users":            {},
		"node/criimages":        {},
		"node/doctor":           {own: []string{"node/users", "node/criimages", "internal/boltfile", "blockdev/attached", "blockdev/sysblock", "node/containerdconfig", "proto/..."}},
		"node/events":           {own: []string{"layerdisk"}},
		"node/heal":             {},
		"node/lost":             {own: []string{"node/users"}},
		"node/imageimport":      {own: []string{"internal/backoff", "internal/durable", "layerdisk"}},
		"node/ondemand":         {own: []string{"imagesnapshot/catalog", "internal/backoff", "layerdisk", "matcher", "node/stage"}},
		"node/stage": {own: []string{"blockdev/...", "internal/backoff", "internal/boltfile", "layerdisk"}, foreign: append(format,
			"github.com/containerd/log", "go.etcd.io/bbolt")},

		"node/accesslists":  {own: []string{"imagesnapshot/store", "layerdisk", "readahead/..."}},
		"node/diskfailures": {own: []string{"node/events", "node/stage"}},

		// The image snapshots' service is served where there is no node too.
		"control/imagesnapshotservice": {own: []string{"imagesnapshot/...", "layerdisk", "matcher/...", "proto/...", "readahead/accesslist"}},
		"control/nodeservice": {own: []string{
			"blockdev/loopdev", "control/imagesnapshotservice", "layerdisk", "node/disks", "node/events", "node/imageimport", "node/lost", "node/ondemand", "node/stage",
			"node/users", "proto/...", "readahead",
		}},

		// The parts of a node meet here.
		"daemon": {own: []string{
			"blockdev/...", "control/...", "imagesnapshot/...", "internal/...", "layerdisk", "matcher/...", "node/...", "readahead/...", "snapshotter",
		}},

		// Commands join everything; tests use what they like.
		"cmd/berth":  {own: []string{"blockdev/...", "builder/...", "control/...", "imagesnapshot/...", "internal/...", "layerdisk/...", "matcher/...", "node/...", "proto/...", "readahead/..."}},
		"cmd/berthd": {own: []string{"internal/...", "daemon"}},
		"docs":       {},
		"systemd":    {},
		"test":       {own: []string{"..."}},
	}
}

func TestImports(t *testing.T) {
	all := load(t, packages.NeedImports)
	var wrong []string
	for _, dir := range slices.Sorted(maps.Keys(all)) {
		imports := slices.Sorted(maps.Keys(all[dir].Imports))
		wrong = append(wrong, refused(areas(), dir, imports)...)
	}
	require.Empty(t, strings.Join(wrong, "\n"))
}

// refused says which imports of a package no area allows.
func refused(all map[string]area, dir string, imports []string) (wrong []string) {
	if dir == "" { // doc.go
		return nil
	}
	name := dir
	for ; ; name = name[:max(0, strings.LastIndex(name, "/"))] {
		if _, ok := all[name]; ok {
			break
		}
		if name == "" {
			return []string{fmt.Sprintf("%s belongs to no area: give it its place in areas", dir)}
		}
	}
	rule := all[name]
	for _, path := range imports {
		switch own, isOwn := strings.CutPrefix(path, module+"/"); {
		case isOwn:
			isSuite := strings.HasSuffix(dir, "test") && strings.HasSuffix(own, "test")
			if !isSuite && !allows(append(rule.own, name+"/..."), own) {
				wrong = append(wrong, fmt.Sprintf("%s imports %s: area %s may not", dir, own, name))
			}
		case !strings.Contains(strings.Split(path, "/")[0], "."): // standard library
		case rule.foreign == nil || strings.HasSuffix(dir, "test"): // suites need what tests need
		default:
			if !slices.ContainsFunc(rule.foreign, func(prefix string) bool {
				return path == prefix || strings.HasPrefix(path, prefix+"/")
			}) {
				wrong = append(wrong, fmt.Sprintf("%s imports %s: area %s is kept pure", dir, path, name))
			}
		}
	}
	return wrong
}

func allows(patterns []string, own string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		prefix, below := strings.CutSuffix(pattern, "...")
		prefix = strings.TrimSuffix(prefix, "/")
		return pattern == own || below && (prefix == "" || own == prefix || strings.HasPrefix(own, prefix+"/"))
	})
}

func TestRefused(t *testing.T) {
	all := map[string]area{
		"pure":   {own: []string{"leaf"}, foreign: []string{"example.org/digest"}},
		"pure/x": {own: []string{"leaf/..."}},
	}
	for name, c := range map[string]struct {
		dir     string
		imports []string
		want    int
	}{
		"all allowed":               {"pure", []string{"fmt", module + "/leaf", module + "/pure/y", "example.org/digest/sub"}, 0},
		"own that is not named":     {"pure", []string{module + "/other"}, 1},
		"below one that is named":   {"pure", []string{module + "/leaf/sub"}, 1},
		"below, named with dots":    {"pure/x", []string{module + "/leaf/sub"}, 0},
		"foreign in a pure area":    {"pure/y", []string{"example.org/other"}, 1},
		"foreign prefix of a name":  {"pure", []string{"example.org/digestive"}, 1},
		"foreign elsewhere":         {"pure/x", []string{"example.org/other"}, 0},
		"suite of a pure area":      {"pure/suitetest", []string{"example.org/other", module + "/other"}, 1},
		"a package without an area": {"new", nil, 1},
	} {
		require.Len(t, refused(all, c.dir, c.imports), c.want, name)
	}
}
