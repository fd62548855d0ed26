package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/layerdisk"
)

// place is where in the stack a layer goes, as far as an extraction Prepare shows.
type place int

const (
	// placeUnclear: no parent is named, and nothing proves that there is none (containerd before 2.3). It is the lowest
	// layer, or any one in containerd 2.2 that unpacks in parallel.
	placeUnclear place = iota
	// placeBottom: it is the lowest layer.
	placeBottom
	// placeOnParent: the parent is named and its chain is known.
	placeOnParent
	// placeOnUnknown: the parent is named, but nothing says which layers it consists of.
	placeOnUnknown
	// placeApart: it goes on top of another layer, but is unpacked before that one is committed.
	placeApart
)

// unpacker answers containerd's unpacker.
type unpacker struct {
	rows     rows
	stacks   *stacks
	maker    *maker
	holds    *holds
	observer Observer
	protocol Protocol
	step     func(string)
}

// extraction is one Prepare of containerd's unpacker.
type extraction struct {
	key, parent string
	labels      map[string]string
	want        LayerRequest
	where       place
	// early says that a hit is answered with early mounts, see Protocol.
	early bool
}

// prepare answers a Prepare for the layer that completes the stack target.
func (u *unpacker) prepare(ctx context.Context, key, parent string, labels map[string]string, target digest.Digest) ([]mount.Mount, error) {
	// The annotations of an image must not choose who owns the files of its layers on this node; containerd cuts these
	// off itself from 2.4.2 on.
	delete(labels, snapshots.LabelSnapshotUIDMapping)
	delete(labels, snapshots.LabelSnapshotGIDMapping)

	want, where, err := u.wanted(ctx, parent, labels, target)
	if err != nil {
		return nil, err
	}
	x := extraction{key: key, parent: parent, labels: labels, want: want, where: where}
	x.early = u.protocol == ProtocolEarlyMounts || where == placeApart && u.protocol == ProtocolAuto
	got, err := u.serve(ctx, x)
	if err == nil && got.exists {
		return nil, fmt.Errorf("target snapshot %s: %w", target, errdefs.ErrAlreadyExists)
	}
	if err == nil {
		return got.mounts, nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("prepare layer %s: %w", target, ctx.Err())
	}
	u.observer.Miss(ctx, Miss{Layer: want, Err: err})
	if where == placeApart {
		labels = with(labels, labelApart, "true")
	}
	mounts, err := u.maker.create(ctx, u.maker.overlay.Prepare, key, parent, labels)
	if err != nil {
		return nil, err
	}
	return unpackForm(mounts, labels)
}

// wanted works out which layer is wanted and where it goes. Of the labels only those are believed that the target
// proves.
func (u *unpacker) wanted(ctx context.Context, parent string, labels map[string]string, target digest.Digest) (LayerRequest, place, error) {
	want := LayerRequest{
		LayerName: layerdisk.LayerName{ChainID: target, Blob: digestOf(labels[labelBlob])},
		ImageRef:  labels[labelImageRef], Manifest: digestOf(labels[labelManifest]),
	}
	want.Above = above(labels[labelLayers], want.Blob)
	diffID := digestOf(labels[labelDiffID])
	if parent != "" {
		n, err := u.rows.node(ctx, parent)
		if err != nil {
			return LayerRequest{}, 0, err
		}
		if want.ParentChainID = n.chainID(); want.ParentChainID == "" {
			return want, placeOnUnknown, nil
		}
		if stacked(want.ParentChainID, diffID) == target {
			want.DiffID = diffID
		}
		return want, placeOnParent, nil
	}
	if diffID == target {
		want.DiffID = diffID
		return want, placeBottom, nil
	}
	if below := digestOf(labels[labelParentChain]); below != "" && stacked(below, diffID) == target {
		want.ParentChainID, want.DiffID = below, diffID
		return want, placeApart, nil
	}
	return want, placeUnclear, nil
}

// answer is what containerd gets for a layer that a disk has: that it exists, or early mounts.
type answer struct {
	exists bool
	mounts []mount.Mount
}

// serve answers from a disk; an error is why it cannot, and leaves nothing behind.
func (u *unpacker) serve(ctx context.Context, x extraction) (answer, error) {
	want := x.want
	switch {
	case x.where == placeOnUnknown:
		return answer{}, fmt.Errorf("nothing says which layers the parent %s consists of: %w", x.parent, errdefs.ErrFailedPrecondition)
	case x.where == placeApart && !x.early:
		return answer{}, fmt.Errorf("containerd unpacks layers in parallel, which the protocol %q cannot serve: %w", u.protocol, errdefs.ErrFailedPrecondition)
	}
	var unusable []string
	if !x.early {
		match, missing, err := u.sharable(ctx, want.ChainID, x.parent)
		if err != nil {
			return answer{}, err
		}
		if match != nil {
			tellHit(ctx, u.observer, want, *match, layerdisk.MatchSnapshot)
			return answer{exists: true}, nil
		}
		unusable = missing
	}
	holder, held, err := u.holds.acquire(ctx, want)
	if err != nil {
		return answer{}, fmt.Errorf("find layer of chain %s: %w", want.ChainID, err)
	}
	u.step("acquired")
	r := record{
		Holder: holder, DiskUUID: held.DiskUUID, LayerNumber: held.LayerNumber, ChainID: want.ChainID,
		DiffID: held.DiffID, MatchedBy: held.MatchedBy, BlobSize: held.BlobSize,
	}
	if x.early {
		r.Early = &want
		mounts, err := u.mountEarly(ctx, x, r, held.Dir)
		return answer{mounts: mounts}, err
	}
	by, err := u.adopt(ctx, x, r, unusable)
	if err != nil {
		return answer{}, err
	}
	tellHit(ctx, u.observer, want, by, by.MatchedBy)
	return answer{exists: true}, nil
}

// sharable finds an adopted snapshot for the pair of chain and parent, which another namespace may have made, and the
// names of those whose disk is missing.
func (u *unpacker) sharable(ctx context.Context, chainID digest.Digest, parent string) (match *record, unusable []string, err error) {
	var nodes []node
	err = u.rows.read(ctx, func(ctx context.Context) error {
		nodes, err = u.rows.adoptedFor(ctx, chainID, parent)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	for _, n := range nodes {
		if _, err := u.stacks.layerDir(ctx, n); err == nil {
			return n.adopted, nil, nil
		}
		unusable = append(unusable, n.info.Name)
	}
	return nil, unusable, nil
}

// errShared ends the transaction of an adoption that somebody else has made.
var errShared = errors.New("layer is adopted already")

// adopt commits a snapshot for a held layer, unless another Prepare has done so meanwhile, and returns the record of
// the one that is there now.
//
// containerd's metadata store then looks for a committed snapshot with this target and this parent, and takes the first
// it finds; the name means nothing to it. The name has the snapshot's number in it and a slash in front, which no key
// that begins with a namespace can have, so the same layer below two parents has two names.
func (u *unpacker) adopt(ctx context.Context, x extraction, r record, unusable []string) (record, error) {
	encoded, err := r.encode()
	if err != nil {
		u.holds.release(ctx, r.Holder)
		return record{}, err
	}
	labels := with(x.labels, labelAdopted, encoded)
	now := r
	err = u.rows.write(ctx, func(ctx context.Context) error {
		others, err := u.rows.adoptedFor(ctx, r.ChainID, x.parent)
		if err != nil {
			return err
		}
		for _, n := range others {
			if !slices.Contains(unusable, n.info.Name) {
				now = *n.adopted
				now.MatchedBy = layerdisk.MatchSnapshot
				return errShared
			}
		}
		created, err := storage.CreateSnapshot(ctx, snapshots.KindActive, x.key, x.parent, snapshots.WithLabels(labels))
		if err != nil {
			return fmt.Errorf("create snapshot: %w", err)
		}
		name := adoptedPrefix + created.ID + "/" + r.ChainID.String()
		u.rows.index.add(r.ChainID.String(), x.parent, name)
		if _, err := storage.CommitActive(ctx, x.key, name, snapshots.Usage{}, snapshots.WithLabels(labels)); err != nil {
			return fmt.Errorf("commit snapshot: %w", err)
		}
		u.step("adopting")
		return nil
	})
	if err != nil {
		u.holds.release(ctx, r.Holder)
	}
	if err != nil && !errors.Is(err, errShared) {
		return record{}, fmt.Errorf("adopt layer of chain %s: %w", r.ChainID, err)
	}
	u.step("adopted")
	return now, nil
}

// tellHit reports a hit to the observer.
func tellHit(ctx context.Context, o Observer, want LayerRequest, r record, by layerdisk.Match) {
	o.Hit(ctx, Hit{Layer: want, DiskUUID: r.DiskUUID, LayerNumber: r.LayerNumber, MatchedBy: by, BlobSize: r.BlobSize})
}

// mountEarly makes an active snapshot that becomes an adopted one if containerd commits it as it is, see unpackForm.
func (u *unpacker) mountEarly(ctx context.Context, x extraction, r record, dir string) (_ []mount.Mount, err error) {
	var created bool
	defer func() {
		if err == nil {
			return
		}
		if created {
			err = errors.Join(err, u.rows.drop(ctx, x.key))
		}
		u.holds.release(ctx, r.Holder)
	}()
	encoded, err := r.encode()
	if err != nil {
		return nil, err
	}
	root, err := lookAt(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("read layer %d of disk %s: %w", r.LayerNumber, r.DiskUUID, err)
	}
	labels := with(x.labels, labelAdopted, encoded)
	mounts, err := u.maker.create(ctx, u.maker.overlay.Prepare, x.key, x.parent, labels)
	if err != nil {
		return nil, fmt.Errorf("hand out early mounts of chain %s: %w", r.ChainID, err)
	}
	created = true
	u.step("mounted early")
	n, err := u.rows.node(ctx, x.key)
	if err != nil {
		return nil, err
	}
	// As giveForm does: the snapshots on top of this one take the owner of their roots from here.
	if err := chownLike(u.stacks.upperDir(n.id), root); err != nil {
		return nil, err
	}
	return unpackForm(mounts, labels)
}

func with(labels map[string]string, name, value string) map[string]string {
	labels = maps.Clone(labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[name] = value
	return labels
}
