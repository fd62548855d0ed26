package attached

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/sysblock"
	"berth.dev/berth/layerdisk"
)

// errAbsent says that no device fits now; one may appear.
var errAbsent = fmt.Errorf("no such device on this node: %w", blockdev.ErrNotFound)

// find lists the devices of a volume, the one to use first: more than one only if they hold the same disk. None is
// errAbsent. With want, the disk of that index is the one that the volume holds.
func (s *scanner) find(ctx context.Context, v volumeID, want digest.Digest) ([]sysblock.Device, error) {
	if v.scheme == schemeIndex {
		return s.findIndex(ctx, v)
	}
	devices, written, err := s.list()
	if err != nil {
		return nil, err
	}
	fitting, fit := s.fitting(v, devices)
	fitting, used := s.free(fitting, devices, written)
	if len(fitting) == 0 && len(used) > 0 {
		return nil, fmt.Errorf("%s fits, but is in use: unmount it first: %w", strings.Join(used, ", "), blockdev.ErrInUse)
	}
	return s.settle(ctx, fitting, devices, fit, want)
}

func (s *scanner) findIndex(ctx context.Context, v volumeID) ([]sysblock.Device, error) {
	view, err := s.scan(ctx)
	if err != nil {
		return nil, err
	}
	for _, disk := range view.Disks {
		if disk.Identity.IndexDigest.String() == v.id {
			return append([]sysblock.Device{disk.Device}, disk.Others...), nil
		}
	}
	if len(s.expect) > 0 && !slices.ContainsFunc(s.opts.Expect, func(d digest.Digest) bool { return d.String() == v.id }) {
		return nil, fmt.Errorf("%w: index %s is not among those expected", layerdisk.ErrOtherDisk, v.id)
	}
	return nil, errAbsent
}

// fitting are the devices that fit best, and how well they do.
func (s *scanner) fitting(v volumeID, devices []sysblock.Device) (fitting []sysblock.Device, best int) {
	best = fitsNot
	linked := s.linked(v)
	for _, d := range devices {
		fit := v.fits(d)
		if by, ok := linked[d.Path]; ok {
			fit = min(fit, by)
		}
		switch {
		case fit == fitsNot || fit > best:
		case fit < best:
			best, fitting = fit, []sysblock.Device{d}
		default:
			fitting = append(fitting, d)
		}
	}
	return fitting, best
}

// linked are the device files that udev's links for the volume lead to, and how much that says: a link of a serial that
// was cut off is that of the disk that came last.
func (s *scanner) linked(v volumeID) map[string]int {
	dev := s.opts.Roots.Dev
	real, err := filepath.EvalSymlinks(dev)
	if err != nil {
		return nil
	}
	all := make(map[string]int)
	for i, link := range v.expand(v.rule.links) {
		if !filepath.IsLocal(link) {
			continue
		}
		target, err := filepath.EvalSymlinks(filepath.Join(dev, link))
		if err != nil {
			continue
		}
		rel, err := filepath.Rel(real, target)
		if err != nil {
			continue
		}
		fit := fitsWell
		if strings.Contains(v.rule.links[i], "20}") && len(v.id) > virtioSerialBytes {
			fit = fitsPrefix
		}
		path := filepath.Join(dev, rel)
		if old, ok := all[path]; !ok || fit < old {
			all[path] = fit
		}
	}
	return all
}

// free leaves out what others use, and puts a multipath device in the place of its paths. The names of those in use are
// returned too.
func (s *scanner) free(fitting, devices []sysblock.Device, written map[uint64]bool) (free []sysblock.Device, used []string) {
	byName := make(map[string]sysblock.Device, len(devices))
	for _, d := range devices {
		byName[d.Name] = d
	}
	for _, d := range fitting {
		if len(d.Holders) == 1 && strings.HasPrefix(byName[d.Holders[0]].Kind.Mapper, multipathPrefix) {
			d = byName[d.Holders[0]]
		}
		inUse := len(d.Holders) > 0 || written[d.Number]
		for _, p := range d.Partitions {
			inUse = inUse || written[byName[p].Number] || len(byName[p].Holders) > 0
		}
		switch {
		case d.Hidden || d.SizeBytes == 0: // not there for us
		case inUse:
			used = append(used, d.Name)
		case !slices.ContainsFunc(free, d.Same):
			free = append(free, d)
		}
	}
	return free, used
}

// settle chooses among devices that fit equally well by what is on them; with partitions, in them. One that fits by a
// serial that was cut off is that of another volume if it holds another disk than the one wanted.
func (s *scanner) settle(ctx context.Context, fitting, devices []sysblock.Device, fit int, want digest.Digest) ([]sysblock.Device, error) {
	if len(fitting) == 0 {
		return nil, errAbsent
	}
	cutOff := fit == fitsPrefix && want != ""
	if len(fitting) == 1 && len(fitting[0].Partitions) == 0 && !cutOff {
		return fitting, nil
	}
	view, err := s.lookIn(ctx, fitting, devices)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(fitting))
	for i, d := range fitting {
		names[i] = d.Name
	}
	for _, disk := range view.Disks {
		if len(view.Disks) == 1 && !cutOff || disk.Identity.IndexDigest == want {
			return append([]sysblock.Device{disk.Device}, disk.Others...), nil
		}
	}
	switch {
	case cutOff:
		return nil, fmt.Errorf("%w: %s fits by the first %d bytes of the serial, and does not hold the disk", errAbsent, strings.Join(names, ", "), virtioSerialBytes)
	case len(view.Disks) == 0 && len(fitting) == 1:
		return nil, fmt.Errorf("%s has partitions, and none of them is a layer disk: %w", names[0], errdefs.ErrFailedPrecondition)
	}
	return nil, fmt.Errorf("%s fit equally well and hold %d layer disks: say which by the index that is expected, or name the disk by it (%s:sha256:…): %w",
		strings.Join(names, ", "), len(view.Disks), schemeIndex, errdefs.ErrFailedPrecondition)
}

// lookIn says which disks are on these devices and their partitions.
func (s *scanner) lookIn(ctx context.Context, fitting, devices []sysblock.Device) (View, error) {
	var results []found
	for _, d := range devices {
		for _, f := range fitting {
			if d.Name == f.Name && len(d.Partitions) == 0 || d.Parent == f.Name {
				results = append(results, s.headers.look(ctx, d))
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return View{}, err
	}
	return s.view(results), nil
}
