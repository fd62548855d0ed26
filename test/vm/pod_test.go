//go:build vm

package vm

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/cri"
	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/vm"
)

// kubelet is a client of the guest's CRI, which gets what it needs besides: a pause image, a network that does nothing,
// and leave to pull without TLS.
func (n *node) kubelet(pause pushed) *cri.Client {
	n.Helper()
	host, _, _ := strings.Cut(pause.ref, "/")
	files := map[string]string{
		"/etc/containerd/conf.d/test.toml": fmt.Sprintf("version = 4\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = %q\n"+
			"[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = \"/etc/containerd/certs.d\"\n", pause.ref),
		"/etc/containerd/certs.d/" + host + "/hosts.toml": fmt.Sprintf("[host.\"http://%s\"]\n", host),
		"/etc/cni/net.d/10-null.conflist":                 containerd.NullNetwork,
		"/opt/cni/bin/null":                               containerd.NullPlugin,
		"/opt/cni/bin/loopback":                           containerd.NullPlugin,
	}
	for path, text := range files {
		require.NoError(n, n.guest.WriteFile(n.Context(), path, text))
	}
	n.shell("chmod 0755 /opt/cni/bin/*; mkdir -p /var/log/pods")
	conn, err := grpc.NewClient("passthrough:///guest", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return n.guest.Dial(ctx, "/run/containerd/containerd.sock")
		}))
	require.NoError(n, err)
	c := cri.New(conn)
	n.Cleanup(func() { require.NoError(n, c.Close()) })
	return c
}

// Pods of a kubelet on Debian's kernel with cgroups of version 2, on a disk that was plugged in: one in the host's user
// namespace, and one in its own, whose files are mapped and not copied.
func TestPods(t *testing.T) {
	n := newNode(t)
	busybox, err := image.Busybox()
	require.NoError(t, err)
	p := n.push("owners", busybox, image.EveryKind(), image.Layer{Entries: []image.Entry{
		image.Dir("o", image.Owner(1000, 1001)), image.File("o/own", "o", image.Owner(1000, 65535)),
	}})
	pause := n.push("pause", busybox)
	d := n.build("d", p)
	c := n.kubelet(pause)
	n.start(discover)
	n.plug(d, vm.DiskSpec{Kind: vm.NVMe, Serial: "vol0123456789abcdef0"})
	n.serves(d.found())
	ref, err := c.Pull(t.Context(), p.ref)
	require.NoError(t, err)
	require.Zero(t, n.fetched(p))
	for _, base := range []uint32{0, 1 << 20} {
		pod, err := c.Run(t.Context(), cri.PodSpec{
			Name: fmt.Sprintf("pod%d", base), Image: ref, Command: image.Pause(), CgroupParent: "/pods", LogDir: "/var/log/pods", UserNamespaceBase: base,
		})
		require.NoError(t, err)
		out, err := pod.Exec(t.Context(), "stat", "-c", "%u:%g", "/bin/busybox", "/o", "/o/own")
		require.NoError(t, err)
		require.Equal(t, "0:0\n1000:1001\n1000:65535\n", out)
		out, err = pod.Exec(t.Context(), "sh", "-c", "echo new > /o/new && stat -c %u:%g /o/new && cat /proc/self/uid_map")
		require.NoError(t, err)
		length := "65536"
		if base == 0 {
			length = "4294967295"
		}
		require.Equal(t, []string{"0:0", "0", fmt.Sprint(base), length}, strings.Fields(out))
		var local int
		_, err = fmt.Sscan(n.shell("du -sk /var/lib/berth/snapshots"), &local)
		require.NoError(t, err)
		require.Less(t, local, 1000, "KiB on the node's own disk; a copy of the image has 10 MB")
		require.NoError(t, pod.Remove(t.Context()))
	}
	require.NoError(t, c.RemoveImage(t.Context(), p.ref))
}
