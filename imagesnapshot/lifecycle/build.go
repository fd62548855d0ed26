package lifecycle

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/accesslist"
)

// build has the disk written. A build that was interrupted is not continued: nobody knows what it wrote.
func (m *making) build(ctx context.Context, j *job) (decision, error) {
	w := j.work()
	if w.Building {
		j.object.AddEvent(time.Now().UTC(), imagesnapshot.EventNormal, imagesnapshot.ReasonRetrying, "the build was interrupted and begins anew")
		return anew(j.object), nil
	}
	if err := j.place.take(ctx); err != nil {
		return decision{}, err
	}
	w.Building = true
	d := write()
	d.then = m.writeDisk
	return d, nil
}

// writeDisk is the rest of build, once the journal says that it has begun.
func (m *making) writeDisk(ctx context.Context, j *job) (decision, error) {
	s, w := j.object, j.work()
	device, err := attachOwn(ctx, j.backend, w.VolumeID, blockdev.AttachOptions{})
	if err != nil {
		return decision{}, &storageError{fmt.Errorf("attach volume: %w", err)}
	}
	donors, err := attachDonors(ctx, j)
	if err != nil {
		return decision{}, err
	}
	result, buildErr := m.builder.Build(ctx, BuildRequest{
		PlanRequest: PlanRequest{Owner: s.Owner, Spec: s.Spec}, Name: s.Name, Device: device, Reuse: w.BaseVolumeSnapshotID != "", Donors: donors,
		AccessLists: m.accessListsOf(ctx, s), Progress: newProgress(m.objects, s).report(ctx),
	})
	if ctx.Err() != nil {
		// Aborted: by a deletion, the deadline or the end of this process. Whoever comes next gives the volume up.
		return decision{}, errors.Join(ctx.Err(), buildErr)
	}
	j.place.leave()
	if err := m.readAgain(ctx, j); err != nil {
		return decision{}, fmt.Errorf("read image snapshot %s after its build: %w", s.Name, err)
	}
	if buildErr != nil {
		return m.buildFailed(j.object, buildErr)
	}
	d, err := built(j.object, result)
	d.then = m.releaseDonors
	return d, err
}

// attachDonors attaches the disks that layers are copied from, to be read.
func attachDonors(ctx context.Context, j *job) ([]Donor, error) {
	var list []Donor
	for _, d := range j.work().Donors {
		device, err := attachOwn(ctx, j.backend, d.VolumeID, blockdev.AttachOptions{ReadOnly: true})
		if err != nil {
			return nil, &storageError{fmt.Errorf("attach volume to copy layers from: %w", err)}
		}
		list = append(list, Donor{Name: d.Name, Device: device})
	}
	return list, nil
}

// releaseDonors deletes the volumes that layers were copied from. What cannot be deleted yet is left for the end.
func (m *making) releaseDonors(ctx context.Context, j *job) (decision, error) {
	w := j.work()
	left, err := m.disposal.discard(ctx, w.Garbage)
	if ctx.Err() != nil {
		return decision{}, errors.Join(ctx.Err(), err)
	}
	w.Garbage = left
	return write(), nil
}

// attachOwn attaches a volume of a build. A driver that finds devices by names that several volumes may have,
// such as serials that are cut off, could give the device of another one.
func attachOwn(ctx context.Context, b Backend, volumeID string, opts blockdev.AttachOptions) (blockdev.Device, error) {
	device, err := b.Attacher.Attach(ctx, volumeID, opts)
	if err != nil {
		return device, err
	}
	attached, err := b.Attacher.Attached(ctx)
	if err != nil {
		return device, err
	}
	for other, d := range attached {
		if other != volumeID && d.Path == device.Path {
			return device, fmt.Errorf("the driver gives device %s for volume %s and for volume %s: %w", d.Path, volumeID, other, blockdev.ErrInUse)
		}
	}
	return device, nil
}

// accessListsOf an image snapshot, by which the files of the disk are placed. A build is as right without them.
func (m *making) accessListsOf(ctx context.Context, s *imagesnapshot.ImageSnapshot) []*accesslist.List {
	if m.accessLists == nil {
		return nil
	}
	lists, err := m.accessLists.AccessLists(ctx, s.ID)
	if err != nil && ctx.Err() == nil {
		log.G(ctx).WithError(err).WithField("image_snapshot", s.Name).Warn("building without access lists")
	}
	return lists
}

// readAgain gets the object after a build, whose progress changed it.
func (m *making) readAgain(ctx context.Context, j *job) error {
	current, err := m.objects.store.Get(ctx, j.object.Name)
	if err != nil {
		return err
	}
	if current.ID != j.object.ID || current.Status.Work == nil || current.Status.Work.Attempt != j.work().Attempt {
		return errSuperseded
	}
	j.object = current
	return nil
}

// buildFailed decides whether another try may succeed.
func (m *making) buildFailed(s *imagesnapshot.ImageSnapshot, err error) (decision, error) {
	w := s.Status.Work
	var small *TooSmallError
	switch {
	case takenFrom(w) != "" && errdefs.IsDataLoss(err), w.BaseVolumeSnapshotID != "" && errors.As(err, &small) && !s.Spec.Size.AsNeeded:
		// What the base has and nobody needs takes room that a disk built from nothing may not.
		return withoutBase(s, err), nil
	case errors.As(err, &small) && s.Spec.Size.AsNeeded && small.NeededBytes > w.SizeBytes:
		w.SizeBytes = policy.RoundGiB(small.NeededBytes)
		if limit := int64(m.limits.MaxSizeGiB) << 30; small.NeededBytes <= limit {
			w.SizeBytes = min(w.SizeBytes, limit)
			s.AddEvent(time.Now().UTC(), imagesnapshot.EventNormal, imagesnapshot.ReasonRetrying,
				fmt.Sprintf("the volume was too small, building anew on one of %d GiB", w.SizeBytes>>30))
			return anew(s), nil
		}
	}
	return decision{}, buildFailure(err)
}

// progressOfBuild is how far a build is in percent; the rest is the volume snapshot's.
const progressOfBuild = 95

// built records what was made.
func built(s *imagesnapshot.ImageSnapshot, result BuildResult) (decision, error) {
	ix, id, err := layerdisk.ParseIdentified(result.Index)
	if err != nil {
		return decision{}, buildFailure(fmt.Errorf("read index of the disk: %w", err))
	}
	w := s.Status.Work
	w.Built = &imagesnapshot.Content{
		Driver: w.Driver, VolumeBytes: w.WantedBytes,
		Images: imagesOf(ix), Identity: id, DiskBytes: result.DiskBytes, Layers: len(ix.Layers),
		FetchedBytes: result.FetchedBytes, ReusedBytes: result.ReusedBytes, BaseName: mainSource(w),
	}
	now := time.Now().UTC()
	if result.ReusedBytes > 0 {
		s.AddEvent(now, imagesnapshot.EventNormal, imagesnapshot.ReasonLayersReused, tellReused(w, result))
	} else if from := takenFrom(w); from != "" {
		s.AddEvent(now, imagesnapshot.EventNormal, imagesnapshot.ReasonLayersNotReused,
			fmt.Sprintf("no layers are reused: nothing on the disks of %s fits the images", from))
	}
	w.Garbage = append(w.Garbage, w.DonorVolumes()...)
	w.Donors = nil
	var sum int64
	for _, l := range ix.Layers {
		sum += l.UnpackedBytes
	}
	for _, warning := range s.Warnings(sum) {
		s.AddEvent(now, imagesnapshot.EventWarning, imagesnapshot.ReasonWarning, warning)
	}
	w.Step, w.Failures, w.NotBefore = imagesnapshot.StepVolumeSnapshots, 0, time.Time{}
	s.Status.Progress = progressOfBuild
	d := write()
	d.index = result.Index
	return d, nil
}

// mainSource is the image snapshot whose disk the build started from, or that saved most of those it copied from.
func mainSource(w *imagesnapshot.Work) string {
	if w.BaseName == "" && len(w.Donors) > 0 {
		return w.Donors[0].Name
	}
	return w.BaseName
}

// tellReused reports what came from where.
func tellReused(w *imagesnapshot.Work, result BuildResult) string {
	var parts []string
	kept := result.ReusedBytes
	for i, n := range result.CopiedBytes {
		kept -= n
		if i < len(w.Donors) && n > 0 {
			parts = append(parts, fmt.Sprintf("%d bytes of layers copied from %s", n, w.Donors[i].Name))
		}
	}
	if w.BaseName != "" {
		parts = slices.Insert(parts, 0, fmt.Sprintf("%d bytes of layers taken over from %s", kept, w.BaseName))
	}
	return fmt.Sprintf("%s, %d bytes fetched", strings.Join(parts, ", "), result.FetchedBytes)
}

// imagesOf lists what an index holds (C-47).
func imagesOf(ix *layerdisk.Index) []imagesnapshot.Image {
	look := layerdisk.NewLookup(ix)
	var list []imagesnapshot.Image
	for _, img := range ix.Images {
		out := imagesnapshot.Image{Reference: img.Reference, Platform: platforms.FormatAll(img.Platform), Digest: img.Manifest.Digest}
		seen := make(map[digest.Digest]bool)
		for _, l := range look.Stack(img.ChainID) {
			out.Layers++
			if !seen[l.DiffID] {
				seen[l.DiffID] = true
				out.SizeBytes += l.UnpackedBytes
			}
		}
		list = append(list, out)
	}
	return list
}

// progress writes how far one build is, at most once a second, and never fails the build.
type progress struct {
	objects  objects
	name, id string
	attempt  int
	last     time.Time
	written  int
}

func newProgress(o objects, s *imagesnapshot.ImageSnapshot) *progress {
	return &progress{objects: o, name: s.Name, id: s.ID, attempt: s.Status.Work.Attempt}
}

// report returns the function to which a Builder may report its percentages.
func (p *progress) report(ctx context.Context) func(percent int) {
	const interval = time.Second
	return func(percent int) {
		percent = max(0, min(progressOfBuild, percent*progressOfBuild/100))
		now := time.Now()
		if percent <= p.written || now.Sub(p.last) < interval || ctx.Err() != nil {
			return
		}
		p.last, p.written = now, percent
		err := p.write(ctx, percent, now.UTC())
		if err != nil && ctx.Err() == nil && !errors.Is(err, errSuperseded) {
			log.G(ctx).WithError(err).WithField("image_snapshot", p.name).Debug("progress not recorded")
		}
	}
}

func (p *progress) write(ctx context.Context, percent int, now time.Time) error {
	_, err := p.objects.mutate(ctx, p.name, p.id, func(s *imagesnapshot.ImageSnapshot) error {
		if !s.Status.Phase.Building() || s.Status.Work == nil || s.Status.Work.Attempt != p.attempt {
			return errSuperseded
		}
		s.Status.Progress, s.Status.LastUpdated = percent, now
		return nil
	})
	return err
}
