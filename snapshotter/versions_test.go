package snapshotter_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/snapshotter"
)

// version is what an older containerd does differently from the one whose unpacker is linked into these tests. Only one
// version of a module can be, so what the others send and do is repeated here: core/unpack/unpacker.go of 1.7.35 (there
// pkg/unpack), 2.0.14, 2.1.9, 2.2.9 and 2.3.7. The appliers of all of these are the same.
type version struct {
	name   string
	labels bool // sends diff ID and parent's chain ID: 2.3 and later
}

var (
	before23 = version{name: "1.7 to 2.2"}
	at23     = version{name: "2.3", labels: true}
)

// pull unpacks an image as the version does; it never looks whether mounts are read-only.
func (v version) pull(t *testing.T, s *stack, im *image, how pulling, annotations map[string]string) (fetched []digest.Digest, err error) {
	t.Helper()
	ctx := how.context(t)
	parallel := how.parallel > 0 && how.rebase
	type job struct {
		i      int
		key    string
		mounts []mount.Mount
	}
	var jobs []job
	opts := func(i int) []snapshots.Opt {
		labels := map[string]string{}
		for k, l := range annotations {
			labels[k] = l
		}
		labels["containerd.io/snapshot.ref"] = im.layers[i].chainID.String()
		if v.labels {
			labels["containerd.io/snapshot/diff-id"] = im.layers[i].diffID.String()
			if i > 0 {
				labels["containerd.io/snapshot/parent-chain-id"] = im.layers[i].below.String()
			}
		}
		return []snapshots.Opt{snapshots.WithLabels(labels)}
	}
	finish := func(j job) error {
		l := im.layers[j.i]
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip, Digest: l.blobID, Size: int64(len(l.blob))}
		if _, err := im.fetch(ctx, s.cs, d); err != nil {
			return err
		}
		fetched = append(fetched, l.blobID)
		got, err := apply.NewFileSystemApplier(s.cs).Apply(ctx, d, j.mounts)
		if err != nil {
			return err
		}
		require.Equal(t, l.diffID, got.Digest)
		o := opts(j.i)
		if j.i > 0 && parallel {
			o = append(o, snapshots.WithParent(l.below.String()))
		}
		return s.meta.Commit(ctx, l.chainID.String(), j.key, o...)
	}
	for i, l := range im.layers {
		parent := l.below.String()
		if parallel {
			parent = ""
		}
		key := fmt.Sprintf(snapshots.UnpackKeyFormat, fmt.Sprint("1-", i), l.chainID)
		mounts, err := s.meta.Prepare(ctx, key, parent, opts(i)...)
		if errdefs.IsAlreadyExists(err) {
			_, err := s.meta.Stat(ctx, l.chainID.String())
			require.NoError(t, err)
			continue
		}
		if err != nil {
			return fetched, err
		}
		if jobs = append(jobs, job{i, key, mounts}); !parallel {
			if err := finish(jobs[len(jobs)-1]); err != nil {
				return fetched, err
			}
		}
	}
	for _, j := range jobs {
		if !parallel {
			break
		}
		if err := finish(j); err != nil {
			return fetched, err
		}
	}
	return fetched, nil
}

// TestOldVersions has older containerds pull: they must get the image, whole and right, or an error.
func TestOldVersions(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	want := stockTree(t, im)
	parallel := pulling{parallel: 4, rebase: true}
	for _, c := range []struct {
		version version
		how     pulling
		onDisk  []int
		fetched []int
		refused string
	}{
		{before23, pulling{}, nil, []int{0, 1, 2, 3, 4}, ""},
		{before23, pulling{}, []int{0, 1, 2}, []int{3, 4}, ""},
		{before23, pulling{}, []int{0, 1, 2, 3, 4}, nil, ""},
		{at23, pulling{}, []int{0, 1, 2}, []int{3, 4}, ""},
		{at23, pulling{}, []int{0, 1, 2, 3, 4}, nil, ""},
		// The lowest layer is the same whoever asks; the others are fetched and unpacked as if there were no disk.
		{at23, parallel, nil, []int{0, 1, 2, 3, 4}, ""},
		{at23, parallel, []int{0, 1, 2, 3, 4}, []int{1, 2, 3, 4}, ""},
		{at23, parallel, []int{1, 3}, []int{0, 1, 2, 3, 4}, ""},
		{before23, parallel, nil, nil, `take "rebase" out of the proxy plugin's capabilities`},
		{before23, parallel, []int{0, 1, 2, 3, 4}, nil, `take "rebase" out of the proxy plugin's capabilities`},
	} {
		for _, protocol := range []snapshotter.Protocol{snapshotter.ProtocolAuto, snapshotter.ProtocolSequential} {
			t.Run(fmt.Sprintf("%s/parallel %d/%v on the disk/%s", c.version.name, c.how.parallel, c.onDisk, protocol), func(t *testing.T) {
				t.Parallel()
				n := newNode(t, snapshotter.Config{Protocol: protocol}, pick(im, c.onDisk...))
				fetched, err := c.version.pull(t, n.stack, im, c.how, nil)
				if c.refused != "" {
					require.ErrorIs(t, err, errdefs.ErrFailedPrecondition)
					require.ErrorContains(t, err, c.refused)
					_, err := n.meta.Stat(c.how.context(t), im.top().String())
					require.ErrorIs(t, err, errdefs.ErrNotFound, "a failed pull leaves no image that looks complete")
					return
				}
				require.NoError(t, err)
				require.ElementsMatch(t, digests(pick(im, c.fetched...)), fetched)
				n.requireTree(t, want, im, c.how)
				n.requireConsistent(t)
				hits, misses := n.seen.take()
				require.Len(t, hits, len(im.layers)-len(c.fetched))
				require.Len(t, misses, len(c.fetched))
			})
		}
	}
}

// TestEarlyMounts pins the form of early mounts down, which containerd 2.4 takes for read-only and every applier for
// an overlay to write to.
func TestEarlyMounts(t *testing.T) {
	im := forge(t, "sample", nil, sampleTars(t)...)
	n := newNode(t, snapshotter.Config{}, im.layers)
	ctx, l := pulling{}.context(t), im.layers[1]
	key := "default/7/extract-1 " + l.chainID.String()
	labels := snapshots.WithLabels(map[string]string{
		"containerd.io/snapshot.ref": l.chainID.String(), "containerd.io/snapshot/diff-id": l.diffID.String(),
		"containerd.io/snapshot/parent-chain-id": l.below.String(),
	})
	mounts, err := n.berth.Prepare(ctx, key, "", labels)
	require.NoError(t, err)
	require.Len(t, mounts, 1)
	require.Equal(t, "overlay", mounts[0].Type)
	require.Len(t, mounts[0].Options, 2)
	require.Equal(t, "ro", mounts[0].Options[0])
	require.Regexp(t, "^upperdir="+n.root+"/snapshots/[0-9]+/fs$", mounts[0].Options[1])
	require.True(t, mounts[0].ReadOnly())

	again, err := n.berth.Mounts(ctx, key)
	require.NoError(t, err)
	require.Equal(t, mounts, again)

	t.Run("a parent of another chain is refused", func(t *testing.T) {
		wrong := adopt(ctx, t, n.berth, "default/8/extract-1 ", "", im.layers[0])
		require.NoError(t, n.berth.Commit(ctx, "default/9/right", key, labels, snapshots.WithParent(wrong)), "the right one")
		second := im.layers[2]
		other := "default/10/extract-1 " + second.chainID.String()
		_, err := n.berth.Prepare(ctx, other, "", snapshots.WithLabels(map[string]string{
			"containerd.io/snapshot.ref": second.chainID.String(), "containerd.io/snapshot/diff-id": second.diffID.String(),
			"containerd.io/snapshot/parent-chain-id": second.below.String(),
		}))
		require.NoError(t, err)
		for _, parent := range []string{wrong, ""} {
			err = n.berth.Commit(ctx, "default/11/x", other, snapshots.WithParent(parent))
			require.ErrorIs(t, err, errdefs.ErrFailedPrecondition, "parent %q", parent)
		}
		require.NoError(t, n.berth.Remove(ctx, other))
		n.requireConsistent(t)
	})
	t.Run("a disk that went away fails the commit", func(t *testing.T) {
		l := im.layers[3]
		other := "default/12/extract-1 " + l.chainID.String()
		_, err := n.berth.Prepare(context.WithoutCancel(ctx), other, "", snapshots.WithLabels(map[string]string{
			"containerd.io/snapshot.ref": l.chainID.String(), "containerd.io/snapshot/diff-id": l.diffID.String(),
			"containerd.io/snapshot/parent-chain-id": l.below.String(),
		}))
		require.NoError(t, err)
		n.source.change(func(s *source) { s.missing[s.disks[0].uuid] = true })
		require.ErrorIs(t, n.berth.Commit(ctx, "default/13/x", other), errdefs.ErrUnavailable)
	})
}
