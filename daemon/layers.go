package daemon

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/control/nodeservice"
	"berth.dev/berth/internal/boltfile"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/snapshotter"
)

// layerSource is the stage as the snapshotter sees it. The two packages have only the names of layers in common.
type layerSource struct {
	stage *stage.Stager
}

var _ snapshotter.LayerSource = layerSource{}

func (s layerSource) Acquire(ctx context.Context, holder string, l snapshotter.LayerRequest) (snapshotter.HeldLayer, error) {
	return heldLayer(s.stage.Layers.Acquire(ctx, holder, l.LayerName))
}

func heldLayer(held stage.Held, err error) (snapshotter.HeldLayer, error) {
	if err != nil {
		return snapshotter.HeldLayer{}, err
	}
	return snapshotter.HeldLayer{Dir: held.Dir, DiskUUID: held.DiskUUID, LayerNumber: held.LayerNumber, DiffID: held.DiffID,
		MatchedBy: held.MatchedBy, BlobSize: held.BlobSize}, nil
}

func (s layerSource) Release(ctx context.Context, holder string) error {
	return s.stage.Layers.Release(ctx, holder)
}

func (s layerSource) LayerDir(ctx context.Context, diskUUID string, layerNumber int) (string, error) {
	return s.stage.Layers.ServedDir(ctx, diskUUID, layerNumber)
}

// chosenLayers are layers of disks that are attached when they are asked for.
type chosenLayers struct {
	layerSource
	chooser *ondemand.Chooser
}

var _ snapshotter.LayerSource = chosenLayers{}

// Acquire has a disk attached that has the layer, unless an attached one has it.
func (s chosenLayers) Acquire(ctx context.Context, holder string, l snapshotter.LayerRequest) (snapshotter.HeldLayer, error) {
	held, err := heldLayer(s.stage.Layers.AcquireReady(ctx, holder, l.LayerName))
	if err == nil || !errdefs.IsNotFound(err) {
		return held, err
	}
	s.chooser.Ready(ctx, ondemand.Wanted{LayerName: l.LayerName, ImageRef: l.ImageRef, Manifest: l.Manifest, Above: l.Above})
	return s.layerSource.Acquire(ctx, holder, l)
}

// openSnapshotter makes what answers containerd.
func openSnapshotter(ctx context.Context, n *node) error {
	protocol, err := snapshotter.ParseProtocol(string(n.config.Snapshotter.Protocol))
	if err != nil {
		return err
	}
	if err := boltfile.Check(filepath.Join(n.config.Root, snapshotter.MetadataFile)); err != nil {
		return fmt.Errorf("%w: move it away, start berthd again, and see berth doctor for the images that are to be removed and pulled again", err)
	}
	n.pulls = &pulls{observers: snapshotter.Observers{
		layerObserver{n.metrics, n.ledger}, useRecorder{n.chooser, n.uses}, startObserver{n.reader, n.recorder},
	}}
	n.snapshotter, err = snapshotter.Open(ctx, snapshotter.Config{
		Root: n.config.Root, Source: chosenLayers{layerSource{n.stage}, n.chooser}, Protocol: protocol, Observer: n.pulls,
		Maker: newLayerMaker(n.client, n.containerd), MendWait: mendWait,
	})
	return err
}

// reconcile tells the stage what the adopted snapshots hold: they are the truth after a crash.
func reconcile(ctx context.Context, n *node) error {
	missing, err := hold(ctx, n.snapshotter, n.stage)
	for _, a := range missing {
		log.G(ctx).WithFields(log.Fields{"disk": a.DiskUUID, "layer": a.LayerNumber, "chain_id": a.ChainID}).
			Error("a snapshot needs a layer of a disk that is not known here: attach that disk or another one with the layer, or remove the image")
	}
	return err
}

// hold has the stage hold the layers of adopted snapshots. Snapshots none of whose disks is known any more are
// returned, with the disk that they were adopted from.
func hold(ctx context.Context, sn *snapshotter.Snapshotter, st *stage.Stager) (missing []snapshotter.Adopted, err error) {
	adopted, err := sn.Adopted(ctx)
	if err != nil {
		return nil, fmt.Errorf("list adopted snapshots: %w", err)
	}
	holds := make([]stage.Hold, len(adopted))
	for i, a := range adopted {
		holds[i] = stage.Hold{Holder: a.Holder, DiskUUID: a.DiskUUID, LayerNumber: a.LayerNumber}
	}
	unknown, err := st.Reconcile(ctx, holds)
	if err != nil {
		return nil, err
	}
	gone := map[string]bool{}
	for _, h := range unknown {
		gone[h.Holder] = true
	}
	known := map[string]bool{}
	for _, a := range adopted {
		known[a.Name] = known[a.Name] || a.Local || !gone[a.Holder]
	}
	for _, a := range adopted {
		if !known[a.Name] {
			known[a.Name] = true
			missing = append(missing, a)
		}
	}
	return missing, nil
}

// usesOf gives the chain IDs in use of each disk.
func usesOf(snaps *snapshotter.Snapshotter) nodeservice.Uses {
	return func(ctx context.Context) (map[string][]digest.Digest, error) {
		uses, err := snaps.Uses(ctx)
		chains := make(map[string][]digest.Digest, len(uses))
		for uuid, u := range uses {
			chains[uuid] = slices.Collect(maps.Keys(u.Chains))
		}
		return chains, err
	}
}
