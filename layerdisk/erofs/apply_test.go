package erofs_test

import (
	"archive/tar"
	"encoding/hex"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func unhex(t testing.TB, s string) string {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	require.NoError(t, err)
	return string(b)
}

func xattr(pairs ...string) map[string]string {
	m := make(map[string]string)
	for i := 0; i < len(pairs); i += 2 {
		m["SCHILY.xattr."+pairs[i]] = pairs[i+1]
	}
	return m
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
	fill    func(t testing.TB, l *layerTar)
	untimed []string
}

func parts() []part {
	reg := func(l *layerTar, h tar.Header, data string) {
		l.t.Helper()
		h.Typeflag = tar.TypeReg
		l.add(h, data)
	}
	return []part{
		{name: "plain", fill: func(t testing.TB, l *layerTar) {
			l.dir("etc/", 0o755).file("etc/passwd", "root").file("etc/empty", "").dir("usr", 0o755).dir("usr/bin", 0o1777)
			l.file("/absolute/name", "x").file("./dotted/name", "x").file("../outside", "x").file("a/../../b/../climbing", "x")
			l.file("double//slash///name", "x")
		}, untimed: []string{"absolute", "dotted", "double", "double/slash"}},
		{name: "root entry is ignored", fill: func(t testing.TB, l *layerTar) {
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700, Uid: 5, PAXRecords: xattr("user.x", "y")}, "")
			l.add(tar.Header{Typeflag: tar.TypeReg, Name: "/.", Mode: 0o700}, "ignored").file("f", "x")
			l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "..", Linkname: "x"}, "")
		}},
		{name: "owners and modes", fill: func(t testing.TB, l *layerTar) {
			reg(l, tar.Header{Name: "su", Mode: 0o6755, Gid: 42}, "suid")
			reg(l, tar.Header{Name: "big-owner", Uid: 3_000_000_000, Gid: 4_294_967_294}, "x")
			reg(l, tar.Header{Name: "kept-owner", Mode: 0o600, Uid: 4_294_967_295, Gid: 4_294_967_295}, "x")
			reg(l, tar.Header{Name: "65536", Mode: 0o1600, Uid: 65536, Gid: 65537}, "x")
			reg(l, tar.Header{Name: "cut-owner", Mode: 0o600, Uid: 4_294_967_296 + 7, Gid: 4_294_967_296 + 8}, "x")
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: "setgid", Mode: 0o2775, Gid: 77}, "")
			l.file("setgid/implied/f", "x").dir("setgid/dir", 0o755)
			reg(l, tar.Header{Name: "setgid/kept", Mode: 0o600, Gid: 4_294_967_295}, "x")
			l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "su", Uid: 7, Gid: 8, Mode: 0o600}, "")
		}, untimed: []string{"setgid/implied"}},
		{name: "times", fill: func(t testing.TB, l *layerTar) {
			for i, at := range []time.Time{
				time.Unix(-5, 0), time.Unix(0, 0), time.Unix(1<<33+7, 999_999_999), time.Unix(9_223_372_036, 854_775_807),
				time.Unix(9_223_372_037, 0), time.Unix(1<<40, 0), time.Unix(1, 1),
			} {
				reg(l, tar.Header{Name: fmt.Sprintf("%d", i), ModTime: at}, "x")
				l.add(tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("d%d", i), Mode: 0o755, ModTime: at}, "")
				l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: fmt.Sprintf("l%d", i), Linkname: "x", ModTime: at}, "")
			}
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: "d0", Mode: 0o711, ModTime: time.Unix(77, 0)}, "")
			l.file("d0/after", "x").file("implied/f", "x")
			l.add(tar.Header{Typeflag: tar.TypeReg, Name: "atime", ModTime: time.Unix(5, 0), AccessTime: time.Unix(9, 0)}, "x")
		}, untimed: []string{"implied"}},
		{name: "devices", fill: func(t testing.TB, l *layerTar) {
			l.add(tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}, "")
			l.add(tar.Header{Typeflag: tar.TypeBlock, Name: "nvme", Mode: 0o660, Devmajor: 259, Devminor: 1000, Gid: 6}, "")
			l.add(tar.Header{Typeflag: tar.TypeBlock, Name: "wide", Mode: 0o660, Devmajor: 4095, Devminor: 1048575}, "")
			l.add(tar.Header{Typeflag: tar.TypeBlock, Name: "cut", Mode: 0o660, Devmajor: 4097, Devminor: 1048577}, "")
			l.add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o1622, Devmajor: 5, Devminor: 5}, "")
			l.add(tar.Header{Typeflag: tar.TypeChar, Name: "zero-zero", Mode: 0o600}, "")
		}},
		{name: "symbolic links", fill: func(t testing.TB, l *layerTar) {
			for _, n := range []int{1, 59, 60, 4000, 4031, 4032, 4033, 4095} {
				l.symlink(fmt.Sprintf("link-%d", n), strings.Repeat("y", n))
			}
			l.symlink("dangling", "/no/where").symlink("self", "self")
			l.dir("real", 0o755).symlink("abs", "/real").symlink("rel", "real").symlink("up", "../../real").symlink("chain", "abs")
			l.file("abs/1", "1").file("rel/2", "2").file("up/3", "3").file("chain/4", "4").file("chain/new/5", "5")
			l.symlink("to-missing", "made/later").file("to-missing/6", "6")
			l.symlink("real/back", "..").file("real/back/7", "7").symlink("real/twice", "back/real").file("rel/twice/8", "8")
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: "rel/twice/d", Mode: 0o700, ModTime: time.Unix(44, 0)}, "")
			// Text, not the directory, decides what ".." means behind a link to a link.
			l.symlink("c/d/l", "../x").symlink("b", "c/d").symlink("a", "b").file("a/l/f", "odd")
		}, untimed: []string{"real/new", "made", "made/later", "c", "c/d", "x"}},
		{name: "hard links", fill: func(t testing.TB, l *layerTar) {
			reg(l, tar.Header{Name: "h/a", Mode: 0o755, PAXRecords: xattr("security.capability", unhex(t, capNetBind), "user.k", "v")}, "hard")
			l.add(tar.Header{Typeflag: tar.TypeLink, Name: "h/b", Linkname: "h/a", Mode: 0o600, Uid: 9, ModTime: time.Unix(99, 9)}, "")
			l.add(tar.Header{Typeflag: tar.TypeLink, Name: "a-first", Linkname: "/h/../h/b", Mode: 0o640, PAXRecords: xattr("user.l", "w")}, "")
			l.symlink("sym", "h/a").add(tar.Header{Typeflag: tar.TypeLink, Name: "h/sym", Linkname: "sym", Mode: 0o777, Uid: 3}, "")
			l.add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600}, "").link("h/fifo", "fifo")
			l.add(tar.Header{Typeflag: tar.TypeChar, Name: "dev", Devmajor: 1, Devminor: 5}, "").link("h/dev", "dev")
			l.file(".wh.gone", "").link("h/whiteout", "gone")
			l.file("later", "old").link("h/old", "later").file("later", "new")
			l.symlink("dirlink", "h").link("h/c", "dirlink/a").link("trailing", "h/a/").link("escaped", "../../h/a")
			// More names than the archive's order or the sorted order would give away.
			for i := range 300 {
				l.link(fmt.Sprintf("many/%03d", (i*7)%300), "h/a")
			}
		}, untimed: []string{"h", "many"}},
		{name: "whiteouts", fill: func(t testing.TB, l *layerTar) {
			l.add(tar.Header{Typeflag: tar.TypeReg, Name: "d/.wh.gone", Mode: 0o777, Uid: 12, Gid: 13}, "")
			l.file(".wh.top", "ignored data").file(".wh..hidden", "").file(".wh..wh.plnk", "").file("d/.wh..wh.aufs", "")
			l.dir("before", 0o755).file("before/.wh..wh..opq", "").file("before/f", "x")
			l.dir("after", 0o755).file("after/f", "x").file("after/.wh..wh..opq", "").file("after/.wh..wh..opq", "")
			l.file("implied/.wh..wh..opq", "").file(".wh.dir/f", "a directory that looks like a whiteout")
			l.file(".wh.back", "").file("back", "again").file(".wh.backdir", "").dir("backdir", 0o755).file("backdir/f", "x")
			l.dir("merged", 0o700).file("merged/.wh..wh..opq", "").dir("merged", 0o755)
			l.file(".wh."+strings.Repeat("w", 255), "")
		}, untimed: []string{
			"d", "d/gone", "top", ".hidden", ".wh.plnk", "d/.wh.aufs", "implied", ".wh.dir", strings.Repeat("w", 255),
		}},
		{name: "opaque root", fill: func(t testing.TB, l *layerTar) { l.file(".wh..wh..opq", "").file("f", "x") }},
		{name: "replacing", fill: func(t testing.TB, l *layerTar) {
			l.file("twice", "1").file("twice", "22")
			l.dir("dir-to-file/sub", 0o755).file("dir-to-file/sub/f", "x").file("file-to-dir", "x").dir("file-to-dir", 0o700)
			l.file("file-to-link", "x").symlink("file-to-link", "twice").symlink("link-to-dir", "twice").dir("link-to-dir", 0o755)
			l.file("link-to-dir/f", "x").symlink("link-to-file", "twice").file("link-to-file", "own")
			l.file("fifo", "x").add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600}, "")
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: "gone", Mode: 0o755, ModTime: time.Unix(8, 0)}, "").file("gone", "takes the directory's time")
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: "other", Mode: 0o755, ModTime: time.Unix(9, 0)}, "")
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: "moved", Mode: 0o755, ModTime: time.Unix(10, 0)}, "").symlink("moved", "other")
			l.dir("p", 0o755).add(tar.Header{Typeflag: tar.TypeDir, Name: "p/a", Mode: 0o700, ModTime: time.Unix(11, 0)}, "")
			l.file("p", "x").dir("p", 0o755).file("p/a/f", "x")
			l.dir("merge", 0o755).file("merge/kept", "x")
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: "merge", Mode: 0o750, Uid: 4, PAXRecords: xattr("user.a", "1")}, "")
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: "merge", Mode: 0o770, PAXRecords: xattr("user.b", "2")}, "")
		}, untimed: []string{"dir-to-file"}},
		{name: "xattrs", fill: func(t testing.TB, l *layerTar) {
			many := make(map[string]string)
			for i := range 40 {
				maps.Copy(many, xattr(fmt.Sprintf("user.number-%d", i), strings.Repeat("v", i)))
			}
			reg(l, tar.Header{Name: "many", PAXRecords: many}, "x")
			reg(l, tar.Header{Name: "large", PAXRecords: xattr("user.large", strings.Repeat("z", 3500))}, "x")
			reg(l, tar.Header{Name: "huge", PAXRecords: xattr("user.1", strings.Repeat("z", 30_000), "user.2", strings.Repeat("z", 65_535))}, "x")
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: "hugedir", Mode: 0o755, PAXRecords: xattr("user.1", strings.Repeat("z", 9_001))}, "")
			l.file("hugedir/f", "x")
			l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "hugelink", Linkname: "x", PAXRecords: xattr("security.1", strings.Repeat("z", 5_000))}, "")
			reg(l, tar.Header{Name: "cap", PAXRecords: xattr("security.capability", unhex(t, capNetBind))}, "x")
			reg(l, tar.Header{Name: "cap-v3", PAXRecords: xattr("security.capability", unhex(t, capRootOwned))}, "x")
			reg(l, tar.Header{Name: "cap-ns", PAXRecords: xattr("security.capability", unhex(t, capNamespace))}, "x")
			reg(l, tar.Header{Name: "ignored", PAXRecords: xattr("trusted.overlay.opaque", "y", "trusted.x", "y", "com.apple.quarantine", "y",
				"system.nfs4_acl", "x", "user", "x", "lustre.lov", "x")}, "x")
			reg(l, tar.Header{Name: "binary", PAXRecords: xattr("user.bin", "\xff\xfe=\n\x01", "security.other", "1", "user.empty", "")}, "x")
			reg(l, tar.Header{Name: "longname", PAXRecords: xattr("user."+strings.Repeat("n", 250), "v")}, "x")
			l.add(tar.Header{Typeflag: tar.TypeSymlink, Name: "link", Linkname: "x", PAXRecords: xattr("user.ignored", "1", "security.kept", "1",
				"system.posix_acl_access", unhex(t, aclNamed))}, "")
			l.add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", PAXRecords: xattr("user.ignored", "1", "security.kept", "1")}, "")
			l.add(tar.Header{Typeflag: tar.TypeDir, Name: "dir", Mode: 0o755, PAXRecords: xattr("user.d", "1", "security.capability", unhex(t, capNetBind))}, "")
		}},
		{name: "ACLs", fill: func(t testing.TB, l *layerTar) {
			access := func(v string) map[string]string { return xattr("system.posix_acl_access", unhex(t, v)) }
			reg(l, tar.Header{Name: "named", Mode: 0o640, PAXRecords: access(aclNamed)}, "x")
			reg(l, tar.Header{Name: "sloppy", Mode: 0o4711, PAXRecords: access(aclSloppyID)}, "x")
			reg(l, tar.Header{Name: "minimal", Mode: 0o751, PAXRecords: access(aclMinimal)}, "x")
			reg(l, tar.Header{Name: "version1", Mode: 0o751, PAXRecords: access(aclVersion1)}, "x")
			reg(l, tar.Header{Name: "empty", Mode: 0o751, PAXRecords: access(aclEmpty)}, "x")
			reg(l, tar.Header{Name: "no-default", Mode: 0o751, PAXRecords: xattr("system.posix_acl_default", unhex(t, aclEmpty))}, "x")
			l.add(tar.Header{Typeflag: tar.TypeLink, Name: "named-too", Linkname: "named", Mode: 0o604}, "")
			l.add(tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o604, PAXRecords: access(aclNamed)}, "")
			for _, d := range []struct{ name, acl string }{{"inherit", aclNamed}, {"inherit-minimal", aclMinimal}} {
				l.add(tar.Header{Typeflag: tar.TypeDir, Name: d.name, Mode: 0o755, PAXRecords: xattr("system.posix_acl_default", unhex(t, d.acl))}, "")
				l.file(d.name+"/f", "x").dir(d.name+"/d", 0o700).file(d.name+"/d/f", "x").symlink(d.name+"/l", "f").link(d.name+"/h", "named")
				l.file(d.name+"/.wh.gone", "").file(d.name+"/implied/f", "x").add(tar.Header{Typeflag: tar.TypeFifo, Name: d.name + "/p", Mode: 0o611}, "")
				reg(l, tar.Header{Name: d.name + "/own", Mode: 0o640, PAXRecords: access(aclSloppyID)}, "x")
				reg(l, tar.Header{Name: d.name + "/none", Mode: 0o640, PAXRecords: access(aclMinimal)}, "x")
			}
		}, untimed: []string{"inherit/gone", "inherit/implied", "inherit-minimal/gone", "inherit-minimal/implied"}},
		{name: "names", fill: func(t testing.TB, l *layerTar) {
			l.file(strings.Repeat("n", 255), "x").file("\xff\xfe not utf-8 \x80", "x").file("new\nline\ttab", "x").file("spa ce", "x")
			l.file("!", "before the dots").file("-", "x").file("...", "x").file(".hidden", "x").file("..x", "x").dir("+", 0o755)
			l.file("a-b", "x").file("a/b", "x").file("a.b", "x").file("a0", "x").file("ü/ß", "x")
			l.file(strings.Repeat("deep/", 60)+"f", "x")
			l.file(strings.Repeat(strings.Repeat("l", 254)+"/", 14)+"f", "x")
		}, untimed: impliedPaths("a/b", "ü/ß", strings.Repeat("deep/", 60)+"f", strings.Repeat(strings.Repeat("l", 254)+"/", 14)+"f")},
		{name: "sizes", fill: func(t testing.TB, l *layerTar) {
			for _, n := range []int{0, 1, 511, 512, 513, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3<<20 + 5} {
				l.file(fmt.Sprintf("s%d", n), strings.Repeat("0123456789abcdef", n/16+1)[:n])
			}
		}},
		{name: "holes", fill: func(t testing.TB, l *layerTar) {
			z := func(n int) string { return strings.Repeat("\x00", n) }
			d := func(n int) string { return strings.Repeat("d", n) }
			l.file("all", z(3<<20)).file("all-odd", z(3<<20+77)).file("just-under", z(1<<20-1)).file("just", z(1<<20))
			l.file("begin", z(2<<20)+d(5)).file("end", d(5)+z(2<<20)).file("middle", d(1<<20)+z(2<<20)+d(70_000))
			l.file("short", d(1<<20)+z(1<<20-65536)+d(3)).file("odd", d(100_001)+z(1<<20+65536)+d(100_001)+z(5<<20)+d(1))
			l.file("coarse", d(4<<20)+z(4<<20)+d(4<<20)+z(8<<20)+d(1<<20)).file("after", "plain")
			l.file("short-end", d(2<<20)+z(600_000)).file("scattered", z(65536)+d(65536)+z(65536)+d(2<<20)+z(900_000)+d(9))
		}},
		{name: "global header", fill: func(t testing.TB, l *layerTar) {
			l.file("pax_global_header", "is removed").file("kept", "x")
			require.NoError(t, l.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x"}}))
			require.NoError(t, l.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "implied/by/header", PAXRecords: map[string]string{"mtime": "1"}}))
		}, untimed: []string{"implied", "implied/by"}},
		{name: "directory of 20000", fill: func(t testing.TB, l *layerTar) {
			l.dir("big", 0o755)
			for i := range 20_000 {
				l.file(fmt.Sprintf("big/%d-%s", (i*7919)%20_000, strings.Repeat("n", i%40)), "")
			}
			l.dir("exact", 0o755) // its entries end exactly with a block
			for i := range 4 {
				l.file(fmt.Sprintf("exact/%d%s", i, strings.Repeat("e", 254)), "")
			}
			l.dir("empty", 0o755)
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

func TestEqualsApply(t *testing.T) {
	needRoot(t)
	var layers [][]byte
	all := parts()
	for _, p := range all {
		l := newTar(t)
		p.fill(t, l)
		layers = append(layers, l.bytes())
	}
	file, _ := writeImage(t, nil, layers...)
	root := mountImage(t, file)
	for i, p := range all {
		t.Run(p.name, func(t *testing.T) {
			dir, err := apply(t, layers[i])
			require.NoError(t, err)
			requireSame(t, look(t, dir), look(t, fmt.Sprintf("%s/l/%s", root, base36(i))), p.untimed...)
		})
	}
}
