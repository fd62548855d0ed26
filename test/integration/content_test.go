//go:build integration

package integration

import (
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
