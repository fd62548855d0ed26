// Package firststart records what the first start of an image on a node reads, if no access list of the image exists.
// Each image is recorded once. The start waits for the recording to begin, which takes some milliseconds; after that
// the recording has no cost that could be measured.
//
// A recording does not see pages that are in the page cache already. So only the first container that starts from a
// disk after it was mounted is recorded, and nothing is read ahead for it.
package firststart

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/recorder"
)

// Lists keeps the access lists of the node.
type Lists interface {
	// Has says whether there is a list of the image, which is named by its normalised reference.
	Has(ctx context.Context, d readahead.Disk, image string) (bool, error)
	// Keep keeps a list that was recorded on the disk.
	Keep(ctx context.Context, d readahead.Disk, l *accesslist.List) error
}

// Start is the start of an image, as far as the image is known.
type Start struct {
	DiskUUID string
	// Image is the reference if it is known. ChainID names all layers of the image, or some.
	Image   string
	ChainID digest.Digest
	// Container says that a container is being made. Otherwise a layer was pulled.
	Container bool
}

// Config is what a Recorder needs.
type Config struct {
	Disks readahead.Disks
	Lists Lists
	// Time is how long a recording lasts: as long as starts take.
	Time time.Duration
	// Since is a time before which nobody watched: of disks that were mounted earlier it is not known what was read.
	Since time.Time
	// Pass is called, from one goroutine, with every start that is not recorded. It must not block.
	Pass func(Start)
	// Method of recording.
	Method recorder.Method
}

const (
	// maxStarts may wait to be looked at; more are forgotten.
	maxStarts = 1024
	// maxDisks are remembered for having been started from.
	maxDisks = 4096
	// keepTimeout bounds what is done with a list that is complete.
	keepTimeout = 30 * time.Second
	// beginTimeout bounds what a container waits for: the recorder takes a few milliseconds to begin, on a busy machine
	// more.
	beginTimeout = time.Second
)

// Recorder records first starts, one at a time. It is safe for concurrent use.
type Recorder struct {
	Config
	starts chan told
	stop   context.CancelFunc
	done   <-chan struct{}
	ended  chan struct{}
	// running has a place for the one recording.
	running chan struct{}
	records sync.WaitGroup

	// used are disks from which a container was started, by when they were mounted. It belongs to loop.
	used map[string]time.Time
}

// New makes a Recorder, which works until ctx ends or it is closed.
func New(ctx context.Context, cfg Config) (*Recorder, error) {
	if cfg.Time <= 0 || cfg.Pass == nil {
		return nil, fmt.Errorf("record first starts for %s: %w", cfg.Time, errdefs.ErrInvalidArgument)
	}
	ctx, stop := context.WithCancel(ctx)
	r := &Recorder{
		Config: cfg, starts: make(chan told, maxStarts), stop: stop, done: ctx.Done(), ended: make(chan struct{}),
		running: make(chan struct{}, 1), used: make(map[string]time.Time),
	}
	go r.loop(ctx)
	return r, nil
}

// Close ends a recording that is under way and keeps nothing of it. It returns when the recording has ended.
func (r *Recorder) Close() error {
	r.stop()
	<-r.ended
	return nil
}

// told is a start that somebody told of, who may wait until it is known what becomes of it.
type told struct {
	Start
	taken chan struct{}
}

// Starting says that an image starts. For a container that is to be recorded it returns when the recording has begun,
// because what the container reads before would be missing; it waits a second at most. In all other cases it does not
// block. When too many starts wait, it drops this one.
func (r *Recorder) Starting(s Start) {
	t := told{Start: s, taken: make(chan struct{})}
	select {
	case r.starts <- t:
	default:
		return
	}
	if !s.Container {
		return
	}
	bound := time.NewTimer(beginTimeout)
	defer bound.Stop()
	select {
	case <-t.taken:
	case <-bound.C:
	case <-r.done:
	}
}

func (r *Recorder) loop(ctx context.Context) {
	defer close(r.ended)
	defer r.records.Wait()
	for {
		select {
		case <-ctx.Done():
			return
		case t := <-r.starts:
			if !r.take(ctx, t.Start) {
				r.Pass(t.Start)
			}
			close(t.taken)
		}
	}
}

// take begins to record a start, or waits for the container of a pull; false if it does neither.
func (r *Recorder) take(ctx context.Context, s Start) bool {
	visit, disk, leave, err := r.Disks.Visit(ctx, s.DiskUUID)
	if err != nil {
		return false
	}
	begun := false
	defer func() {
		if !begun {
			leave()
		}
	}()
	if !disk.Mounted.After(r.Since) || r.used[s.DiskUUID].Equal(disk.Mounted) {
		return false
	}
	img, known := imageOf(disk.Index, s)
	if s.Container {
		r.use(s.DiskUUID, disk.Mounted)
	}
	if !known {
		return false
	}
	if has, err := r.Lists.Has(visit, disk, img.Reference); has || err != nil {
		return false
	}
	if !s.Container {
		return true // its container is still to come
	}
	select {
	case r.running <- struct{}{}:
	default:
		return false
	}
	recording, err := recorder.Start(visit, targetOf(disk, img), r.Method)
	if err != nil {
		<-r.running
		log.G(ctx).WithError(err).WithField("image", img.Reference).Warn("cannot record the first start of the image")
		return false
	}
	begun = true
	r.records.Go(func() {
		defer func() { <-r.running }()
		defer leave()
		r.record(visit, disk, img, recording)
	})
	return true
}

// use remembers that a disk is no longer cold.
func (r *Recorder) use(diskUUID string, mounted time.Time) {
	if len(r.used) >= maxDisks {
		clear(r.used)
	}
	r.used[diskUUID] = mounted
}

// record for the time of a start and keep the list.
func (r *Recorder) record(ctx context.Context, d readahead.Disk, img layerdisk.Image, recording *recorder.Recording) {
	logger := log.G(ctx).WithFields(log.Fields{"image": img.Reference, "disk": d.Name})
	timer := time.NewTimer(r.Time)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		if err := recording.Close(); err != nil {
			logger.WithError(err).Warn("recording of a first start was not undone")
		}
		return
	case <-timer.C:
	}
	bounded, cancel := context.WithTimeout(ctx, keepTimeout)
	defer cancel()
	list, sum, err := recording.Stop(bounded)
	if err == nil {
		list.Image, list.Platform = img.Reference, platforms.FormatAll(img.Platform)
		err = r.keep(bounded, d, list)
	}
	if err != nil {
		logger.WithError(err).Warn("first start was not recorded")
		return
	}
	logger.WithFields(log.Fields{"files": list.FileCount(), "lost_pages": sum.Lost, "method": sum.Method}).Info("first start is recorded")
}

var errNothingRead = errors.New("it read nothing of the disk")

func (r *Recorder) keep(ctx context.Context, d readahead.Disk, l *accesslist.List) error {
	if len(l.Files) == 0 {
		return errNothingRead
	}
	return r.Lists.Keep(ctx, d, l)
}

// imageOf a start: that of the reference with these layers, or the first with all of them.
func imageOf(ix *layerdisk.Index, s Start) (layerdisk.Image, bool) {
	i := slices.IndexFunc(ix.Images, func(img layerdisk.Image) bool {
		return (s.Image == "" || img.Reference == s.Image) && (s.Image != "" && !s.Container || img.ChainID == s.ChainID && s.ChainID != "")
	})
	if i < 0 {
		return layerdisk.Image{}, false
	}
	return ix.Images[i], true
}

func targetOf(d readahead.Disk, img layerdisk.Image) recorder.Target {
	t := recorder.Target{Device: d.Device, MountPoint: d.MountPoint, Disk: d.Identity.IndexDigest, NotSelf: true}
	for _, l := range layerdisk.NewLookup(d.Index).Stack(img.ChainID) {
		t.Layers = append(t.Layers, recorder.Layer{DiffID: l.DiffID, Path: layerdisk.LayerDir(l.Number)})
	}
	return t
}
