package erofs_test

import (
	"archive/tar"
	"bytes"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk/layertest"
)

func unhex(t testing.TB, s string) string {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	require.NoError(t, err)
	return string(b)
}

const (
	capNetBind   = "01000002 00040000 00000000 00000000 00000000"
	capRootOwned = "01000003 00040000 00000000 00000000 00000000 00000000"
	capNamespace = "01000003 00040000 00000000 00000000 00000000 a0860100"
	aclNamed     = "02000000 0100 0700 ffffffff 0200 0600 e8030000 0400 0500 ffffffff 1000 0700 ffffffff 2000 0400 ffffffff"
	aclSloppyID  = "02000000 0100 0700 00000000 0400 0500 00000000 0800 0600 e8030000 1000 0700 ffffffff 2000 0400 01000000"
	aclMinimal   = "02000000 0100 0600 ffffffff 0400 0400 ffffffff 2000 0400 ffffffff"
	aclVersion1  = "01000000 0100 0600 ffffffff 0400 0400 ffffffff 2000 0400 ffffffff"
	aclEmpty     = "02000000"
)

// part is a piece of the torture archive; untimed are the names in it whose time containerd takes from the clock.
type part struct {
	name    string
	fill    func(t testing.TB, l *layertest.Tar)
	untimed []string
}

func parts() []part {
	reg := func(l *layertest.Tar, h tar.Header, data string) {
		h.Typeflag = tar.TypeReg
		l.Add(h, data)
	}
	return []part{
		{name: "plain", fill: func(t testing.TB, l *layertest.Tar) {
			l.Dir("etc/", 0o755).File("etc/passwd", "root").File("etc/empty", "").Dir("usr", 0o755).Dir("usr/bin", 0o1777)
			l.File("/absolute/name", "x").File("./dotted/name", "x").File("../outside", "x").File("a/../../b/../climbing", "x")
			l.File("double//slash///name", "x")
		}, untimed: []string{"absolute", "dotted", "double", "double/slash"}},
		{name: "root entry is ignored", fill: func(t testing.TB, l *layertest.Tar) {
			l.Add(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700, Uid: 5, PAXRecords: layertest.Xattrs("user.x", "y")}, "")
			l.Add(tar.Header{Typeflag: tar.TypeReg, Name: "/.", Mode: 0o700}, "ignored").File("f", "x")
			l.Add(tar.Header{Typeflag: tar.TypeSymlink, Name: "..", Linkname: "x"}, "")
		}},
		{name: "owners and modes", fill: func(t testing.TB, l *layertest.Tar) {
			reg(l, tar.Header{Name: "su", Mode: 0o6755, Gid: 42}, "suid")
			reg(l, tar.Header{Name: "big-owner", Uid: 3_000_000_000, Gid: 4_294_967_294}, "x")
			reg(l, tar.Header{Name: "kept-owner", Mode: 0o600, Uid: 4_294_967_295, Gid: 4_294_967_295}, "x")
			reg(l, tar.Header{Name: "65536", Mode: 0o1600, Uid: 65536, Gid: 65537}, "x")
			reg(l, tar.Header{Name: "cut-owner", Mode: 0o600, Uid: 4_294_967_296 + 7, Gid: 4_294_967_296 + 8}, "x")
			l.Add(tar.Header{Typeflag: tar.TypeDir, Name: "setgid", Mode: 0o2775, Gid: 77}, "")
			l.File("setgid/implied/f", "x").Dir("setgid/dir", 0o755)
			reg(l, tar.Header{Name: "setgid/kept", Mode: 0o600, Gid: 4_294_967_295}, "x")
			l.Add(tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "su", Uid: 7, Gid: 8, Mode: 0o600}, "")
		}, untimed: []string{"setgid/implied"}},
		{name: "times", fill: func(t testing.TB, l *layertest.Tar) {
			for i, at := range []time.Time{
				time.Unix(-5, 0), time.Unix(0, 0), time.Unix(1<<33+7, 999_999_999), time.Unix(9_223_372_036, 854_775_807),
				time.Unix(9_223_372_037, 0), time.Unix(1<<40, 0), time.Unix(1, 1),
			} {
				reg(l, tar.Header{Name: fmt.Sprintf("%d", i), ModTime: at}, "x")
				l.Add(tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%d", i), Mode: 0o755, ModTime: at}, "")
				l.Add(tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprintf("l%d", i), Linkname: "x", ModTime: at}, "")
			}
			l.Add(tar.Header{Typeflag: tar.TypeDir, Name: "d0", Mode: 0o711, ModTime: time.Unix(77, 0)}, "")
			l.File("d0/after", "x").File("implied/f", "x")
			l.Add(tar.Header{Typeflag: tar.TypeReg, Name: "atime", ModTime: time.Unix(5, 0), AccessTime: time.Unix(9, 0)}, "x")
		}, untimed: []string{"implied"}},
		{name: "devices", fill: func(t testing.TB, l *layertest.Tar) {
			l.Add(tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}, "")
			l.Add(tar.Header{Typeflag: tar.TypeBlock, Name: "nvme", Mode: 0o660, Devmajor: 259, Devminor: 1000, Gid: 6}, "")
			l.Add(tar.Header{Typeflag: tar.TypeBlock, Name: "wide", Mode: 0o660, Devmajor: 4095, Devminor: 1048575}, "")
			l.Add(tar.Header{Typeflag: tar.TypeBlock, Name: "cut", Mode: 0o660, Devmajor: 4097, Devminor: 1048577}, "")
			l.Add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o1622, Devmajor: 5, Devminor: 5}, "")
			l.Add(tar.Header{Typeflag: tar.TypeChar, Name: "zero-zero", Mode: 0o600}, "")
		}},
		{name: "symbolic links", fill: func(t testing.TB, l *layertest.Tar) {
			for _, n := range []int{1, 59, 60, 4000, 4031, 4032, 4033, 4095} {
				l.Symlink(fmt.Sprintf("link-%d", n), strings.Repeat("y", n))
			}
			l.Symlink("dangling", "/no/where").Symlink("self", "self")
			l.Dir("real", 0o755).Symlink("abs", "/real").Symlink("rel", "real").Symlink("up", "../../real").Symlink("chain", "abs")
			l.File("abs/1", "1").File("rel/2", "2").File("up/3", "3").File("chain/4", "4").File("chain/new/5", "5")
			l.Symlink("to-missing", "made/later").File("to-missing/6", "6")
			l.Symlink("real/back", "..").File("real/back/7", "7").Symlink("real/twice", "back/real").File("rel/twice/8", "8")
			l.Add(tar.Header{Typeflag: tar.TypeDir, Name: "rel/twice/d", Mode: 0o700, ModTime: time.Unix(44, 0)}, "")
			// Text, not the directory, decides what ".." means behind a link to a link.
			l.Symlink("c/d/l", "../x").Symlink("b", "c/d").Symlink("a", "b").File("a/l/f", "odd")
		}, untimed: []string{"real/new", "made", "made/later", "c", "c/d", "x"}},
		{name: "hard links", fill: func(t testing.TB, l *layertest.Tar) {
			reg(l, tar.Header{Name: "h/a", Mode: 0o755, PAXRecords: layertest.Xattrs("security.capability", unhex(t, capNetBind), "user.k", "v")}, "hard")
			l.Add(tar.Header{Typeflag: tar.TypeLink, Name: "h/b", Linkname: "h/a", Mode: 0o600, Uid: 9, ModTime: time.Unix(99, 9)}, "")
			l.Add(tar.Header{Typeflag: tar.TypeLink, Name: "a-first", Linkname: "/h/../h/b", Mode: 0o640, PAXRecords: layertest.Xattrs("user.l", "w")}, "")
			l.Symlink("sym", "h/a").Add(tar.Header{Typeflag: tar.TypeLink, Name: "h/sym", Linkname: "sym", Mode: 0o777, Uid: 3}, "")
			l.Add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600}, "").Link("h/fifo", "fifo")
			l.Add(tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 1, Devminor: 5}, "").Link("h/dev", "dev")
			l.File(".wh.gone", "").Link("h/whiteout", "gone")
			l.File("later", "old").Link("h/old", "later").File("later", "new")
			l.Symlink("dirlink", "h").Link("h/c", "dirlink/a").Link("trailing", "h/a/").Link("escaped", "../../h/a")
			// More names than the archive's order or the sorted order would give away.
			for i := range 300 {
				l.Link(fmt.Sprintf("many/%03d", (i*7)%300), "h/a")
			}
		}, untimed: []string{"h", "many"}},
		{name: "whiteouts", fill: func(t testing.TB, l *layertest.Tar) {
			l.Add(tar.Header{Typeflag: tar.TypeReg, Name: "d/.wh.gone", Mode: 0o777, Uid: 12, Gid: 13}, "")
			l.File(".wh.top", "ignored data").File(".wh..hidden", "").File(".wh..wh.plnk", "").File("d/.wh..wh.aufs", "")
			l.Dir("before", 0o755).File("before/.wh..wh..opq", "").File("before/f", "x")
			l.Dir("after", 0o755).File("after/f", "x").File("after/.wh..wh..opq", "").File("after/.wh..wh..opq", "")
			l.File("implied/.wh..wh..opq", "").File(".wh.dir/f", "a directory that looks like a whiteout")
			l.File(".wh.back", "").File("back", "again").File(".wh.backdir", "").Dir("backdir", 0o755).File("backdir/f", "x")
			l.Dir("merged", 0o700).File("merged/.wh..wh..opq", "").Dir("merged", 0o755)
			l.File(".wh."+strings.Repeat("w", 255), "")
		}, untimed: []string{
			"d", "d/gone", "top", ".hidden", ".wh.plnk", "d/.wh.aufs", "implied", ".wh.dir", strings.Repeat("w", 255),
		}},
		{name: "opaque root", fill: func(t testing.TB, l *layertest.Tar) { l.File(".wh..wh..opq", "").File("f", "x") }},
		{name: "replacing", fill: func(t testing.TB, l *layertest.Tar) {
			l.File("twice", "1").File("twice", "22")
			l.Dir("dir-to-file/sub", 0o755).File("dir-to-file/sub/f", "x").File("file-to-dir", "x").Dir("file-to-dir", 0o700)
			l.File("file-to-link", "x").Symlink("file-to-link", "twice").Symlink("link-to-dir", "twice").Dir("link-to-dir", 0o755)
			l.File("link-to-dir/f", "x").Symlink("link-to-file", "twice").File("link-to-file", "own")
			l.File("fifo", "x").Add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600}, "")
			l.Add(tar.Header{Typeflag: tar.TypeDir, Name: "gone", Mode: 0o755, ModTime: time.Unix(8, 0)}, "").File("gone", "takes the directory's time")
			l.Add(tar.Header{Typeflag: tar.TypeDir, Name: "other", Mode: 0o755, ModTime: time.Unix(9, 0)}, "")
			l.Add(tar.Header{Typeflag: tar.TypeDir, Name: "moved", Mode: 0o755, ModTime: time.Unix(10, 0)}, "").Symlink("moved", "other")
			l.Dir("p", 0o755).Add(tar.Header{Typeflag: tar.TypeDir, Name: "p/a", Mode: 0o700, ModTime: time.Unix(11, 0)}, "")
			l.File("p", "x").Dir("p", 0o755).File("p/a/f", "x")
			l.Dir("merge", 0o755).File("merge/kept", "x")
			l.Add(tar.Header{Typeflag: tar.TypeDir, Name: "merge", Mode: 0o750, Uid: 4, PAXRecords: layertest.Xattrs("user.a", "1")}, "")
			l.Add(tar.Header{Typeflag: tar.TypeDir, Name: "merge", Mode: 0o770, PAXRecords: layertest.Xattrs("user.b", "2")}, "")
		}, untimed: []string{"dir-to-file"}},
		{name: "xattrs", fill: func(t testing.TB, l *layertest.Tar) {
			many := make(map[string]string)
			for i := range 40 {
				maps.Copy(many, layertest.Xattrs(fmt.Sprintf("user.number-%d", i), strings.Repeat("v", i)))
			}
			reg(l, tar.Header{Name: "many", PAXRecords: many}, "x")
			reg(l, tar.Header{Name: "large", PAXRecords: layertest.Xattrs("user.large", strings.Repeat("z", 3500))}, "x")
			reg(l, tar.Header{Name: "huge", PAXRecords: layertest.Xattrs("user.1", strings.Repeat("z", 30_000), "user.2", strings.Repeat("z", 65_535))}, "x")
			l.Add(tar.Header{Typeflag: tar.TypeDir, Name: "hugedir", Mode: 0o755, PAXRecords: layertest.Xattrs("user.1", strings.Repeat("z", 9_001))}, "")
			l.File("hugedir/f", "x")
			l.Add(tar.Header{Typeflag: tar.TypeSymlink, Name: "hugelink", Linkname: "x", PAXRecords: layertest.Xattrs("security.1", strings.Repeat("z", 5_000))}, "")
			reg(l, tar.Header{Name: "cap", PAXRecords: layertest.Xattrs("security.capability", unhex(t, capNetBind))}, "x")
			reg(l, tar.Header{Name: "cap-v3", PAXRecords: layertest.Xattrs("security.capability", unhex(t, capRootOwned))}, "x")
			reg(l, tar.Header{Name: "cap-ns", PAXRecords: layertest.Xattrs("security.capability", unhex(t, capNamespace))}, "x")
			reg(l, tar.Header{Name: "ignored", PAXRecords: layertest.Xattrs("trusted.overlay.opaque", "y", "trusted.x", "y", "com.apple.quarantine", "y",
				"system.nfs4_acl", "x", "user", "x", "lustre.lov", "x")}, "x")
			reg(l, tar.Header{Name: "binary", PAXRecords: layertest.Xattrs("user.bin", "\xff\xfe=\n\x01", "security.other", "1", "user.empty", "")}, "x")
			reg(l, tar.Header{Name: "longname", PAXRecords: layertest.Xattrs("user."+strings.Repeat("n", 250), "v")}, "x")
			l.Add(tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "x", PAXRecords: layertest.Xattrs("user.ignored", "1", "security.kept", "1",
				"system.posix_acl_access", unhex(t, aclNamed))}, "")
			l.Add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", PAXRecords: layertest.Xattrs("user.ignored", "1", "security.kept", "1")}, "")
			l.Add(tar.Header{Typeflag: tar.TypeDir, Name: "dir", Mode: 0o755, PAXRecords: layertest.Xattrs("user.d", "1", "security.capability", unhex(t, capNetBind))}, "")
		}},
		{name: "ACLs", fill: func(t testing.TB, l *layertest.Tar) {
			access := func(v string) map[string]string { return layertest.Xattrs("system.posix_acl_access", unhex(t, v)) }
			reg(l, tar.Header{Name: "named", Mode: 0o640, PAXRecords: access(aclNamed)}, "x")
			reg(l, tar.Header{Name: "sloppy", Mode: 0o4711, PAXRecords: access(aclSloppyID)}, "x")
			reg(l, tar.Header{Name: "minimal", Mode: 0o751, PAXRecords: access(aclMinimal)}, "x")
			reg(l, tar.Header{Name: "version1", Mode: 0o751, PAXRecords: access(aclVersion1)}, "x")
			reg(l, tar.Header{Name: "empty", Mode: 0o751, PAXRecords: access(aclEmpty)}, "x")
			reg(l, tar.Header{Name: "no-default", Mode: 0o751, PAXRecords: layertest.Xattrs("system.posix_acl_default", unhex(t, aclEmpty))}, "x")
			l.Add(tar.Header{Typeflag: tar.TypeLink, Name: "named-too", Linkname: "named", Mode: 0o604}, "")
			l.Add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o604, PAXRecords: access(aclNamed)}, "")
			for _, d := range []struct{ name, acl string }{{"inherit", aclNamed}, {"inherit-minimal", aclMinimal}} {
				l.Add(tar.Header{Typeflag: tar.TypeDir, Name: d.name, Mode: 0o755, PAXRecords: layertest.Xattrs("system.posix_acl_default", unhex(t, d.acl))}, "")
				l.File(d.name+"/f", "x").Dir(d.name+"/d", 0o700).File(d.name+"/d/f", "x").Symlink(d.name+"/l", "f").Link(d.name+"/h", "named")
				l.File(d.name+"/.wh.gone", "").File(d.name+"/implied/f", "x").Add(tar.Header{Typeflag: tar.TypeFifo, Name: d.name + "/p", Mode: 0o611}, "")
				reg(l, tar.Header{Name: d.name + "/own", Mode: 0o640, PAXRecords: access(aclSloppyID)}, "x")
				reg(l, tar.Header{Name: d.name + "/none", Mode: 0o640, PAXRecords: access(aclMinimal)}, "x")
			}
		}, untimed: []string{"inherit/gone", "inherit/implied", "inherit-minimal/gone", "inherit-minimal/implied"}},
		{name: "names", fill: func(t testing.TB, l *layertest.Tar) {
			l.File(strings.Repeat("n", 255), "x").File("\xff\xfe not utf-8 \x80", "x").File("new\nline\ttab", "x").File("spa ce", "x")
			l.File("!", "before the dots").File("-", "x").File("...", "x").File(".hidden", "x").File("..x", "x").Dir("+", 0o755)
			l.File("a-b", "x").File("a/b", "x").File("a.b", "x").File("a0", "x").File("ü/ß", "x")
			l.File(strings.Repeat("deep/", 60)+"f", "x")
			l.File(strings.Repeat(strings.Repeat("l", 254)+"/", 14)+"f", "x")
		}, untimed: impliedPaths("a/b", "ü/ß", strings.Repeat("deep/", 60)+"f", strings.Repeat(strings.Repeat("l", 254)+"/", 14)+"f")},
		{name: "sizes", fill: func(t testing.TB, l *layertest.Tar) {
			for _, n := range []int{0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3<<20 + 5} {
				l.File(fmt.Sprintf("s%d", n), strings.Repeat("0123456789abcdef", n/16+1)[:n])
			}
		}},
		{name: "holes", fill: func(t testing.TB, l *layertest.Tar) {
			z := func(n int) string { return strings.Repeat("\x00", n) }
			d := func(n int) string { return strings.Repeat("d", n) }
			l.File("all", z(3<<20)).File("all-odd", z(3<<20+77)).File("just-under", z(1<<20-1)).File("just", z(1<<20))
			l.File("begin", z(2<<20)+d(5)).File("end", d(5)+z(2<<20)).File("middle", d(1<<20)+z(2<<20)+d(70_000))
			l.File("short", d(1<<20)+z(1<<20-65536)+d(3)).File("odd", d(100_001)+z(1<<20+65536)+d(100_001)+z(5<<20)+d(1))
			l.File("coarse", d(4<<20)+z(4<<20)+d(4<<20)+z(8<<20)+d(1<<20)).File("after", "plain")
			l.File("short-end", d(2<<20)+z(600_000)).File("scattered", z(65536)+d(65536)+z(65536)+d(2<<20)+z(900_000)+d(9))
		}},
		{name: "global header", fill: func(t testing.TB, l *layertest.Tar) {
			l.File("pax_global_header", "is removed").File("kept", "x")
			require.NoError(t, l.Writer.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x"}}))
			require.NoError(t, l.Writer.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "implied/by/header", PAXRecords: map[string]string{"mtime": "1"}}))
		}, untimed: []string{"implied", "implied/by"}},
		{name: "directory of 20000", fill: func(t testing.TB, l *layertest.Tar) {
			l.Dir("big", 0o755)
			for i := range 20_000 {
				l.File(fmt.Sprintf("big/%d-%s", (i*7919)%20_000, strings.Repeat("n", i%40)), "")
			}
			l.Dir("exact", 0o755) // its entries end exactly with a block
			for i := range 4 {
				l.File(fmt.Sprintf("exact/%d%s", i, strings.Repeat("e", 254)), "")
			}
			l.Dir("empty", 0o755)
		}},
	}
}

func impliedPaths(files ...string) (dirs []string) {
	for _, f := range files {
		for i, c := range f {
			if c == '/' {
				dirs = append(dirs, f[:i])
			}
		}
	}
	return dirs
}

func TestTorture(t *testing.T) {
	var layers [][]byte
	all := parts()
	for _, p := range all {
		l := layertest.NewTar(t)
		p.fill(t, l)
		layers = append(layers, l.Bytes())
	}
	file, layout := writeImage(t, nil, layers...)
	require.NotZero(t, layout.Holes())
	t.Run("fsck", func(t *testing.T) { requireFsck(t, file) })
	t.Run("same bytes twice", func(t *testing.T) {
		again, _ := writeImage(t, nil, layers...)
		a, err := os.ReadFile(file)
		require.NoError(t, err)
		b, err := os.ReadFile(again)
		require.NoError(t, err)
		require.True(t, bytes.Equal(a, b))
	})
	needRoot(t)
	root := mountImage(t, file)
	for i, p := range all {
		t.Run(p.name, func(t *testing.T) {
			dir, err := layertest.Apply(t, layers[i])
			require.NoError(t, err)
			layertest.RequireSame(t, layertest.Look(t, dir), layertest.Look(t, fmt.Sprintf("%s/l/%s", root, base36(i))), p.untimed...)
		})
	}
}
