//go:build integration

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/mounts"
)

// A journal of disks that is damaged does not take the node down: berthd sets it aside and says so, attaches the disks
// of its configuration, and serves. Images that were pulled before start, others are pulled from the disk, and a disk
// that somebody attached is attached again by hand.
func TestDamagedJournal(t *testing.T) {
	page := os.Getpagesize()
	ways := []struct {
		name   string
		damage func(data []byte) []byte
	}{
		{"empty", func([]byte) []byte { return nil }},
		{"cut", func(data []byte) []byte { return data[:page+100] }},
		{"pages of zeroes", func(data []byte) []byte { clear(data[2*page:]); return data }},
		{"garbage", func(data []byte) []byte { return []byte(strings.Repeat("garbage ", len(data)/8)) }},
	}
	n := newNode(t)
	layers := n.fiveLayers()
	first := n.push("first", layers...)
	images := []pushed{first}
	for i := range ways {
		images = append(images, n.push(fmt.Sprintf("more%d", i), layers[0], small(fmt.Sprintf("more%d", i))))
	}
	other := n.push("other", n.busybox(), image.EveryKind(), small("other"))
	n.attachAtStart("d", n.build("d", images...))
	extra := n.build("extra", other)
	n.start()
	n.pull(first)
	n.runDetached(first, "before")
	journal := filepath.Join(n.berthd.Root(), "stage.db")
	for i, way := range ways {
		_, err := n.berthd.CLI(t.Context(), "attach", extra, "--name", "extra")
		require.NoError(t, err, way.name)
		require.NoError(t, n.berthd.Stop())
		data, err := os.ReadFile(journal)
		require.NoError(t, err)
		damaged := way.damage(data)
		require.NoError(t, os.WriteFile(journal, damaged, 0o600))
		n.requireFailure("database stage.db", "damaged")

		n.startBerthd()
		aside, err := filepath.Glob(journal + ".damaged-*")
		require.NoError(t, err)
		require.Len(t, aside, 1, way.name)
		kept, err := os.ReadFile(aside[0])
		require.NoError(t, err)
		require.Equal(t, string(damaged), string(kept), "the damaged file is kept as it was")
		require.Contains(t, n.berthd.Log(), "the journal of disks was damaged and is set aside")
		require.Contains(t, n.berthd.Log(), aside[0])
		require.Empty(t, n.doctor(), way.name)
		require.NoError(t, os.Remove(aside[0]))

		out, err := n.containerd.Exec(t.Context(), "", "before", "cat", "/s/top")
		require.NoError(t, err)
		require.Equal(t, "content of top", out)
		require.Equal(t, "content of top", n.run(first, fmt.Sprintf("again%d", i), "cat", "/s/top"))
		fresh := images[i+1]
		n.pull(fresh)
		require.Zero(t, n.fetched(fresh), way.name)
		require.Equal(t, fmt.Sprintf("content of more%d", i), n.run(fresh, fmt.Sprintf("fresh%d", i), "cat", fmt.Sprintf("/s/more%d", i)))
	}
	_, err := n.berthd.CLI(t.Context(), "attach", extra, "--name", "extra")
	require.NoError(t, err)
	n.pull(other)
	require.Zero(t, n.fetched(other))
	require.Equal(t, "content of other", n.run(other, "other", "cat", "/s/other"))
}

// The metadata of snapshots, damaged, is refused with the recipe; without it, or without the whole root directory,
// doctor names the images that neither start nor are pulled again, and after its command they are pulled and start.
func TestLostState(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	n.attachAtStart("d", n.build("d", p))
	n.start()
	n.pull(p)
	metadata := filepath.Join(n.berthd.Root(), "metadata.db")

	require.NoError(t, n.berthd.Stop())
	data, err := os.ReadFile(metadata)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(metadata, make([]byte, len(data)), 0o600))
	require.Error(t, n.berthd.Start(t.Context()))
	require.Contains(t, n.berthd.Log(), metadata+" is damaged")
	require.Contains(t, n.berthd.Log(), "move it away")
	require.Contains(t, n.requireFailure("database metadata.db", "is damaged").Advice, "move it away")

	for i, lose := range []func(){
		func() { require.NoError(t, os.Rename(metadata, metadata+".away")) },
		func() {
			require.NoError(t, n.berthd.Stop())
			require.NoError(t, mounts.UnmountBelow(filepath.Join(n.dir, "b")))
			require.NoError(t, loop.DetachBelow(n.dir))
			require.NoError(t, os.RemoveAll(n.berthd.Root()))
		},
	} {
		lose()
		n.startBerthd()
		_, err := n.containerd.Run(t.Context(), p.ref, fmt.Sprintf("lost%d", i), containerd.RunOptions{Snapshotter: berth.PluginName}, "true")
		require.Error(t, err)
		advice := n.requireFailure("images", p.ref).Advice
		_, command, ok := strings.Cut(advice, ": ctr ")
		require.True(t, ok, advice)
		_, args, _ := strings.Cut(command, " images ")
		_, err = n.containerd.Ctr(t.Context(), "", slices.Concat([]string{"images"}, strings.Fields(args))...)
		require.NoError(t, err)
		require.Empty(t, n.doctor())
		n.registry.Reset()
		n.pull(p)
		require.Zero(t, n.fetched(p))
		require.Equal(t, "content of top", n.run(p, fmt.Sprintf("again%d", i), "cat", "/s/top"))
	}
}
