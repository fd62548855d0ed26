package doctor

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/continuity/fs"
	"github.com/docker/go-units"
	"golang.org/x/sys/unix"
)

// lowSpace is the free space below which the file system of local layers counts as nearly full: about one large image.
const lowSpace = 5 << 30

func checkKernel(n Node) []Result {
	var results []Result
	var uname unix.Utsname
	release := "unknown"
	if err := unix.Uname(&uname); err == nil {
		release = unix.ByteSliceToString(uname.Release[:])
	}
	known, err := os.ReadFile(cmp.Or(n.ProcFileSystems, "/proc/filesystems"))
	if err != nil {
		results = append(results, Result{"file systems", Warn, err.Error(), "mount /proc"})
	} else {
		results = append(results,
			n.fileSystem(known, release, "overlay", Fail, "use a kernel with CONFIG_OVERLAY_FS"),
			n.fileSystem(known, release, "erofs", Warn,
				"use a kernel with CONFIG_EROFS_FS; without it only layer disks built with --fs ext4 can be used"))
	}
	results = append(results, checkLoop(n), checkIDMapped())
	return append([]Result{{"kernel", OK, "Linux " + release, ""}}, results...)
}

// fileSystem looks for a file system among those that the kernel has now, then among the modules that mount(2) would
// load.
func (n Node) fileSystem(known []byte, release, name string, missing Status, advice string) Result {
	for line := range bytes.Lines(known) {
		if fields := strings.Fields(string(line)); len(fields) > 0 && fields[len(fields)-1] == name {
			return Result{"file system " + name, OK, "known to the kernel", ""}
		}
	}
	modules, err := os.ReadFile(filepath.Join(cmp.Or(n.Modules, "/lib/modules"), release, "modules.dep"))
	if err == nil && bytes.Contains(modules, []byte("/"+name+".ko")) {
		return Result{"file system " + name, OK, "a module, loaded at the first mount", ""}
	}
	return Result{"file system " + name, missing, "neither known to the kernel nor a module of it", advice}
}

func checkLoop(n Node) Result {
	path := cmp.Or(n.LoopControl, "/dev/loop-control")
	if _, err := os.Stat(path); err != nil {
		return Result{"loop devices", Warn, err.Error(),
			"load the module loop; without it only block devices can be attached, not disk images in files"}
	}
	return Result{"loop devices", OK, path, ""}
}

func checkIDMapped() Result {
	const name = "id-mapped mounts"
	if os.Geteuid() != 0 {
		return Result{name, Warn, "not checked", "run berth doctor as root"}
	}
	ok, err := overlayutils.SupportsIDMappedMounts()
	switch {
	case err != nil:
		return Result{name, Warn, err.Error(), "use Linux 5.19 or later: pods in a user namespace copy their image otherwise"}
	case !ok:
		return Result{name, Warn, "overlay does not take them",
			"use Linux 5.19 or later: pods in a user namespace copy their image otherwise"}
	}
	return Result{name, OK, "overlay takes them", ""}
}

// checkRoot checks the file system of local layers: the root's own, or that of the nearest directory above.
func checkRoot(n Node) []Result {
	dir := n.Root
	for {
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			return []Result{{"root", Fail, dir + " is no directory", "remove it, or set another root in berthd's configuration"}}
		}
		if err == nil || dir == "/" {
			break
		}
		dir = filepath.Dir(dir)
	}
	results := []Result{checkSpace(n.Root, dir)}
	if os.Geteuid() != 0 {
		return append(results, Result{"overlay on root", Warn, "not checked", "run berth doctor as root"})
	}
	if ok, err := fs.SupportsDType(dir); err == nil && !ok {
		return append(results, Result{"overlay on root", Fail, "the file system of " + dir + " does not tell file types (d_type)",
			"use ext4, or xfs made with ftype=1"})
	}
	if err := overlayutils.Supported(dir); err != nil {
		return append(results, Result{"overlay on root", Fail, err.Error(),
			"put root on ext4 or xfs (overlay cannot lie on overlay: not inside of a container)"})
	}
	return append(results, Result{"overlay on root", OK, "mounts on the file system of " + dir, ""})
}

func checkSpace(root, dir string) Result {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return Result{"space", Warn, fmt.Sprintf("%s: %v", dir, err), "check that root can be read"}
	}
	free := st.Bavail * uint64(st.Bsize)
	detail := fmt.Sprintf("%s free for %s, %d inodes", units.BytesSize(float64(free)), root, st.Ffree)
	if free < lowSpace {
		return Result{"space", Warn, detail, "what disks lack is unpacked there: make room, or put root elsewhere"}
	}
	return Result{"space", OK, detail, ""}
}

func checkTools() []Result {
	var results []Result
	for _, tool := range []struct{ name, pkg, use string }{
		{"mkfs.ext4", "e2fsprogs", "berth build --fs ext4 needs it"},
		{"igzip", "isal", "containerd unpacks gzip layers that no disk has about twice as fast with it"},
	} {
		if path, err := exec.LookPath(tool.name); err == nil {
			results = append(results, Result{tool.name, OK, path, ""})
		} else {
			results = append(results, Result{tool.name, Warn, "not installed", "install " + tool.pkg + ": " + tool.use})
		}
	}
	return results
}
