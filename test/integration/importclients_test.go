//go:build integration

package integration

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/registry"
)

// A CRI with another snapshotter would take a registered image for one that it can start, so it is not told of any.
func TestImportNotForOtherSnapshotter(t *testing.T) {
	n := newNode(t)
	n.withImport(nil)
	p := n.push("all", n.fiveLayers()...)
	disk := n.build("d", p)
	n.start()
	require.NoError(t, n.containerd.Stop())
	require.NoError(t, n.containerd.Configure(func(c *containerd.Config) {
		c.Snippet = []byte(strings.ReplaceAll(string(c.Snippet), "snapshotter = \"berth\"\n", "snapshotter = \"overlayfs\"\n"))
	}))
	require.NoError(t, n.containerd.Start(t.Context()))
	n.cli("attach", disk)
	n.eventually("the status to say what is wrong", func() error {
		d, err := n.status().Disk("d")
		if err == nil && !strings.Contains(d.ImportError, "make berth its snapshotter") {
			err = fmt.Errorf("status of images is %q", d.ImportError)
		}
		return err
	})
	require.Empty(t, n.inContainerd(criNamespace))
	require.Equal(t, "content of top", n.run(p, "ctr", "cat", "/s/top"))
	require.Equal(t, "d: detached\n", n.cli("detach", "d"))
	n.requireNothing()
}

// pushIndex of an image for this machine and one for another architecture, which no disk has.
func (n *node) pushIndex(name string, layers ...image.Layer) pushed {
	n.Helper()
	p := n.push(name, layers...)
	config, err := p.img.ConfigFile()
	require.NoError(n, err)
	config = config.DeepCopy()
	config.Architecture = "riscv64"
	other, err := mutate.ConfigFile(p.img, config)
	require.NoError(n, err)
	p.ref, err = n.registry.PushIndex(n.Context(), name+":many", mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "riscv64"}}},
		mutate.IndexAddendum{Add: p.img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}},
	))
	require.NoError(n, err)
	n.registry.Reset()
	return p
}

// An image of several platforms is registered with its index, as a pull leaves it, though the others are nowhere: CRI,
// ctr and nerdctl cope.
func TestImportIndex(t *testing.T) {
	n := newNode(t)
	n.withImport(nil)
	p, pause := n.pushIndex("all", n.fiveLayers()...), n.push("pause", n.busybox())
	n.pauseImage = pause.ref
	disk := n.build("d", p, pause)
	n.registry.SetFault(registry.Off)
	n.start()
	n.cli("attach", disk)
	n.imports("d", 4, "registered")
	c := n.cri()
	n.knownTo(c, p, true)
	n.knownTo(c, pause, true)
	pod := n.pod(c, "pod", p.ref, 0)
	out, err := pod.Exec(t.Context(), "cat", "/s/top")
	require.NoError(t, err)
	require.Equal(t, "content of top", out)
	require.NoError(t, pod.Remove(t.Context()))
	list, err := n.containerd.Ctr(t.Context(), "", "images", "list")
	require.NoError(t, err)
	require.Contains(t, list, p.ref)
	require.Equal(t, "content of top", n.run(p, "ctr", "cat", "/s/top"))
	list, err = n.containerd.Nerdctl(t.Context(), berth.PluginName, "images")
	require.NoError(t, err)
	require.Contains(t, list, "many")
	out, err = n.containerd.Nerdctl(t.Context(), berth.PluginName, "run", "--rm", "--pull", "missing", "--net", "none",
		"--security-opt", "seccomp=unconfined", p.ref, "cat", "/s/top")
	require.NoError(t, err)
	require.Equal(t, "content of top", out)
	require.Equal(t, "d: detached\n", n.cli("detach", "d"))
	n.requireNothing()
}
