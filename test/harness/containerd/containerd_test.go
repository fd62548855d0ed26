//go:build integration

package containerd_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/cri"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/leak"
	"berth.dev/berth/test/harness/overlayproxy"
	"berth.dev/berth/test/harness/registry"
	"berth.dev/berth/test/harness/tools"
)

// versions to test: $BERTH_CONTAINERD or the default.
func version() string {
	if v := os.Getenv("BERTH_CONTAINERD"); v != "" {
		return v
	}
	return tools.DefaultContainerd
}

// TestHarness brings everything up with containerd's own snapshotter in berth's place: if this fails, no result of the
// other tests means anything.
func TestHarness(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	ctx := t.Context()
	dir, err := os.MkdirTemp("", "bt")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o711)) // for user namespaces
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	t.Cleanup(func() {
		found, err := leak.Below(dir)
		require.NoError(t, err)
		require.Empty(t, found, "left behind")
	})

	proxyRoot, proxySocket := filepath.Join(dir, "p"), filepath.Join(dir, "p.sock")
	proxy, err := overlayproxy.Start(ctx, proxyRoot, proxySocket)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, proxy.Close()) })

	cfg := containerd.Config{
		Version: version(), Dir: filepath.Join(dir, "c"), Namespace: filepath.Base(dir), CRISnapshotter: "stock",
		Proxies: []containerd.Proxy{{Name: "stock", Socket: proxySocket, Root: proxyRoot}},
	}
	bases := map[string]uint32{"host": 0}
	if !cfg.Legacy() {
		// The mounts of 1.7 do not know id-mapping, though its client has the capability.
		cfg.Proxies[0].Capabilities = []string{"remap-ids"}
		bases["userns"] = 1 << 20
	}
	reg, err := registry.Start(ctx, registry.Config{Dir: filepath.Join(dir, "r"), TLS: cfg.Legacy()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, reg.Close()) })

	busybox, err := image.Busybox()
	require.NoError(t, err)
	top := image.Layer{Entries: []image.Entry{image.File("etc/top", "from the top"), image.Whiteout("etc", "group")}, Compression: image.Zstd}
	img, err := image.New(image.Spec{Layers: []image.Layer{busybox, top}, Command: image.Pause()})
	require.NoError(t, err)
	ref, err := reg.Push(ctx, "busybox:1", img)
	require.NoError(t, err)
	blobs, err := image.BlobDigests(img)
	require.NoError(t, err)
	reg.Reset()

	cfg.SandboxImage, cfg.CAFile = ref, reg.CAFile()
	d, err := containerd.New(ctx, cfg)
	require.NoError(t, err)
	require.NoError(t, d.UseRegistry(reg.Host(), reg.PlainHTTP()))
	require.NoError(t, d.Start(ctx))
	t.Cleanup(func() { require.NoError(t, d.Close()) })

	for _, snapshotter := range []string{"overlayfs", "stock"} {
		opts := containerd.PullOptions{Snapshotter: snapshotter, PlainHTTP: reg.PlainHTTP()}
		require.NoError(t, d.Pull(ctx, ref, opts))
		out, err := d.Run(ctx, ref, "c1", containerd.RunOptions{Snapshotter: snapshotter}, "sh", "-c", "cat /etc/top; ls /etc")
		require.NoError(t, err)
		require.Equal(t, "from the toppasswd\ntop\n", out)
		out, err = d.Run(ctx, ref, "c2", containerd.RunOptions{Snapshotter: snapshotter, Detach: true}, "sleep", "600")
		require.NoError(t, err, out)
		out, err = d.Exec(ctx, "", "c2", "cat", "/etc/top")
		require.NoError(t, err)
		require.Equal(t, "from the top", out)
		require.NoError(t, d.RemoveContainer(ctx, "", "c2"))
	}
	for _, b := range blobs {
		require.Equal(t, 1, reg.Blobs()[b].Requests)
	}

	c, err := cri.Dial(d.Socket())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	pulled, err := c.Pull(ctx, ref)
	require.NoError(t, err)
	for name, base := range bases {
		pod, err := c.Run(ctx, cri.PodSpec{
			Name: name, Image: pulled, Command: image.Pause(), CgroupParent: "/" + filepath.Base(dir),
			LogDir: dir, UserNamespaceBase: base,
		})
		require.NoError(t, err)
		out, err := pod.Exec(ctx, "cat", "/etc/top")
		require.NoError(t, err)
		require.Equal(t, "from the top", out)
		require.NoError(t, pod.Remove(ctx))
	}
}
