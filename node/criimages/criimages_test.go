package criimages_test

import (
	"context"
	"errors"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"berth.dev/berth/node/criimages"
)

// world is a containerd with CRI.
type world struct {
	t       *testing.T
	records []images.Image
	// shown are the images that CRI knows, away are those without layers.
	shown   []*runtime.Image
	away    map[string]bool
	updated []string
	cri     error
}

var (
	_ criimages.CRI     = (*world)(nil)
	_ criimages.Records = (*world)(nil)
	_ criimages.Layers  = (*world)(nil)
)

func (w *world) ListImages(context.Context, *runtime.ListImagesRequest, ...grpc.CallOption) (*runtime.ListImagesResponse, error) {
	return &runtime.ListImagesResponse{Images: w.shown}, w.cri
}

func (w *world) List(ctx context.Context, _ ...string) ([]images.Image, error) {
	w.space(ctx)
	return w.records, nil
}

func (w *world) Update(ctx context.Context, img images.Image, fields ...string) (images.Image, error) {
	w.space(ctx)
	require.Equal(w.t, []string{"labels.io.cri-containerd.image"}, fields, "nothing else may change")
	w.updated = append(w.updated, img.Name)
	return img, nil
}

func (w *world) Unpacked(ctx context.Context, img images.Image) (bool, error) {
	w.space(ctx)
	return !w.away[img.Name], nil
}

func (w *world) space(ctx context.Context) {
	ns, err := namespaces.NamespaceRequired(ctx)
	require.NoError(w.t, err)
	require.Equal(w.t, "k8s.io", ns)
}

func record(name string, managed bool) images.Image {
	img := images.Image{Name: name, Target: ocispec.Descriptor{Digest: digest.FromString(name)}}
	if managed {
		img.Labels = map[string]string{"io.cri-containerd.image": "managed"}
	}
	return img
}

func TestLook(t *testing.T) {
	w := &world{t: t, away: map[string]bool{"unpacked-elsewhere": true}, records: []images.Image{
		record("lost", true), record("known", true), record("sha256:id", true), record("repo@digest", true),
		record("not-of-cri", false), record("unpacked-elsewhere", true),
	}}
	w.shown = []*runtime.Image{{Id: "sha256:id", RepoTags: []string{"known"}, RepoDigests: []string{"repo@digest"}}}
	r := criimages.New(w, w, w)
	look := func() []string {
		w.updated = nil
		require.NoError(t, r.Look(t.Context()))
		return w.updated
	}
	require.Empty(t, look(), "containerd may be just starting")
	require.Equal(t, []string{"lost"}, look())
	require.Empty(t, look(), "once is enough")

	// It comes back, and is lost again.
	w.shown = append(w.shown, &runtime.Image{Id: "x", RepoTags: []string{"lost"}})
	require.Empty(t, look())
	w.shown = w.shown[:1]
	require.Empty(t, look())
	require.Equal(t, []string{"lost"}, look())

	// Another image under the name is another one.
	w.records[0].Target.Digest = digest.FromString("other")
	require.Empty(t, look())
	require.Equal(t, []string{"lost"}, look())
}

func TestLookWhileCRIIsAway(t *testing.T) {
	w := &world{t: t, records: []images.Image{record("lost", true)}}
	r := criimages.New(w, w, w)
	require.NoError(t, r.Look(t.Context()))
	w.cri = status.Error(codes.Unavailable, "server is not initialized yet")
	require.ErrorContains(t, r.Look(t.Context()), "not initialized")
	require.Empty(t, w.updated)
	w.cri = errors.New("other")
	require.Error(t, r.Look(t.Context()))
	w.cri = nil
	require.NoError(t, r.Look(t.Context()))
	require.Equal(t, []string{"lost"}, w.updated)
}
