//go:build integration

package integration

import (
	"fmt"
	"strings"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/image"
)

// capability is cap_net_raw=ep in the form of version 2, see capabilities(7).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func (n *node) busybox() image.Layer {
	n.Helper()
	l, err := image.Busybox()
	require.NoError(n, err)
	return l
}

// small is a layer with one file of its own.
func small(name string) image.Layer {
	return image.Layer{Entries: []image.Entry{image.Dir("s"), image.File("s/"+name, "content of "+name)}}
}

// everyKind has each kind of entry and attribute that a layer can hold.
func everyKind() image.Layer {
	e := []image.Entry{
		image.Dir("a", image.Mode(0o2750), image.Owner(1000, 70000), image.Mtime(time.Unix(1234567890, 123456789))),
		image.File("a/setuid", "x", image.Mode(0o4755)),
		image.File("a/owned", "y", image.Owner(65536, 4000000000), image.Mtime(time.Unix(1, 1))),
		image.File("a/empty", ""),
		image.File("a/large", strings.Repeat("0123456789abcdef", 1<<16)),
		image.File("a/capable", "z", image.Mode(0o755), image.Xattr("security.capability", capability)),
		image.File("a/labelled", "l", image.Xattr("user.one", "1"), image.Xattr("user.binary", "\x00\xff"), image.Xattr("trusted.t", "t")),
		image.HardLink("a/second", "a/owned"),
		image.Symlink("a/link", strings.Repeat("long/", 200)+"end", image.Mtime(time.Unix(5, 5))),
		image.Symlink("a/short", "owned"),
		image.CharDevice("a/null", 1, 3, image.Mode(0o666)),
		image.BlockDevice("a/disk", 259, 70000),
		image.FIFO("a/pipe", image.Owner(5, 6)),
		image.Dir("a/sticky", image.Mode(0o1777)),
		image.File("a/"+strings.Repeat("n", 255), "long name"),
		image.File("a/"+"\u00fcml\u00e4ut \t\n", "odd name"),
		image.Dir("gone"), image.File("gone/1", "1"), image.File("gone/2", "2"),
		image.Dir("hidden"), image.File("hidden/lower", "lower"), image.Dir("hidden/sub"), image.File("hidden/sub/lower", "lower"),
		image.File("turns", "a file"), image.Dir("falls"), image.File("falls/inside", "x"),
		image.Dir("many"),
	}
	for i := range 2000 {
		e = append(e, image.File(fmt.Sprintf("many/entry-%04d", i), fmt.Sprint(i)))
	}
	return image.Layer{Entries: e}
}

// deletes changes what everyKind made: whiteouts, an opaque directory, kinds that change.
func deletes() image.Layer {
	return image.Layer{Entries: []image.Entry{
		image.Dir("a", image.Mode(0o2750), image.Owner(1000, 70000), image.Mtime(time.Unix(1234567890, 5))),
		image.Whiteout("a", "setuid"), image.Whiteout("", "gone"),
		image.Dir("hidden"), image.Opaque("hidden"), image.File("hidden/upper", "upper"),
		image.Dir("turns"), image.File("turns/inside", "was a file"),
		image.Whiteout("", "falls"), image.File("falls", "was a directory"),
		image.Dir("many"), image.Whiteout("many", "entry-0000"), image.File("many/entry-0001", "changed", image.Mode(0o600)),
	}}
}

// restores brings back what deletes took.
func restores() image.Layer {
	return image.Layer{Compression: image.Zstd, Entries: []image.Entry{
		image.Dir("gone"), image.File("gone/3", "3"),
		image.Dir("a", image.Mode(0o755)), image.File("a/setuid", "again", image.Mode(0o6755)),
	}}
}

// fiveLayers is an image whose layers build on one another.
func (n *node) fiveLayers() []image.Layer {
	return []image.Layer{n.busybox(), everyKind(), deletes(), restores(), small("top")}
}
