package imageimport_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/node/imageimport"
	"berth.dev/berth/snapshotter"
)

const pluginName = "berth"

// node is containerd's own metadata and content stores over a real snapshotter, whose layers come from made-up disks.
type node struct {
	*testing.T
	dir    string
	db     *metadata.DB
	snaps  *snapshotter.Snapshotter
	config imageimport.Config
	down   error // if set, what containerd answers

	mu      sync.Mutex
	disks   []imageimport.Disk
	indexes map[string]*layerdisk.Index // by UUID
	holders map[string]string           // holder -> UUID
	told    []string                    // what the observer heard
	asks    func(digest.Digest) bool    // of the importer that was made last
}

func newNode(t *testing.T, protocol snapshotter.Protocol) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n := &node{T: t, dir: t.TempDir(), indexes: map[string]*layerdisk.Index{}, holders: map[string]string{}}
	n.config = imageimport.Config{
		Namespaces: []string{"default", "k8s.io"}, Snapshotter: pluginName, Marker: filepath.Join(n.dir, "marker"), Observer: n,
		Platform: platforms.Only(ocispec.Platform{OS: "linux", Architecture: "amd64"}),
	}
	var err error
	n.snaps, err = snapshotter.Open(t.Context(), snapshotter.Config{Root: filepath.Join(n.dir, "root"), Source: source{n}, Protocol: protocol})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, n.snaps.Close()) })
	blobs, err := local.NewStore(filepath.Join(n.dir, "content"))
	require.NoError(t, err)
	bdb, err := bolt.Open(filepath.Join(n.dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, bdb.Close()) })
	n.db = metadata.NewDB(bdb, blobs, map[string]snapshots.Snapshotter{pluginName: n.snaps})
	require.NoError(t, n.db.Init(t.Context()))
	return n
}

// importer is one as a new berthd has it.
func (n *node) importer() *imageimport.Importer {
	im := imageimport.New(n.config, n, imageimport.Containerd{
		Content: n.db.ContentStore(), Images: metadata.NewImageStore(n.db), Snapshots: n.db.Snapshotter(pluginName),
		Leases: manager{metadata.NewLeaseManager(n.db), n},
	}, func(disk string) bool { return disk != "unwanted" })
	n.asks = im.Asks
	return im
}

// manager collects garbage when it is asked to, as containerd's service does, and can be down.
type manager struct {
	leases.Manager
	node *node
}

func (m manager) List(ctx context.Context, filters ...string) ([]leases.Lease, error) {
	if m.node.down != nil {
		return nil, m.node.down
	}
	return m.Manager.List(ctx, filters...)
}

func (m manager) Delete(ctx context.Context, l leases.Lease, opts ...leases.DeleteOpt) error {
	if err := m.Manager.Delete(ctx, l, opts...); err != nil {
		return err
	}
	var o leases.DeleteOptions
	for _, opt := range opts {
		if err := opt(ctx, &o); err != nil {
			return err
		}
	}
	if !o.Synchronous {
		return nil
	}
	_, err := m.node.db.GarbageCollect(ctx)
	return err
}

// attach a disk with images.
func (n *node) attach(name string, images ...layerdisktest.Image) *layerdisk.Index {
	n.Helper()
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, images...)
	_, err := layerdisk.Seal(ix)
	require.NoError(n, err)
	n.attachIndex(name, ix)
	return ix
}

func (n *node) attachIndex(name string, ix *layerdisk.Index) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.indexes[ix.UUID] = ix
	n.disks = append(n.disks, imageimport.Disk{Name: name, UUID: ix.UUID, Phase: imageimport.Serving, Index: ix})
}

// detach takes a disk away, whatever uses it.
func (n *node) detach(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.disks = slices.DeleteFunc(n.disks, func(d imageimport.Disk) bool { return d.Name == name })
}

func (n *node) phase(name string, p imageimport.Phase) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.disks {
		if n.disks[i].Name == name {
			n.disks[i].Phase = p
			n.disks[i].Index = n.indexes[n.disks[i].UUID]
			if p != imageimport.Serving {
				n.disks[i].Index = nil
			}
		}
	}
}

var _ imageimport.Node = (*node)(nil)

// Disks implements imageimport.Node.
func (n *node) Disks() []imageimport.Disk {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := slices.Clone(n.disks)
	for i := range list {
		for _, uuid := range n.holders {
			if uuid == list[i].UUID {
				list[i].Holders++
			}
		}
	}
	return list
}

// Changed implements imageimport.Node; tests call Converge instead.
func (n *node) Changed() <-chan struct{} { return nil }

// Uses implements imageimport.Node.
func (n *node) Uses(ctx context.Context) (map[string]imageimport.Use, error) {
	uses, err := n.snaps.Uses(ctx)
	out := map[string]imageimport.Use{}
	for uuid, u := range uses {
		out[uuid] = imageimport.Use(u)
	}
	return out, err
}

// Detach implements imageimport.Node.
func (n *node) Detach(_ context.Context, name string) error {
	for _, d := range n.Disks() {
		if d.Name == name && d.Holders > 0 {
			return fmt.Errorf("%d snapshots use it: %w", d.Holders, errdefs.ErrFailedPrecondition)
		}
	}
	n.detach(name)
	return nil
}

// Image implements imageimport.Observer.
func (n *node) Image(_ context.Context, disk string, img imageimport.Image) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = append(n.told, fmt.Sprintf("%s %s %s %s", disk, img.Namespace, img.Reference, img.Result))
}

// source serves layers of the disks of a node.
type source struct{ *node }

var _ snapshotter.LayerSource = source{}

func (s source) Acquire(_ context.Context, holder string, want snapshotter.LayerRequest) (snapshotter.HeldLayer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	require.True(s, s.asks(want.ChainID), "it can be told from a pull")
	for _, d := range s.disks {
		if d.Phase != imageimport.Serving {
			continue
		}
		for _, c := range d.Index.Chains {
			if c.ChainID == want.ChainID {
				s.holders[holder] = d.UUID
				return snapshotter.HeldLayer{Dir: s.dir, DiskUUID: d.UUID, LayerNumber: c.Layer, DiffID: c.DiffID, MatchedBy: layerdisk.MatchChainID}, nil
			}
		}
	}
	return snapshotter.HeldLayer{}, fmt.Errorf("no disk has %s: %w", want.ChainID, errdefs.ErrNotFound)
}

func (s source) Release(_ context.Context, holder string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.holders, holder)
	return nil
}

func (s source) LayerDir(context.Context, string, int) (string, error) { return s.dir, nil }

func in(t *testing.T, namespace string) context.Context {
	return namespaces.WithNamespace(t.Context(), namespace)
}

// has is everything that containerd has in a namespace.
func (n *node) has(namespace string) []string {
	n.Helper()
	ctx := in(n.T, namespace)
	var list []string
	all, err := metadata.NewImageStore(n.db).List(ctx)
	require.NoError(n, err)
	for _, img := range all {
		list = append(list, "image "+img.Name)
	}
	held, err := metadata.NewLeaseManager(n.db).List(ctx)
	require.NoError(n, err)
	for _, l := range held {
		list = append(list, "lease "+l.ID)
	}
	require.NoError(n, n.db.ContentStore().Walk(ctx, func(i content.Info) error {
		list = append(list, "content "+i.Digest.String())
		return nil
	}))
	require.NoError(n, n.db.Snapshotter(pluginName).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		list = append(list, "snapshot "+i.Name)
		return nil
	}))
	slices.Sort(list)
	return list
}

func (n *node) requireNothing() {
	n.Helper()
	n.collect()
	for _, ns := range n.config.Namespaces {
		require.Empty(n, n.has(ns), ns)
	}
	require.Empty(n, n.holders)
}

func (n *node) collect() {
	n.Helper()
	_, err := n.db.GarbageCollect(n.Context())
	require.NoError(n, err)
}

// results of all images of a disk, by namespace and reference.
func results(im *imageimport.Importer, name, uuid string) map[string]imageimport.Result {
	all := map[string]imageimport.Result{}
	list, _ := im.Status(name, uuid)
	for _, i := range list {
		all[i.Namespace+" "+i.Reference] = i.Result
	}
	return all
}

func (n *node) image(namespace, name string) (images.Image, error) {
	return metadata.NewImageStore(n.db).Get(in(n.T, namespace), name)
}

func writeBlob(t *testing.T, ctx context.Context, n *node, d ocispec.Descriptor, data []byte) {
	t.Helper()
	require.NoError(t, content.WriteBlob(ctx, n.db.ContentStore(), "theirs-"+d.Digest.String(), bytes.NewReader(data), d))
}
