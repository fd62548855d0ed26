// Package lazy is a model of a volume that a cloud restores from a snapshot block by block, each when it is first read:
// it knows how long a read takes, and counts. It moves no bytes.
package lazy

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Speed of a volume.
type Speed struct {
	// BlockBytes are restored at once.
	BlockBytes int64
	// FirstTouch is the latency of a block that is not restored yet, before its transfer at RestoreRate bytes a second,
	// which all such blocks share.
	FirstTouch  time.Duration
	RestoreRate int64
	// Latency and Rate are those of restored blocks.
	Latency time.Duration
	Rate    int64
	// Parallel bounds the blocks that are being restored at once.
	Parallel int
}

// Typical is a volume as clouds restore them: blocks of 512 KiB, 8 ms and 150 MB/s at first, 0.5 ms and 250 MB/s later.
// The size of the blocks and the latencies are assumptions, the rate is in the range of 100 to 300 MiB/s that AWS sells
// for volume initialisation.
func Typical() Speed {
	return Speed{
		BlockBytes: 512 << 10, FirstTouch: 8 * time.Millisecond, RestoreRate: 150e6,
		Latency: 500 * time.Microsecond, Rate: 250e6, Parallel: 64,
	}
}

func (s Speed) check() error {
	if s.BlockBytes <= 0 || s.FirstTouch < 0 || s.RestoreRate <= 0 || s.Latency < 0 || s.Rate <= 0 || s.Parallel <= 0 {
		return fmt.Errorf("speed %+v: every size, rate and number must be positive", s)
	}
	return nil
}

// Stats of a volume.
type Stats struct {
	// Blocks of the volume, and those restored by now.
	Blocks, Restored int64
	// Reads and Bytes that were asked for.
	Reads, Bytes int64
	// Waiting are reads that are being held up, see Volume.Hold.
	Waiting int64
}

// Volume is safe for concurrent use.
type Volume struct {
	speed Speed
	size  int64
	slots chan struct{}
	sleep func(until time.Time)

	mu sync.Mutex // guards all below
	// restored blocks have a closed channel, those on their way an open one.
	restored      []chan struct{}
	restore, read pipe
	stats         Stats
	// held is not nil and open while reads are held up.
	held chan struct{}
	err  error
}

// New volume with nothing restored.
func New(size int64, speed Speed) (*Volume, error) {
	if err := speed.check(); err != nil {
		return nil, err
	}
	blocks := (size + speed.BlockBytes - 1) / speed.BlockBytes
	return &Volume{
		speed: speed, size: size, slots: make(chan struct{}, speed.Parallel), sleep: sleepExactly,
		restored: make([]chan struct{}, blocks), restore: pipe{rate: speed.RestoreRate}, read: pipe{rate: speed.Rate},
		stats: Stats{Blocks: blocks},
	}, nil
}

// sleepExactly does not use the timers of Go, which may be a millisecond late where nothing else happens in the
// process.
func sleepExactly(until time.Time) {
	for left := time.Until(until); left > 0; left = time.Until(until) {
		ts := unix.NsecToTimespec(left.Nanoseconds())
		_ = unix.Nanosleep(&ts, nil) // interrupted: the loop goes on
	}
}

// pipe is a bandwidth that is shared.
type pipe struct {
	rate int64
	free time.Time
}

// send reserves the time for n bytes, from start or when the pipe is free.
func (p *pipe) send(start time.Time, n int64) (done time.Time) {
	if p.free.After(start) {
		start = p.free
	}
	p.free = start.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	return p.free
}

// Read returns when the bytes would be there; an error is the one that Fail was told.
func (v *Volume) Read(offset, length int64) error {
	if offset >= v.size || length <= 0 {
		return nil
	}
	length = min(length, v.size-offset)
	v.mu.Lock()
	v.stats.Reads++
	v.stats.Bytes += length
	for v.held != nil {
		held := v.held
		v.stats.Waiting++
		v.mu.Unlock()
		<-held
		v.mu.Lock()
		v.stats.Waiting--
	}
	err := v.err
	v.mu.Unlock()
	if err != nil {
		return err
	}
	var blocks sync.WaitGroup
	var cold bool
	for b := offset / v.speed.BlockBytes; b <= (offset+length-1)/v.speed.BlockBytes; b++ {
		ready, first := v.touch(b)
		if first {
			cold = true
			blocks.Go(func() { v.bring(b, ready) })
			continue
		}
		select {
		case <-ready:
		default:
			cold = true
			<-ready
		}
	}
	blocks.Wait()
	if cold {
		return nil // what was just brought need not be read again
	}
	v.mu.Lock()
	done := v.read.send(time.Now().Add(v.speed.Latency), length)
	v.mu.Unlock()
	v.sleep(done)
	return nil
}

// touch a block; first says that it is for the caller to bring it.
func (v *Volume) touch(b int64) (ready chan struct{}, first bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.restored[b] == nil {
		v.restored[b] = make(chan struct{})
		return v.restored[b], true
	}
	return v.restored[b], false
}

func (v *Volume) bring(b int64, ready chan struct{}) {
	v.slots <- struct{}{}
	defer func() { <-v.slots }()
	v.sleep(time.Now().Add(v.speed.FirstTouch))
	v.mu.Lock()
	done := v.restore.send(time.Now(), min(v.speed.BlockBytes, v.size-b*v.speed.BlockBytes))
	v.mu.Unlock()
	v.sleep(done)
	v.mu.Lock()
	v.stats.Restored++
	v.mu.Unlock()
	close(ready)
}

// Stats until now.
func (v *Volume) Stats() Stats {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.stats
}

// Hold up reads that begin from now on, until Release.
func (v *Volume) Hold() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.held == nil {
		v.held = make(chan struct{})
	}
}

// Release what is held up.
func (v *Volume) Release() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.held != nil {
		close(v.held)
		v.held = nil
	}
}

// Fail reads that begin from now on; nil ends that.
func (v *Volume) Fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.err = err
}
