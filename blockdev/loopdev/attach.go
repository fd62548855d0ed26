package loopdev

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/internal/durable"
)

// attachment is written before the volume is attached and deleted after it was detached, so that whatever of it is
// there can be found and is known to be ours.
type attachment struct {
	VolumeID string `json:"volumeID"`
	// Path of the file or the block device, without symbolic links.
	Path string `json:"path"`
	// Block says that the path is a block device, which needs no loop device.
	Block bool `json:"block,omitempty"`
	// Dev and Inode of the file.
	Dev   uint64 `json:"dev,omitempty"`
	Inode uint64 `json:"inode,omitempty"`
	// Number of the block device, and whether we have set its read-only flag.
	Number       uint64 `json:"number,omitempty"`
	MadeReadOnly bool   `json:"madeReadOnly,omitempty"`
}

// attacher attaches volumes.
type attacher struct {
	files *files
	held  *attachments
}

var _ blockdev.Attacher = (*attacher)(nil)

// Properties of the driver: there is no limit but the kernel's, which was not met at 1,000 loop devices.
func (d *attacher) Properties() blockdev.Properties {
	return blockdev.Properties{ReadOnlyAttach: true, VolumeSnapshots: true}
}

// Attach attaches a volume of the driver, or a file or block device that the user brought if volumeID is an absolute
// path; those only read-only. A block device becomes read-only for everybody until it is detached, so it must not be in
// use: ErrInUse. A volume that is attached the other way is ErrExists.
//
// A volume that shares its file with a snapshot or another volume is attached read-only as it is. Attached for writing,
// it is copied first, so that takes as long as copying; what ends with an error or by ctx leaves the volume as it was,
// and a storage without room for the copy is ErrNoSpace.
func (d *attacher) Attach(ctx context.Context, volumeID string, opts blockdev.AttachOptions) (blockdev.Device, error) {
	var dev blockdev.Device
	err := d.files.keys.Do(ctx, volumeKey(volumeID), func() (err error) {
		dev, err = d.attach(ctx, volumeID, opts)
		return err
	})
	if err != nil {
		return blockdev.Device{}, fmt.Errorf("attach volume %s: %w", volumeID, err)
	}
	return dev, nil
}

func (d *attacher) attach(ctx context.Context, volumeID string, opts blockdev.AttachOptions) (blockdev.Device, error) {
	dev, attached, err := d.held.attachment(volumeID)
	if err != nil {
		return blockdev.Device{}, err
	}
	if attached {
		if dev.ReadOnly != opts.ReadOnly {
			return blockdev.Device{}, fmt.Errorf("it is attached as %s with read-only %t: %w", dev.Path, dev.ReadOnly, blockdev.ErrExists)
		}
		return dev, nil
	}
	a, err := d.plan(volumeID, opts)
	if err != nil {
		return blockdev.Device{}, err
	}
	if !opts.ReadOnly {
		if err := d.files.own(ctx, volumeID); err != nil {
			return blockdev.Device{}, err
		}
		// It may be another file now.
		if a, err = d.plan(volumeID, opts); err != nil {
			return blockdev.Device{}, err
		}
	}
	if err := d.held.writeAttachment(a); err != nil {
		return blockdev.Device{}, err
	}
	d.files.crash("recorded")
	if a.Block {
		_, err = device.ClaimReadOnly(a.Path)
		dev = blockdev.Device{Path: a.Path, ReadOnly: true}
	} else {
		var loop device.Loop
		loop, err = device.AttachLoop(ctx, a.Path, device.LoopOptions{ReadOnly: opts.ReadOnly, Tag: d.held.volumeTag(volumeID)})
		dev = blockdev.Device{Path: loop.Path, ReadOnly: loop.ReadOnly}
	}
	if err != nil {
		return blockdev.Device{}, errors.Join(err, d.held.removeAttachment(volumeID))
	}
	return dev, nil
}

// plan says what is to be attached for a volume that is not.
func (d *attacher) plan(volumeID string, opts blockdev.AttachOptions) (attachment, error) {
	a := attachment{VolumeID: volumeID}
	path := volumeID
	switch {
	case !filepath.IsAbs(volumeID):
		if checkName("volume", volumeID) != nil {
			return a, blockdev.ErrNotFound
		}
		path = d.files.path(volumesDir, volumeID, diskFile)
	case !opts.ReadOnly:
		return a, fmt.Errorf("a disk that is not the driver's own is attached read-only or not at all: %w", blockdev.ErrUnsupported)
	}
	path, err := filepath.EvalSymlinks(path)
	if errors.Is(err, os.ErrNotExist) {
		return a, fmt.Errorf("%w: %w", err, blockdev.ErrNotFound)
	}
	if err != nil {
		return a, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return a, fmt.Errorf("look at %s: %w", path, err)
	}
	a.Path = path
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		a.Dev, a.Inode = st.Dev, st.Ino
	case unix.S_IFBLK:
		was, err := device.ReadOnly(path)
		if err != nil {
			return a, err
		}
		a.Block, a.Number, a.MadeReadOnly = true, st.Rdev, !was
	default:
		return a, fmt.Errorf("%s is neither a file nor a block device: %w", path, blockdev.ErrInvalid)
	}
	return a, nil
}

// Detach undoes Attach. A block device that Attach made read-only is writable again.
func (d *attacher) Detach(ctx context.Context, volumeID string) error {
	if err := d.files.keys.Do(ctx, volumeKey(volumeID), func() error { return d.detach(ctx, volumeID) }); err != nil {
		return fmt.Errorf("detach volume %s: %w", volumeID, err)
	}
	return nil
}

func (d *attacher) detach(ctx context.Context, volumeID string) error {
	a, ok, err := d.held.readAttachment(volumeID)
	if err != nil || !ok {
		return err
	}
	if a.Block {
		err = a.release()
	} else {
		var loops []device.Loop
		loops, err = d.held.loops(a)
		for _, loop := range loops {
			err = errors.Join(err, device.DetachLoop(ctx, loop))
		}
	}
	if err != nil {
		return err
	}
	return d.held.removeAttachment(volumeID)
}

// release gives a block device back as it was.
func (a attachment) release() error {
	number, err := device.Number(a.Path)
	if errors.Is(err, blockdev.ErrNotFound) || err == nil && number != a.Number {
		return nil // it has left, or its path is another's now
	}
	if err != nil {
		return err
	}
	used, err := device.InUse(a.Path)
	if err != nil {
		return err
	}
	if used {
		return blockdev.ErrInUse
	}
	if !a.MadeReadOnly {
		return nil
	}
	_, err = device.SetReadOnly(a.Path, false)
	return err
}

// Attached lists the volumes that this driver has attached, disks that the user brought included.
func (d *attacher) Attached(ctx context.Context) (map[string]blockdev.Device, error) {
	entries, err := os.ReadDir(d.held.dir)
	if err != nil {
		return nil, fmt.Errorf("list attached volumes: %w", err)
	}
	all := make(map[string]blockdev.Device, len(entries))
	for _, e := range entries {
		if filepath.Ext(e.Name()) != recordSuffix {
			continue // it is being written
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		a, ok, err := durable.Read[attachment](filepath.Join(d.held.dir, e.Name()))
		if err == nil && ok {
			var dev blockdev.Device
			dev, ok, err = d.held.device(a)
			if err == nil && ok {
				all[a.VolumeID] = dev
			}
		}
		if err != nil {
			return nil, fmt.Errorf("list attached volumes: %w", err)
		}
	}
	return all, nil
}

// attachments are the records of what is attached, and what there is of it.
type attachments struct {
	dir string
	// tag marks our loop devices, with the volume's own part added.
	tag string
}

// attachment says whether and how the volume is attached.
func (d *attachments) attachment(volumeID string) (blockdev.Device, bool, error) {
	a, ok, err := d.readAttachment(volumeID)
	if err != nil || !ok {
		return blockdev.Device{}, false, err
	}
	return d.device(a)
}

// device finds what is there of an attachment: after a crash in the middle, or a reboot, nothing.
func (d *attachments) device(a attachment) (blockdev.Device, bool, error) {
	if a.Block {
		number, err := device.Number(a.Path)
		if errors.Is(err, blockdev.ErrNotFound) || err == nil && number != a.Number {
			return blockdev.Device{}, false, nil
		}
		if err != nil {
			return blockdev.Device{}, false, err
		}
		ro, err := device.ReadOnly(a.Path)
		return blockdev.Device{Path: a.Path, ReadOnly: ro}, ro, err
	}
	loops, err := d.loops(a)
	if err != nil || len(loops) == 0 {
		return blockdev.Device{}, false, err
	}
	return blockdev.Device{Path: loops[0].Path, ReadOnly: loops[0].ReadOnly}, true, nil
}

// loops of an attachment: one, unless somebody interfered.
func (d *attachments) loops(a attachment) ([]device.Loop, error) {
	tag := d.volumeTag(a.VolumeID)
	var st unix.Stat_t
	if err := unix.Stat(a.Path, &st); err != nil || st.Dev != a.Dev || st.Ino != a.Inode {
		return device.TaggedLoops(tag) // the file was deleted or replaced, its device still is there
	}
	all, err := device.FindLoops(a.Path)
	if err != nil {
		return nil, err
	}
	var ours []device.Loop
	for _, loop := range all {
		if loop.Tag == tag {
			ours = append(ours, loop)
		}
	}
	return ours, nil
}

// volumeTag marks the loop devices of a volume of this directory, in the 63 bytes there are.
func (d *attachments) volumeTag(volumeID string) string {
	return d.tag + ":" + hash(volumeID)[:16]
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func (d *attachments) attachmentPath(volumeID string) string {
	return filepath.Join(d.dir, hash(volumeID)[:32]+recordSuffix)
}

func (d *attachments) readAttachment(volumeID string) (attachment, bool, error) {
	return durable.Read[attachment](d.attachmentPath(volumeID))
}

func (d *attachments) writeAttachment(a attachment) error {
	return full(durable.Write(d.attachmentPath(a.VolumeID), a))
}

func (d *attachments) removeAttachment(volumeID string) error {
	return durable.Remove(d.attachmentPath(volumeID))
}
