package accesslist_test

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/readahead/accesslist"
)

const block = 64 << 10

func start(recorded int64, files ...accesslist.FileRange) *accesslist.List {
	return &accesslist.List{Image: "app:1", Platform: "linux/amd64", Recorded: time.Unix(recorded, 0).UTC(), Files: files}
}

func file(path string, offset, length int64) accesslist.FileRange {
	return accesslist.FileRange{DiffID: layerA, Path: path, Offset: offset, Length: length}
}

func TestMergeOfOneListIsThatList(t *testing.T) {
	l := start(1, file("b", 0, 3*block), file("a", 4096, 4096), file("b", 10*block, 100))
	l.Disk, l.Metadata = disk, []accesslist.Range{{Offset: 10 * block, Length: 4096}, {Offset: 0, Length: 4096}}
	merged, err := accesslist.Merge(l)
	require.NoError(t, err)
	require.Equal(t, l, merged)
}

func TestMergeKeepsWhatHalfOfThemHave(t *testing.T) {
	merged, err := accesslist.Merge(
		start(1, file("a", 0, 4096), file("rare", 0, 4096), file("b", 0, 4096)),
		start(3, file("a", 8192, 4096), file("b", 0, 4096), file("half", 0, 10)),
		start(2, file("b", 0, 2*block), file("half", 0, 20)),
		start(2, file("a", 0, 4096)),
	)
	require.NoError(t, err)
	require.Equal(t, time.Unix(3, 0).UTC(), merged.Recorded)
	// a: places 0, 0, 0; b: 2/3, 1/3, 0; half: 2/3, 2/3. Both ends of a are kept, the second block of b only one list
	// has.
	require.Equal(t, []accesslist.FileRange{file("a", 0, 12288), file("b", 0, block), file("half", 0, 20)}, merged.Files)
}

func TestMergeTakesMetadataOfTheNewestDisk(t *testing.T) {
	with := func(l *accesslist.List, of string, offset int64) *accesslist.List {
		l.Disk, l.Metadata = layerA, []accesslist.Range{{Offset: offset, Length: 4096}}
		if of == "new" {
			l.Disk = disk
		}
		return l
	}
	merged, err := accesslist.Merge(with(start(1), "old", 0), with(start(2), "old", 0), with(start(3), "new", block))
	require.NoError(t, err)
	require.Equal(t, disk, merged.Disk)
	require.Equal(t, []accesslist.Range{{Offset: block, Length: 4096}}, merged.Metadata)
}

func TestMergeRefuses(t *testing.T) {
	other := start(1)
	other.Image = "app:2"
	bad := start(1, file("/etc/passwd", 0, 1))
	for name, lists := range map[string][]*accesslist.List{"none": nil, "other image": {start(1), other}, "bad": {bad}} {
		t.Run(name, func(t *testing.T) {
			_, err := accesslist.Merge(lists...)
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
		})
	}
}
