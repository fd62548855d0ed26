package vm

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/test/harness/tools"
)

// suite of Debian that the guest runs: that of the machines the tests run on, so that programs built here run there.
const suite = "bookworm"

// packages of the guest beside Debian's smallest set. busybox-static is its init, cryptsetup-bin has veritysetup, fdisk
// sfdisk.
var packages = []string{"udev", "kmod", "iproute2", "busybox-static", "cryptsetup-bin", "fdisk", "e2fsprogs"} //nolint:gochecknoglobals // a table

// customize is run by mmdebstrap with the new tree: it unpacks the kernel that the metapackage wants, without its
// initial RAM disk, because file system and NVMe driver of the root disk are built in.
//
//go:embed customize.sh
var customize string

// rc is what init runs first.
//
//go:embed rc.sh
var rc string

// source is this file.
//
//go:embed root.go
var source string

// inittab is busybox's: init collects the processes whose parents have died.
const inittab = "::sysinit:/etc/rc\n::respawn:/opt/berth/agent\n"

// root is a guest's system: a kernel, and a file system to boot from, which must not be written to.
type root struct{ kernel, image string }

// makeRoot makes the system, or takes it from the cache. It is known by what makes it, so not by the versions of
// Debian's packages: delete it from the cache to get newer ones.
func makeRoot(ctx context.Context) (root, error) {
	cache, err := tools.CacheDir("vm")
	if err != nil {
		return root{}, err
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{source, customize, rc}, "\x00")))
	dir := filepath.Join(cache, "root-"+hex.EncodeToString(sum[:8]))
	r := root{kernel: filepath.Join(dir, "vmlinuz"), image: filepath.Join(dir, "root.img")}
	lock, err := os.OpenFile(filepath.Join(cache, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return root{}, fmt.Errorf("lock cache of virtual machines: %w", err)
	}
	defer lock.Close()
	// Whoever has the lock needs a minute at most, or has died and lost it.
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return root{}, fmt.Errorf("lock cache of virtual machines: %w", err)
	}
	if _, err := os.Stat(r.image); err == nil {
		return r, nil
	}
	temp, err := os.MkdirTemp(cache, ".new-")
	if err != nil {
		return root{}, fmt.Errorf("make root of virtual machines: %w", err)
	}
	defer os.RemoveAll(temp)
	if err := fillRoot(ctx, temp); err != nil {
		return root{}, fmt.Errorf("make root of virtual machines: %w", err)
	}
	return r, errors.Join(os.RemoveAll(dir), os.Rename(temp, dir))
}

func fillRoot(ctx context.Context, dir string) error {
	tree, hook := filepath.Join(dir, "tree"), filepath.Join(dir, "customize")
	if err := os.WriteFile(hook, []byte(customize), 0o700); err != nil { //nolint:gosec // a program
		return err
	}
	err := command(ctx, "mmdebstrap", "--quiet", "--variant=minbase", "--include="+strings.Join(packages, ","),
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--customize-hook="+hook+` "$1"`, "--format=directory", suite, tree)
	if err != nil {
		return err
	}
	files := map[string]string{
		"etc/rc": rc, "etc/inittab": inittab, "etc/hostname": "guest\n", "etc/hosts": "127.0.0.1 localhost guest\n", "etc/resolv.conf": "",
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(tree, name), []byte(text), 0o755); err != nil { //nolint:gosec // a system's files
			return err
		}
	}
	err = errors.Join(os.Symlink("/usr/bin/busybox", filepath.Join(tree, "sbin/init")),
		os.MkdirAll(filepath.Join(tree, "opt/berth"), 0o755), os.Rename(filepath.Join(tree, "boot/vmlinuz"), filepath.Join(dir, "vmlinuz")))
	if err != nil {
		return err
	}
	if err := makeDisk(ctx, tree, filepath.Join(dir, "root.img")); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(tree), os.Remove(hook))
}

const (
	// rootBytes is sparse.
	rootBytes = 4 << 30
	// rootOffset is where the partition of the root disk begins.
	rootOffset = 1 << 20
	// rootSignature is the root disk's, by which the kernel finds the partition: names of NVMe disks differ from boot
	// to boot.
	rootSignature = 0x62657274
)

// makeDisk makes a file with one partition that has a tree.
func makeDisk(ctx context.Context, tree, image string) error {
	err := command(ctx, "mkfs.ext4", "-q", "-F", "-d", tree, "-E", fmt.Sprintf("offset=%d", rootOffset), image,
		fmt.Sprintf("%dk", (rootBytes-rootOffset)>>10))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(image, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	// A master boot record: signature, one entry of type Linux, magic number.
	record := make([]byte, 512)
	binary.LittleEndian.PutUint32(record[440:], rootSignature)
	entry := record[446:]
	entry[4] = 0x83
	binary.LittleEndian.PutUint32(entry[8:], rootOffset/512)
	binary.LittleEndian.PutUint32(entry[12:], (rootBytes-rootOffset)/512)
	record[510], record[511] = 0x55, 0xaa
	_, err = f.WriteAt(record, 0)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	return nil
}

func command(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	cmd.WaitDelay = 10 * time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w\n%s", args[0], err, output.Bytes())
	}
	return nil
}
