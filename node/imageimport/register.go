package imageimport

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/snapshotters"
	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// leaseLife is how long containerd keeps what a crash of berthd leaves behind without an image record.
	leaseLife = time.Hour
	// imageTimeout bounds registering one image. Each layer is looked up in memory, which takes milliseconds.
	imageTimeout = 2 * time.Minute
	// cleanTimeout bounds removing what was just made in vain.
	cleanTimeout = 30 * time.Second
)

// registrar creates what containerd needs to have of an image.
type registrar struct {
	ctr Containerd
	// snapshotter is the name that containerd knows berth by.
	snapshotter string
	// pinned keeps the kubelet from removing the images.
	pinned bool
	asked  *asked
	// crash, in tests, is called between steps.
	crash func(step string)
}

// register registers the images of a disk in a namespace and marks the disk as done there. All images are tried; the
// error says why some have to be tried again.
func (r *registrar) register(ctx context.Context, ns string, d Disk, entries []entry) ([]Image, error) {
	ctx = namespaces.WithNamespace(ctx, ns)
	if r.ctr.Usable != nil {
		if err := r.ctr.Usable(ctx, ns); err != nil {
			return nil, fmt.Errorf("namespace %s: %w", ns, err)
		}
	}
	lease, err := r.hold(ctx, d.UUID)
	if err != nil {
		return nil, err
	}
	r.crash("leased")
	var (
		list []Image
		errs []error
	)
	held := leases.WithLease(ctx, lease.ID)
	for _, e := range entries {
		out := Image{Reference: e.Reference, Namespace: ns, Result: Registered}
		err := e.refusal
		if err == nil {
			err = r.registerImage(held, ns, d.UUID, &e)
		}
		var left *leftError
		switch {
		case err == nil:
		case e.refusal != nil:
			out.Result, out.Reason = Refused, err.Error()
		case errors.As(err, &left):
			out.Result, out.Reason = Left, err.Error()
		default:
			out.Result, out.Reason = Failed, err.Error()
			errs = append(errs, fmt.Errorf("register %s: %w", e.Reference, err))
		}
		list = append(list, out)
		if err != nil && (lost(err) || ctx.Err() != nil) {
			break
		}
	}
	if err := errors.Join(errs...); err != nil {
		return list, err // the lease keeps what is there for the next attempt
	}
	r.crash("registered")
	_, err = r.ctr.Leases.Create(ctx, leases.WithID(doneLease(d.UUID)), leases.WithLabel(labelDisk, d.UUID))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return list, fmt.Errorf("mark images as registered: %w", err)
	}
	r.crash("marked")
	return list, r.release(ctx, d.UUID)
}

// hold makes a new lease for what is about to be registered: the lease of an earlier attempt may have expired.
func (r *registrar) hold(ctx context.Context, diskUUID string) (leases.Lease, error) {
	if err := r.release(ctx, diskUUID); err != nil {
		return leases.Lease{}, err
	}
	lease, err := r.ctr.Leases.Create(ctx, leases.WithID(workLease(diskUUID)), leases.WithLabel(labelDisk, diskUUID), leases.WithExpiration(leaseLife))
	if err != nil {
		return leases.Lease{}, fmt.Errorf("make lease: %w", err)
	}
	return lease, nil
}

// release deletes that lease, if there is one.
func (r *registrar) release(ctx context.Context, diskUUID string) error {
	if err := r.ctr.Leases.Delete(ctx, leases.Lease{ID: workLease(diskUUID)}); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease: %w", err)
	}
	return nil
}

// leftError says that a name is left to its current owner.
type leftError struct{ reason string }

func (e *leftError) Error() string { return e.reason }

// registerImage registers one image; all of it may be there already.
func (r *registrar) registerImage(ctx context.Context, ns, diskUUID string, e *entry) error {
	ctx, cancel := context.WithTimeout(ctx, imageTimeout)
	defer cancel()
	old, err := r.ctr.Images.Get(ctx, e.name)
	if err == nil {
		err = vacant(old, diskUUID)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	diffIDs, err := images.RootFS(ctx, provider{e.Config.Digest: e.RawConfig}, e.Config)
	if err != nil {
		return fmt.Errorf("read config: %w", err)
	}
	for _, b := range e.blobs() {
		if err := r.write(ctx, b, e.ChainID); err != nil {
			return err
		}
		r.crash("written")
	}
	var parent digest.Digest
	for i, diffID := range diffIDs {
		chain := identity.ChainID(diffIDs[:i+1])
		if err := r.adopt(ctx, chain, parent, diffID, e.name); err != nil {
			return fmt.Errorf("have layer %d of %d served from the disk: %w", i+1, len(diffIDs), err)
		}
		r.crash("adopted")
		parent = chain
	}
	return r.record(ctx, ns, diskUUID, e)
}

// vacant returns why a record must stay as it is, nil if it was made here.
func vacant(old images.Image, diskUUID string) error {
	switch {
	case !owned(old):
		return &leftError{"containerd has an image of this name that berth did not register, and it stays"}
	case old.Labels[labelDisk] != diskUUID:
		return &leftError{fmt.Sprintf("disk %s has an image of this name, which is registered", old.Labels[labelDisk])}
	}
	return nil
}

// write makes sure that a blob is in the content store, with labels by which garbage collection finds what it refers
// to. The layers are not there, as after a pull that did not need them.
func (r *registrar) write(ctx context.Context, b blob, chain digest.Digest) error {
	refers, err := refersTo(ctx, b)
	if err != nil {
		return err
	}
	labels := maps.Clone(refers)
	if len(refers) == 0 && chain != "" {
		labels[labelSnapshot+r.snapshotter] = chain.String()
	}
	ref := "berth-import-" + b.desc.Digest.String()
	if err := content.WriteBlob(ctx, r.ctr.Content, ref, bytes.NewReader(b.data), b.desc, content.WithLabels(labels)); err != nil {
		return fmt.Errorf("write %s: %w", b.desc.Digest, err)
	}
	info, err := r.ctr.Content.Info(ctx, b.desc.Digest)
	if err != nil {
		return fmt.Errorf("look at %s: %w", b.desc.Digest, err)
	}
	// A blob that was there before belongs to others too, and so does what it refers to, but not our snapshots.
	has := slices.Collect(maps.Values(info.Labels))
	maps.DeleteFunc(refers, func(_, value string) bool { return slices.Contains(has, value) })
	if len(refers) == 0 {
		return nil
	}
	var paths []string
	for key := range refers {
		paths = append(paths, "labels."+key)
	}
	if _, err := r.ctr.Content.Update(ctx, content.Info{Digest: b.desc.Digest, Labels: refers}, paths...); err != nil {
		return fmt.Errorf("label %s: %w", b.desc.Digest, err)
	}
	return nil
}

// refersTo returns the labels that make garbage collection keep the children of a blob, under containerd's name for the
// kind of each child.
func refersTo(ctx context.Context, b blob) (map[string]string, error) {
	children, err := images.Children(ctx, provider{b.desc.Digest: b.data}, b.desc)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", b.desc.Digest, err)
	}
	labels := map[string]string{}
	for _, child := range children {
		for _, kind := range images.ChildGCLabels(child) {
			labels[strings.TrimSuffix(kind, ".")+"."+child.Digest.Encoded()] = child.Digest.String()
		}
	}
	return labels, nil
}

// adopt makes containerd have the snapshot of a chain, as its unpacker does: the snapshotter answers that it is there
// already.
func (r *registrar) adopt(ctx context.Context, chain, parent, diffID digest.Digest, name string) error {
	labels := map[string]string{
		snapshots.LabelSnapshotRef:    chain.String(),
		snapshots.LabelSnapshotDiffID: diffID.String(),
		snapshotters.TargetRefLabel:   name,
	}
	key := fmt.Sprintf(snapshots.UnpackKeyFormat, "import-"+uuid.NewString(), chain)
	defer r.asked.asking(chain)()
	mounts, err := r.ctr.Snapshots.Prepare(ctx, key, parent.String(), snapshots.WithLabels(labels))
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("prepare snapshot: %w", err)
	}
	if early(mounts) {
		err = r.ctr.Snapshots.Commit(ctx, chain.String(), key, snapshots.WithLabels(labels))
		if err == nil {
			return nil
		}
	} else {
		err = fmt.Errorf("no disk serves chain %s now: %w", chain, errdefs.ErrNotFound)
	}
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTimeout)
	defer cancel()
	if removeErr := r.ctr.Snapshots.Remove(clean, key); removeErr != nil && !errdefs.IsNotFound(removeErr) {
		err = errors.Join(err, removeErr)
	}
	if errdefs.IsAlreadyExists(err) {
		return nil // somebody else has committed the same chain meanwhile
	}
	return err
}

// early reports whether the mounts say that the snapshotter has the content already; see docs/snapshotter.md.
func early(mounts []mount.Mount) bool {
	return len(mounts) > 0 && mounts[len(mounts)-1].ReadOnly()
}

// record makes the image records. CRI knows an image by its name, by its repository and digest, and by the digest of
// its config. As soon as CRI hears of the name, it makes the records of the other two that are missing. These would
// then be CRI's, so record makes the name last.
func (r *registrar) record(ctx context.Context, ns, diskUUID string, e *entry) error {
	labels := map[string]string{labelDisk: diskUUID}
	if e.ChainID != "" {
		labels[labelSnapshot+r.snapshotter] = e.ChainID.String()
	}
	var others []string
	if ns == criNamespace {
		labels[labelCRIImage] = criManaged
		if r.pinned {
			labels[labelCRIPinned] = criPinned
		}
		others = []string{e.Config.Digest.String(), e.repository + "@" + e.target.Digest.String()}
	}
	for _, name := range others {
		if name == e.name {
			continue
		}
		err := r.create(ctx, name, e.target, labels)
		var left *leftError
		if err != nil && !errors.As(err, &left) {
			return err
		}
		r.crash("recorded")
	}
	labels[labelImage] = e.Reference
	return r.create(ctx, e.name, e.target, labels)
}

// create makes one record, unless it is there.
func (r *registrar) create(ctx context.Context, name string, target ocispec.Descriptor, labels map[string]string) error {
	labels = maps.Clone(labels)
	labels[labelRecord] = recordLabel(target.Digest, name)
	_, err := r.ctr.Images.Create(ctx, images.Image{Name: name, Target: target, Labels: labels})
	if errdefs.IsAlreadyExists(err) {
		old, getErr := r.ctr.Images.Get(ctx, name)
		if getErr != nil {
			return fmt.Errorf("look at record of %s: %w", name, getErr)
		}
		return vacant(old, labels[labelDisk])
	}
	if err != nil {
		return fmt.Errorf("make record of %s: %w", name, err)
	}
	return nil
}
