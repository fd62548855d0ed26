package image

import (
	"fmt"
	"strings"
	"time"
)

// capability is cap_net_raw=ep in the form of version 2, see capabilities(7).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// EveryKind has each kind of entry and attribute that a layer can hold.
func EveryKind() Layer {
	e := []Entry{
		Dir("a", Mode(0o2750), Owner(1000, 70000), Mtime(time.Unix(1234567890, 123456789))),
		File("a/setuid", "x", Mode(0o4755)),
		File("a/owned", "y", Owner(65536, 4000000000), Mtime(time.Unix(1, 1))),
		File("a/empty", ""),
		File("a/large", strings.Repeat("0123456789abcdef", 1<<16)),
		File("a/capable", "z", Mode(0o755), Xattr("security.capability", capability)),
		File("a/labelled", "l", Xattr("user.one", "1"), Xattr("user.binary", "\x00\xff"), Xattr("trusted.t", "t")),
		HardLink("a/second", "a/owned"),
		Symlink("a/link", strings.Repeat("long/", 200)+"end", Mtime(time.Unix(5, 5))),
		Symlink("a/short", "owned"),
		CharDevice("a/null", 1, 3, Mode(0o666)),
		BlockDevice("a/disk", 259, 70000),
		FIFO("a/pipe", Owner(5, 6)),
		Dir("a/sticky", Mode(0o1777)),
		File("a/"+strings.Repeat("n", 255), "long name"),
		File("a/"+"\u00fcml\u00e4ut \t\n", "odd name"),
		Dir("gone"), File("gone/1", "1"), File("gone/2", "2"),
		Dir("hidden"), File("hidden/lower", "lower"), Dir("hidden/sub"), File("hidden/sub/lower", "lower"),
		File("turns", "a file"), Dir("falls"), File("falls/inside", "x"),
		Dir("many"),
	}
	for i := range 2000 {
		e = append(e, File(fmt.Sprintf("many/entry-%04d", i), fmt.Sprint(i)))
	}
	return Layer{Entries: e}
}

// Deletes changes what EveryKind made: whiteouts, an opaque directory, kinds that change.
func Deletes() Layer {
	return Layer{Entries: []Entry{
		Dir("a", Mode(0o2750), Owner(1000, 70000), Mtime(time.Unix(1234567890, 5))),
		Whiteout("a", "setuid"), Whiteout("", "gone"),
		Dir("hidden"), Opaque("hidden"), File("hidden/upper", "upper"),
		Dir("turns"), File("turns/inside", "was a file"),
		Whiteout("", "falls"), File("falls", "was a directory"),
		Dir("many"), Whiteout("many", "entry-0000"), File("many/entry-0001", "changed", Mode(0o600)),
	}}
}

// Restores brings back what deletes took.
func Restores() Layer {
	return Layer{Compression: Zstd, Entries: []Entry{
		Dir("gone"), File("gone/3", "3"),
		Dir("a", Mode(0o755)), File("a/setuid", "again", Mode(0o6755)),
	}}
}
