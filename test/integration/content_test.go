//go:build integration

package integration

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/image"
)

func (n *node) busybox() image.Layer {
	n.Helper()
	l, err := image.Busybox()
	require.NoError(n, err)
	return l
}

// small is a layer with one file of its own.
func small(name string) image.Layer {
	return image.Layer{Entries: []image.Entry{image.Dir("s"), image.File("s/"+name, "content of "+name)}}
}

// fiveLayers is an image whose layers build on one another.
func (n *node) fiveLayers() []image.Layer {
	return []image.Layer{n.busybox(), image.EveryKind(), image.Deletes(), image.Restores(), small("top")}
}

// TestContentFetch: what a pull from a disk left in the registry can be had afterwards, by the one command that the
// documents name.
func TestContentFetch(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	n.attachAtStart("d", n.build("d", p))
	n.start()
	n.pull(p)
	require.Zero(t, n.fetched(p))
	space := filepath.Base(n.dir)
	file := filepath.Join(n.dir, "all.tar")
	export := func() error {
		_, err := n.containerd.Ctr(t.Context(), space, "images", "export", file, p.ref)
		return err
	}
	require.Error(t, export(), "the layers are not there")

	fetch := append([]string{"content", "fetch", p.ref, "--containerd-address", n.containerd.Socket()}, n.registryFlags(p.ref)...)
	require.Regexp(t, `^`+p.ref+`: [1-9].* fetched, namespace `+space+`\n$`, n.cli(fetch...))
	require.Equal(t, len(p.blobs), n.fetched(p))
	require.NoError(t, export())
	require.Contains(t, n.cli(fetch...), ": 0B fetched")
	_, err := n.containerd.Ctr(t.Context(), space, "images", "tag", p.ref, "another")
	require.NoError(t, err)
	_, err = n.containerd.Ctr(t.Context(), space, "images", "rm", "--sync", "another") // collects garbage
	require.NoError(t, err)
	require.NoError(t, export(), "the image keeps its layers")
	require.Equal(t, "content of top", n.run(p, "after", "cat", "/s/top"))

	_, err = n.berthd.CLI(t.Context(), "content", "fetch", "--containerd-address", n.containerd.Socket(), "registry.berth.invalid/none:1")
	require.ErrorContains(t, err, "containerd has no such image: not found")
}
