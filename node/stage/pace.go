package stage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"berth.dev/berth/blockdev"
)

// A sample of a disk is read at once, at places of chance, since what was read before is fast: as many parts and as
// large ones as reading ahead has under way.
const (
	paceParts     = 16
	pacePartBytes = 512 << 10
)

// pace refuses a disk that serves for the first time and brings less than MinRate: from such a disk containers start
// later than with what a pull brings. One that has served is never refused, because containers need it.
func (s *raising) pace(ctx context.Context, d *disk, dev blockdev.Device, p proof) error {
	if s.minRate <= 0 || s.shared.record(d).Identity.UUID != "" || p.sizeBytes < 2*paceParts*pacePartBytes {
		return nil
	}
	most := time.Duration(float64(paceParts*pacePartBytes) / float64(s.minRate) * float64(time.Second))
	bounded, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	err := s.shared.observed(StepPace, func() error {
		return await(bounded, func() error { return s.system.Sample(dev.Path, p.sizeBytes) })
	})
	if err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("it has not brought %d bytes within %s, which are %d a second: containers would start later from it than after a pull; wait "+
			"until the storage has restored it, or lower stage.min_rate: %w", paceParts*pacePartBytes, most.Round(time.Millisecond), s.minRate, errdefs.ErrUnavailable)
	}
	if err != nil {
		s.mu.Lock()
		s.fleet.unclaim(d, p.identity.UUID)
		s.mu.Unlock()
		return fmt.Errorf("look how fast %s is: %w", dev.Path, err)
	}
	return nil
}

// Sample implements prover.
func (kernel) Sample(path string, sizeBytes int64) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return fmt.Errorf("open device: %w", err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	stretch := sizeBytes / paceParts / pacePartBytes
	var group errgroup.Group
	for i := range int64(paceParts) {
		offset := (i*stretch + rand.Int64N(stretch)) * pacePartBytes //nolint:gosec // chance, not secrecy
		group.Go(func() error { return readPart(f, offset) })
	}
	return group.Wait()
}

// readPart past the page cache, into memory that is aligned as the device wants it.
func readPart(f *os.File, offset int64) (err error) {
	buf, err := unix.Mmap(-1, 0, pacePartBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("get memory: %w", err)
	}
	defer func() { err = errors.Join(err, unix.Munmap(buf)) }()
	if _, err := f.ReadAt(buf, offset); err != nil {
		return fmt.Errorf("read device at %d: %w", offset, err)
	}
	return nil
}
