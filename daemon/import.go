package daemon

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/node/criimages"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/imageimport"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/snapshotter"
)

// importMarker is the file below the root that says that images were registered in containerd.
const importMarker = "imageimport.json"

// openImporter makes what registers images of disks in containerd.
func openImporter(_ context.Context, n *node) error {
	c, ctr := &n.config, n.client
	cri := criImages{runtime.NewImageServiceClient(n.containerd), c.Root, c.Import.Snapshotter}
	n.importer = imageimport.New(imageimport.Config{
		Namespaces: c.Import.Namespaces, Snapshotter: c.Import.Snapshotter, Pinned: c.Import.Pinned, Images: c.Import.Images,
		IdleTimeout: c.Stage.IdleTimeout.Std(), Platform: platforms.Default(), Marker: filepath.Join(c.Root, importMarker),
		Observer: importObserver{metrics.RegisterImports(n.registry, texts(imageimport.Results())), n.ledger},
	}, importNode{n.stage, n.snapshotter}, imageimport.Containerd{
		Content: ctr.ContentStore(), Images: ctr.ImageService(), Leases: ctr.LeasesService(),
		Snapshots: ctr.SnapshotService(c.Import.Snapshotter), Usable: cri.usable,
	}, n.loaded.ImportsFrom)
	n.pulls.importer = n.importer
	return nil
}

// importNode is the stage and the snapshotter as the importer sees them.
type importNode struct {
	stage *stage.Stager
	snaps *snapshotter.Snapshotter
}

var _ imageimport.Node = importNode{}

func (n importNode) Disks() []imageimport.Disk {
	var list []imageimport.Disk
	for _, s := range n.stage.Disks() {
		d := imageimport.Disk{Name: s.Name, UUID: s.UUID, Phase: phaseOf(s), Keep: s.Keep, Holders: s.Holders}
		if d.Phase == imageimport.Serving {
			if d.Index = n.stage.Index(s.Name); d.Index == nil {
				d.Phase = imageimport.Leaving // since it was listed
			}
		}
		list = append(list, d)
	}
	return list
}

func phaseOf(s stage.DiskStatus) imageimport.Phase {
	if s.Serving {
		return imageimport.Serving
	}
	switch s.State {
	case stage.StateDraining, stage.StateUnmounting, stage.StateDetaching, stage.StateDeleting, stage.StateFailed:
		return imageimport.Leaving
	default:
		return imageimport.Coming
	}
}

func (n importNode) Changed() <-chan struct{} { return n.stage.Changed() }

func (n importNode) Uses(ctx context.Context) (map[string]imageimport.Use, error) {
	uses, err := n.snaps.Uses(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]imageimport.Use, len(uses))
	for uuid, u := range uses {
		out[uuid] = imageimport.Use{Chains: u.Chains, Others: u.Others}
	}
	return out, nil
}

func (n importNode) Detach(ctx context.Context, name string) error {
	_, err := n.stage.Unstage(ctx, name, stage.UnstageOptions{})
	return err
}

// criImages is CRI's image service, which the containerd of a Kubernetes node has.
type criImages struct {
	runtime.ImageServiceClient
	root, snapshotter string
}

// criNamespace is where CRI has its images.
const criNamespace = criimages.Namespace

// usable refuses the namespace of a CRI that has its images in another snapshotter: it would believe that they are
// there, and fail to start containers of them instead of pulling.
func (c criImages) usable(ctx context.Context, namespace string) error {
	if namespace != criNamespace {
		return nil
	}
	info, err := c.ImageFsInfo(ctx, &runtime.ImageFsInfoRequest{})
	if err != nil {
		if err = errgrpc.ToNative(err); errdefs.IsNotImplemented(err) {
			return nil // no CRI, so nobody is misled
		}
		return fmt.Errorf("ask CRI where its images are: %w", err)
	}
	systems := info.GetImageFilesystems()
	if len(systems) == 0 {
		return nil
	}
	// The first is that of the snapshotter that pods use unless their runtime class says otherwise.
	at := systems[0].GetFsId().GetMountpoint()
	if real, err := filepath.EvalSymlinks(at); err == nil && real == c.root {
		return nil
	}
	return fmt.Errorf("CRI has its images in %s and not in %s: make %s its snapshotter, with exports.root, as \"berth config containerd\" prints it: %w",
		at, c.root, c.snapshotter, errdefs.ErrFailedPrecondition)
}

// importObserver passes on what becomes of images.
type importObserver struct {
	metrics *metrics.Imports
	ledger  *events.Ledger
}

func (o importObserver) Image(ctx context.Context, disk string, img imageimport.Image) {
	o.metrics.Image(string(img.Result))
	kind := events.ImageNotImported
	entry := log.G(ctx).WithFields(log.Fields{"disk": disk, "image": img.Reference, "namespace": img.Namespace, "result": img.Result})
	switch img.Result {
	case imageimport.Registered:
		kind = events.ImageImported
		entry.Info("image of a disk is registered in containerd")
	case imageimport.Withdrawn:
		kind = events.ImageWithdrawn
		entry.Info("image of a disk is no longer registered in containerd")
	case imageimport.Removed:
		entry.WithField("reason", img.Reason).Info("image of a disk is no longer registered in containerd")
	default:
		entry.WithField("reason", img.Reason).Warn("image of a disk is not registered in containerd")
	}
	o.ledger.Record(events.Event{Kind: kind, Disk: disk, ImageRef: img.Reference, Detail: img.Reason})
}
