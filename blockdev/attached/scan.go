package attached

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev/sysblock"
	"berth.dev/berth/layerdisk"
)

// Options say where to look and what to accept.
type Options struct {
	// Roots of sysfs, /dev and /proc; the zero value is the running system's.
	Roots sysblock.Roots
	// Expect, if not empty, are the index digests of the only disks that are found; every other layer disk is refused.
	Expect []digest.Digest
	// LoopsBelow are directories: loop devices whose files lie in or below one of them are looked at like other
	// devices. The rest of the loop devices belong to others, or to another driver.
	LoopsBelow []string
}

// Disk is a layer disk that was found.
type Disk struct {
	// VolumeID to attach it by.
	VolumeID string
	Identity layerdisk.Identity
	// Device it is on, the one to use.
	Device sysblock.Device
	// Others have the same disk: more paths to it, or copies of it.
	Others []sysblock.Device
}

// Refused is a device that has a berth header and is not used.
type Refused struct {
	Device sysblock.Device
	// Err says why: layerdisk.ErrVersion, ErrCorrupt, ErrOtherDisk for one that is not expected, or what reading gave.
	Err error
}

// View is what is there at one moment.
type View struct {
	// Disks by volume ID.
	Disks []Disk
	// Refused by device name.
	Refused []Refused
	// EventsErr, if not nil, says why the kernel's events cannot be had, so that changes are seen only now and then.
	EventsErr error

	// unread says that a device did not answer, or with an error that may be gone the next time.
	unread bool
}

// Scan looks at all devices once.
func Scan(ctx context.Context, opts Options) (View, error) {
	s := newScanner(opts)
	v, err := s.scan(ctx)
	if err != nil {
		return View{}, fmt.Errorf("look for layer disks: %w", err)
	}
	return v, nil
}

// scanner finds layer disks among the devices. It is safe for concurrent use.
type scanner struct {
	opts   Options
	expect map[digest.Digest]bool
	// loopsBelow is Options.LoopsBelow as the kernel calls them.
	loopsBelow []string
	headers    *headers
}

func newScanner(opts Options) *scanner {
	opts.Roots = opts.Roots.Filled()
	s := &scanner{opts: opts, expect: make(map[digest.Digest]bool), headers: newHeaders()}
	for _, d := range opts.Expect {
		s.expect[d] = true
	}
	for _, dir := range opts.LoopsBelow {
		// The kernel names a loop device's file without symbolic links.
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			s.loopsBelow = append(s.loopsBelow, real)
		} else {
			s.loopsBelow = append(s.loopsBelow, filepath.Clean(dir))
		}
	}
	return s
}

// readersAtOnce bounds the devices that are read at the same time.
const readersAtOnce = 8

// scan looks at all devices, in parallel: one that does not answer delays the rest by readWait at most.
func (s *scanner) scan(ctx context.Context) (View, error) {
	devices, written, err := s.list()
	if err != nil {
		return View{}, err
	}
	s.headers.keepOnly(devices)
	results := make([]found, len(devices))
	var readers sync.WaitGroup
	slots := make(chan struct{}, readersAtOnce)
	for i, d := range devices {
		results[i].none = true
		if s.skip(d, written) != "" {
			continue
		}
		readers.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[i] = s.headers.look(ctx, d)
		})
	}
	readers.Wait()
	if err := ctx.Err(); err != nil {
		return View{}, err
	}
	return s.view(results), nil
}

func (s *scanner) list() ([]sysblock.Device, map[uint64]bool, error) {
	devices, err := sysblock.List(s.opts.Roots)
	if err != nil {
		return nil, nil, err
	}
	written, err := sysblock.Written(s.opts.Roots)
	return devices, written, err
}

// Major numbers of devices that hold no layer disk, or whose reading costs more than it tells
// (Documentation/admin-guide/ devices.txt of the kernel).
const (
	majorRAM    = 1
	majorFloppy = 2
	majorLoop   = 7
	majorCD     = 11
	majorMTD    = 31
	// leastBytes has the header, the superblock and an index.
	leastBytes = 8192
)

// skip says why the device is not read, empty if it is. Nothing of it needs the device to answer.
func (s *scanner) skip(d sysblock.Device, written map[uint64]bool) string {
	switch major := unix.Major(d.Number); {
	case d.Hidden:
		return "path below a multipath device"
	case d.SizeBytes < leastBytes:
		return "no medium, or too small"
	case major == majorRAM || major == majorFloppy || major == majorCD || major == majorMTD || strings.HasPrefix(d.Name, "zram"):
		return "memory, floppy, optical or flash"
	case (major == majorLoop || d.Kind.Loop != "") && !s.wantsLoop(d): // partitions have another major number
		return "loop device"
	case d.Kind.Suspended:
		return "suspended"
	case len(d.Holders) > 0:
		return "part of " + strings.Join(d.Holders, ", ")
	case len(d.Partitions) > 0:
		return "has partitions"
	case written[d.Number]:
		return "in use for writing"
	}
	return ""
}

func (s *scanner) wantsLoop(d sysblock.Device) bool {
	for _, dir := range s.loopsBelow {
		if strings.HasPrefix(d.Kind.Loop, strings.TrimSuffix(dir, "/")+"/") {
			return true
		}
	}
	return false
}

// view puts together what was found.
func (s *scanner) view(results []found) View {
	var v View
	at := make(map[layerdisk.Identity]int)
	slices.SortStableFunc(results, func(a, b found) int { return cmpDevices(a.device, b.device) })
	for _, f := range results {
		if f.none {
			v.unread = v.unread || f.err != nil && !errors.Is(f.err, layerdisk.ErrNotLayerDisk)
			continue
		}
		id := f.header.Identity()
		if f.err == nil && len(s.expect) > 0 && !s.expect[id.IndexDigest] {
			f.err = fmt.Errorf("%w: index %s is not among those expected", layerdisk.ErrOtherDisk, id.IndexDigest)
		}
		if f.err != nil {
			v.Refused = append(v.Refused, Refused{Device: f.device, Err: f.err})
			continue
		}
		if i, ok := at[id]; ok {
			v.Disks[i].Others = append(v.Disks[i].Others, f.device)
			continue
		}
		at[id] = len(v.Disks)
		v.Disks = append(v.Disks, Disk{VolumeID: VolumeID(id.IndexDigest), Identity: id, Device: f.device})
	}
	slices.SortFunc(v.Disks, func(a, b Disk) int { return cmp.Compare(a.VolumeID, b.VolumeID) })
	return v
}

// cmpDevices orders the devices that may have the same disk, the one to use first: those that stand for several paths,
// then by name, so that the choice is the same each time.
func cmpDevices(a, b sysblock.Device) int {
	multipath := func(d sysblock.Device) int {
		if strings.HasPrefix(d.Kind.Mapper, multipathPrefix) {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(multipath(a), multipath(b)), cmp.Compare(len(a.Name), len(b.Name)), cmp.Compare(a.Name, b.Name))
}

// multipathPrefix begins the UUID of device mapper devices that multipathd makes (libmultipath, UUID_PREFIX).
const multipathPrefix = "mpath-"

// VolumeID of the layer disk with that index, wherever it is.
func VolumeID(index digest.Digest) string { return schemeIndex + ":" + index.String() }

func validDigest(s string) bool {
	d := digest.Digest(s)
	return d.Validate() == nil && d.Algorithm() == digest.SHA256
}
