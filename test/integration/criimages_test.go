//go:build integration

package integration

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/cri"
)

// seenByCRI is nil if CRI has an image.
func (n *node) seenByCRI(c *cri.Client, ref string) error {
	img, err := c.Image(n.Context(), ref)
	if err == nil && img == nil {
		err = fmt.Errorf("CRI has no image %s", ref)
	}
	return err
}

// records are containerd's records of the images of a namespace, by name.
func (n *node) records(namespace string) map[string]images.Image {
	n.Helper()
	c, err := n.containerd.Client()
	require.NoError(n, err)
	defer c.Close()
	list, err := c.ImageService().List(namespaces.WithNamespace(n.Context(), namespace))
	require.NoError(n, err)
	records := make(map[string]images.Image)
	for _, img := range list {
		records[img.Name] = img
	}
	return records
}

// A containerd that starts while berthd is down has no images for CRI, though it has their records. berthd brings them
// back when it runs: pods start without a pull. No record has another target or other labels than before, other
// namespaces are left alone, and nothing is pulled.
func TestImagesThatCRILost(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	gone := n.push("gone", n.busybox(), small("gone"))
	stranger := n.push("stranger", n.busybox(), small("stranger"))
	pause := n.push("pause", n.busybox())
	n.pauseImage = pause.ref
	n.attachAtStart("d", n.build("d", p, gone))
	n.start()
	c := n.cri()
	ref, err := c.Pull(t.Context(), p.ref)
	require.NoError(t, err)
	_, err = c.Pull(t.Context(), pause.ref)
	require.NoError(t, err)
	_, err = c.Pull(t.Context(), gone.ref)
	require.NoError(t, err)
	require.NoError(t, n.tryPull(stranger, ""))
	before := n.records("k8s.io")
	own := n.records(filepath.Base(n.dir))
	require.NotEmpty(t, own)

	require.NoError(t, n.containerd.Stop())
	require.NoError(t, n.berthd.Stop())
	require.NoError(t, n.containerd.Start(t.Context()))
	n.eventually("CRI to have looked at its images", func() error { _, err := c.Images(t.Context()); return err })
	list, err := c.Images(t.Context())
	require.NoError(t, err)
	require.Empty(t, list, "CRI shows nothing")
	require.Len(t, n.records("k8s.io"), len(before), "containerd has them all")

	n.registry.Reset()
	n.startBerthd()
	for _, want := range []pushed{p, pause, gone} {
		n.eventually("CRI to see "+want.ref+" again", func() error { return n.seenByCRI(c, want.ref) })
	}
	after := n.records("k8s.io")
	require.Len(t, after, len(before))
	for name, old := range before {
		require.Equal(t, old.Target, after[name].Target, name)
		require.Equal(t, old.Labels, after[name].Labels, name)
	}
	require.Equal(t, own, n.records(filepath.Base(n.dir)), "other namespaces are left alone")
	pod := n.pod(c, "pod", ref, 0)
	out, err := pod.Exec(t.Context(), "cat", "/s/top")
	require.NoError(t, err)
	require.Equal(t, "content of top", out)
	require.NoError(t, pod.Remove(t.Context()))
	require.Zero(t, n.fetched(p)+n.fetched(pause), "nothing was pulled: %v", n.registry.Blobs())
}
