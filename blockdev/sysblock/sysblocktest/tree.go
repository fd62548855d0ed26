// Package sysblocktest makes directories that look like the parts of sysfs, /dev and /proc that package sysblock reads.
package sysblocktest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev/sysblock"
)

// Tree is a made-up node.
type Tree struct {
	tb    testing.TB
	Roots sysblock.Roots
	minor int
}

// New makes a node without devices, mounts and swap, until the test ends.
func New(tb testing.TB) *Tree {
	tb.Helper()
	dir := tb.TempDir()
	tr := &Tree{tb: tb, Roots: sysblock.Roots{
		Sys: filepath.Join(dir, "sys"), Dev: filepath.Join(dir, "dev"), Proc: filepath.Join(dir, "proc", "self")}}
	require.NoError(tb, os.MkdirAll(filepath.Join(tr.Roots.Sys, "class", "block"), 0o755))
	require.NoError(tb, os.MkdirAll(tr.Roots.Dev, 0o755))
	tr.write(filepath.Join(tr.Roots.Proc, "mountinfo"), "")
	tr.write(filepath.Join(filepath.Dir(tr.Roots.Proc), "swaps"), "Filename Type Size Used Priority\n")
	return tr
}

// Disk is a whole disk of the node. Attributes are files below its directory, such as "serial" or "device/model".
type Disk struct {
	Name string
	// Major number; 0 is 254.
	Major int
	// SCSI address, as H:C:T:L; the attributes of device/ are then in the directory of that name.
	SCSI       string
	Attributes map[string]string
	// Sectors of 512 bytes; 0 is 8 GiB, less is none.
	Sectors    int
	Partitions []string
	Holders    []string
	// Links below /dev that lead to the disk.
	Links []string
}

// Add adds a disk with the next minor number.
func (tr *Tree) Add(d Disk) {
	tr.tb.Helper()
	parent := filepath.Join(tr.Roots.Sys, "devices", "made-up", d.Name)
	if d.SCSI != "" {
		parent = filepath.Join(tr.Roots.Sys, "devices", "made-up", d.SCSI)
	}
	dir := filepath.Join(parent, "block", d.Name)
	attributes := map[string]string{"size": "16777216", "hidden": "0", "holders/": ""}
	if d.Sectors != 0 {
		attributes["size"] = fmt.Sprint(max(d.Sectors, 0))
	}
	maps.Copy(attributes, d.Attributes)
	for _, h := range d.Holders {
		attributes["holders/"+h] = ""
	}
	device := false
	for name, value := range attributes {
		at := filepath.Join(dir, name)
		if rest, ok := strings.CutPrefix(name, "device/"); ok {
			at, device = filepath.Join(parent, rest), true
		}
		if strings.HasSuffix(name, "/") {
			require.NoError(tr.tb, os.MkdirAll(at, 0o755))
			continue
		}
		tr.write(at, value)
	}
	if device || d.SCSI != "" {
		require.NoError(tr.tb, os.Symlink("../..", filepath.Join(dir, "device")))
	}
	tr.minor++
	tr.node(d, d.Name, dir, fmt.Sprintf("DISKSEQ=%d\n", tr.minor))
	for i, p := range d.Partitions {
		tr.minor++
		sub := filepath.Join(dir, p)
		tr.write(filepath.Join(sub, "partition"), fmt.Sprintf("%d\n", i+1))
		tr.write(filepath.Join(sub, "size"), "2048\n")
		tr.node(d, p, sub, "")
	}
	for _, link := range d.Links {
		tr.Link(link, filepath.Join(tr.Roots.Dev, d.Name))
	}
}

// Link makes a link below /dev.
func (tr *Tree) Link(name, target string) {
	tr.tb.Helper()
	link := filepath.Join(tr.Roots.Dev, name)
	require.NoError(tr.tb, os.MkdirAll(filepath.Dir(link), 0o755))
	require.NoError(tr.tb, os.Symlink(target, link))
}

// Remove takes a disk away; its links stay, as they do for a moment.
func (tr *Tree) Remove(name string) {
	tr.tb.Helper()
	require.NoError(tr.tb, os.Remove(filepath.Join(tr.Roots.Sys, "class", "block", name)))
	require.NoError(tr.tb, os.Remove(filepath.Join(tr.Roots.Dev, name)))
}

// Mount adds a line to mountinfo for the device with the minor number.
func (tr *Tree) Mount(minor int, options string) {
	tr.tb.Helper()
	f, err := os.OpenFile(filepath.Join(tr.Roots.Proc, "mountinfo"), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(tr.tb, err)
	_, err = fmt.Fprintf(f, "27 1 254:%d / /mnt%d rw,relatime - ext4 /dev/none %s\n", minor, minor, options)
	require.NoError(tr.tb, err)
	require.NoError(tr.tb, f.Close())
}

// File writes a file below sysfs.
func (tr *Tree) File(name, content string) {
	tr.tb.Helper()
	tr.write(filepath.Join(tr.Roots.Sys, name), content)
}

func (tr *Tree) node(d Disk, name, dir, more string) {
	tr.tb.Helper()
	major := d.Major
	if major == 0 {
		major = 254
	}
	tr.write(filepath.Join(dir, "uevent"), fmt.Sprintf("MAJOR=%d\nMINOR=%d\nDEVNAME=%s\n%s", major, tr.minor, name, more))
	require.NoError(tr.tb, os.Symlink(dir, filepath.Join(tr.Roots.Sys, "class", "block", name)))
	tr.write(filepath.Join(tr.Roots.Dev, name), "")
}

func (tr *Tree) write(path, content string) {
	tr.tb.Helper()
	require.NoError(tr.tb, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(tr.tb, os.WriteFile(path, []byte(content), 0o644))
}
