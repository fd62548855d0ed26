package snapshotter_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/continuity/fs/fstest"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"berth.dev/berth/snapshotter"
)

const pluginName = "berth"

// stack is containerd's own way down to a snapshotter: metadata store, proxy, gRPC over a unix socket, service.
type stack struct {
	berth *snapshotter.Snapshotter // nil if it is the stock one
	proxy snapshots.Snapshotter
	meta  snapshots.Snapshotter
	cs    content.Store
	db    *metadata.DB
	stop  func()
}

// newStack opens a snapshotter below root and everything of containerd above it. It may be stopped and opened again.
func newStack(t testing.TB, root string, cfg snapshotter.Config) *stack {
	t.Helper()
	cfg.Root = root
	sn, err := snapshotter.Open(t.Context(), cfg)
	require.NoError(t, err)
	s := serveStack(t, filepath.Dir(root), sn)
	s.berth = sn
	return s
}

// stockStack is the same with containerd's overlay snapshotter.
func stockStack(t testing.TB) *stack {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	sn, err := overlay.NewSnapshotter(filepath.Join(dir, "root"), overlay.AsynchronousRemove, overlay.WithRemapIDs)
	require.NoError(t, err)
	return serveStack(t, dir, sn)
}

func serveStack(t testing.TB, dir string, sn snapshots.Snapshotter) *stack {
	t.Helper()
	// A unix socket's path has to be short.
	short, err := os.MkdirTemp("", "snapshotter-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(short)) })
	listener, err := net.Listen("unix", filepath.Join(short, "s"))
	require.NoError(t, err)
	server := grpc.NewServer()
	snapshotsapi.RegisterSnapshotsServer(server, snapshotservice.FromSnapshotter(sn))
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()

	conn, err := grpc.NewClient("unix://"+filepath.Join(short, "s"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	s := &stack{proxy: proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), pluginName)}
	blobs, err := local.NewStore(filepath.Join(dir, "content"))
	require.NoError(t, err)
	bdb, err := bolt.Open(filepath.Join(dir, "meta.db"), 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	s.db = metadata.NewDB(bdb, blobs, map[string]snapshots.Snapshotter{pluginName: s.proxy})
	require.NoError(t, s.db.Init(t.Context()))
	s.cs, s.meta = s.db.ContentStore(), s.db.Snapshotter(pluginName)
	var once sync.Once
	s.stop = func() {
		once.Do(func() {
			require.NoError(t, conn.Close())
			server.GracefulStop()
			require.NoError(t, <-served)
			require.NoError(t, bdb.Close())
			require.NoError(t, sn.Close())
		})
	}
	t.Cleanup(s.stop)
	return s
}

// node is a stack with disks, whose layer directories lie below the snapshotter's root.
type node struct {
	*stack
	root   string
	source *source
	seen   *watcher
}

// newNode has one disk for each list of layers.
func newNode(t testing.TB, cfg snapshotter.Config, disks ...[]layer) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	n := &node{root: filepath.Join(t.TempDir(), "root"), source: newSource(), seen: &watcher{}}
	for i, layers := range disks {
		n.source.disks = append(n.source.disks, newDisk(t, n.root, i+1, layers...))
	}
	cfg.Source, cfg.Observer = n.source, n.seen
	n.stack = newStack(t, n.root, cfg)
	return n
}

// pulling is how a test pulls.
type pulling struct {
	namespace string
	parallel  int64           // 0 is sequential
	rebase    bool            // the proxy plugin is configured with that capability
	ctx       context.Context //nolint:containedctx // of one call
}

// pull does what containerd does to pull and unpack an image, and returns the layer blobs that it fetched.
func (s *stack) pull(t testing.TB, im *image, how pulling) ([]digest.Digest, error) {
	t.Helper()
	var mu sync.Mutex
	var fetched []digest.Digest
	ctx := how.context(t)
	up := unpack.Platform{
		Platform: platforms.All, SnapshotterKey: pluginName, Snapshotter: s.meta, Applier: apply.NewFileSystemApplier(s.cs),
	}
	opts := []unpack.UnpackerOpt{unpack.WithUnpackPlatform(up)}
	if how.rebase {
		up.SnapshotterCapabilities = []string{snapshots.RebaseCap}
		opts[0] = unpack.WithUnpackPlatform(up)
	}
	if how.parallel > 0 {
		opts = append(opts, unpack.WithUnpackLimiter(semaphore.NewWeighted(how.parallel)))
	}
	unpacker, err := unpack.NewUnpacker(ctx, s.cs, opts...)
	require.NoError(t, err)
	handler := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if images.IsLayerType(d.MediaType) {
			mu.Lock()
			fetched = append(fetched, d.Digest)
			mu.Unlock()
		}
		return im.fetch(ctx, s.cs, d)
	})
	err = images.Dispatch(ctx, unpacker.Unpack(handler), nil, im.manifest)
	_, unpackErr := unpacker.Wait()
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(fetched)
	return fetched, errors.Join(err, unpackErr)
}

func (p pulling) context(t testing.TB) context.Context {
	ctx := p.ctx
	if ctx == nil {
		ctx = t.Context()
	}
	if p.namespace == "" {
		p.namespace = "default"
	}
	return namespaces.WithNamespace(ctx, p.namespace)
}

// mustPull pulls without an error.
func (s *stack) mustPull(t testing.TB, im *image, how pulling) []digest.Digest {
	t.Helper()
	fetched, err := s.pull(t, im, how)
	require.NoError(t, err)
	return fetched
}

// mounted mounts what a container of the image would see, read and write, and returns where.
func (s *stack) mounted(t testing.TB, im *image, how pulling) string {
	t.Helper()
	ctx, key := how.context(t), "container-"+digest.FromString(t.TempDir()).Encoded()[:12]
	mounts, err := s.meta.Prepare(ctx, key, im.top().String())
	require.NoError(t, err)
	return mountAt(t, mounts)
}

func mountAt(t testing.TB, mounts []mount.Mount) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, mount.All(mounts, dir), "%v", mounts)
	t.Cleanup(func() { require.NoError(t, mount.UnmountAll(dir, unix.MNT_DETACH)) })
	return dir
}

// stockTree is the image as containerd's own snapshotter gives it.
func stockTree(t testing.TB, im *image) string {
	t.Helper()
	stock := stockStack(t)
	stock.mustPull(t, im, pulling{})
	return stock.mounted(t, im, pulling{})
}

// requireTree compares every attribute of the image with another tree of it.
func (s *stack) requireTree(t testing.TB, want string, im *image, how pulling) {
	t.Helper()
	require.NoError(t, fstest.CheckDirectoryEqual(s.mounted(t, im, how), want))
}

// collect runs containerd's garbage collection.
func (s *stack) collect(t testing.TB) {
	t.Helper()
	_, err := s.db.GarbageCollect(t.Context())
	require.NoError(t, err)
}
