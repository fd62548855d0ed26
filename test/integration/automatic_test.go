//go:build integration

package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/containerd"
)

// withAutomatic switches automatic creation on, for images of any size and right after a pull's last question.
func (n *node) withAutomatic() {
	if legacy() || strings.HasPrefix(containerdVersion(), "2.0.") {
		n.Skip("ctr of this containerd does not tell what it pulls")
	}
	n.configure = func(c *berth.Config) {
		c.Automatic = "enabled = true\nmin_image_mib = 0\ndelay = \"100ms\"\n"
		if n.registry.PlainHTTP() {
			c.Automatic += fmt.Sprintf("[[automatic.registry]]\nserver = %q\nplain_http = true\n", n.registry.Host())
		}
	}
}

// automaticName of the image snapshot that is made of just what was pushed.
func automaticName(t *testing.T, p pushed) string {
	t.Helper()
	d, err := p.img.Digest()
	require.NoError(t, err)
	name, _, _ := strings.Cut(p.ref, ":1")
	return imagesnapshot.AutomaticName("automatic", []string{name + "@" + d.String()}, nil)
}

// snapshots by name.
func (n *node) snapshots() []string {
	n.Helper()
	var list struct {
		ImageSnapshots []struct {
			Name string `json:"name"`
		} `json:"image_snapshots"`
	}
	require.NoError(n, json.Unmarshal([]byte(n.cli("image-snapshot", "list", "--json")), &list))
	var names []string
	for _, s := range list.ImageSnapshots {
		names = append(names, s.Name)
	}
	return names
}

// forgetImages has containerd drop images with their snapshots, so that the next pull asks for every layer again.
func (n *node) forgetImages(images ...pushed) {
	n.Helper()
	for _, p := range images {
		require.NoError(n, n.containerd.RemoveImage(n.Context(), "", p.ref))
	}
	n.registry.Reset()
}

// E-5, E-20: what a pull wants and nothing has is pulled, and an image snapshot of just that is made beside it. The
// next pull is served from its disk.
func TestAutomaticImageSnapshot(t *testing.T) {
	n := newNode(t)
	p := n.push("app", n.fiveLayers()...)
	n.withAutomatic()
	n.start()
	n.pull(p)
	require.Equal(t, len(p.blobs), n.fetched(p), "the registry serves the first pull")
	require.Equal(t, "content of top", n.run(p, "first", "cat", "/s/top"))

	name := automaticName(t, p)
	v := n.awaitSnapshot(name, "AVAILABLE")
	require.Equal(t, "IMAGE_SNAPSHOT_ORIGIN_AUTOMATIC", v.Origin)
	require.Equal(t, map[string]string{"berth.dev/image": p.ref}, v.Annotations)
	d, err := p.img.Digest()
	require.NoError(t, err)
	require.Equal(t, d.String(), v.Status.Images[0].Digest, "just what was pulled")
	require.Contains(t, n.berthd.Log(), "automatic image snapshot is made")

	n.forgetImages(p)
	n.pull(p)
	require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	require.Equal(t, []string{name}, n.attached())
	require.Equal(t, "content of top", n.run(p, "second", "cat", "/s/top"))
	n.requireSameTree(p)
	require.Equal(t, []string{name}, n.snapshots(), "nothing is made of what matches")
}

// E-5: however many pulls ask at once, one is made.
func TestPullsAtOnceMakeOneImageSnapshot(t *testing.T) {
	n := newNode(t)
	p := n.push("app", small("base"), small("app"))
	n.withAutomatic()
	n.start()
	var pulls errgroup.Group
	for i := range 20 {
		pulls.Go(func() error { return n.tryPull(p, fmt.Sprintf("%s-%d", n.containerd.Config().Namespace, i%5)) })
	}
	require.NoError(t, pulls.Wait())
	v := n.awaitSnapshot(automaticName(t, p), "AVAILABLE")
	require.Equal(t, 1, v.Status.Builds)
	require.Equal(t, []string{automaticName(t, p)}, n.snapshots())
	require.Equal(t, 1, strings.Count(n.berthd.Log(), "automatic image snapshot is made"))
}

// What the configuration does not allow, or is too small to be worth it, is pulled, and nothing is made of it.
func TestNoAutomaticImageSnapshot(t *testing.T) {
	n := newNode(t)
	denied, tiny := n.push("denied", small("denied")), n.push("tiny", small("tiny"))
	n.withAutomatic()
	withAll := n.configure
	n.configure = func(c *berth.Config) {
		withAll(c)
		c.Automatic = fmt.Sprintf("deny = [%q]\n", n.registry.Host()+"/denied") + strings.Replace(c.Automatic, "min_image_mib = 0", "min_image_mib = 1", 1)
	}
	n.start()
	for _, p := range []pushed{denied, tiny} {
		n.pull(p)
		require.Equal(t, len(p.blobs), n.fetched(p))
	}
	n.eventually("both to be refused", func() error {
		log := n.berthd.Log()
		if !strings.Contains(log, "the configuration does not allow it") || !strings.Contains(log, "the image is too small") {
			return errors.New("they are not")
		}
		return nil
	})
	require.Empty(t, n.snapshots())
}

// An image that was pulled with credentials which builds do not have is not made, and nothing tells of the credentials.
// With a secret that the configuration names it is.
func TestAutomaticImageSnapshotOfAPrivateImage(t *testing.T) {
	n := newNode(t)
	p := n.push("private", small("private"))
	n.withAutomatic()
	n.start()
	const user, password = "somebody", "open-sesame"
	n.registry.RequireLogin(user, password)
	pull := func() {
		t.Helper()
		require.NoError(t, n.containerd.Pull(t.Context(), p.ref, containerd.PullOptions{
			Snapshotter: berth.PluginName, PlainHTTP: n.registry.PlainHTTP(), User: user + ":" + password,
		}))
	}
	pull()
	require.Equal(t, len(p.blobs), n.fetched(p))
	n.eventually("builds not to see it", func() error {
		if !strings.Contains(n.berthd.Log(), "builds may not see the image") {
			return errors.New("nothing was said of it")
		}
		return nil
	})
	require.Empty(t, n.snapshots())

	secrets := filepath.Join(n.dir, "secrets")
	require.NoError(t, os.MkdirAll(filepath.Join(secrets, "owner-automatic"), 0o700))
	config := fmt.Sprintf(`{"auths": {%q: {"username": %q, "password": %q}}}`, n.registry.Host(), user, password)
	require.NoError(t, os.WriteFile(filepath.Join(secrets, "owner-automatic", "pull.json"), []byte(config), 0o600))
	require.NoError(t, n.berthd.Stop())
	n.berthd.Configure(func(c *berth.Config) {
		c.ImageSnapshots = fmt.Sprintf("secrets_directory = %q", secrets)
		c.Automatic += "secret = \"pull\"\n"
	})
	n.startBerthd()
	n.forgetImages(p)
	pull()
	require.Equal(t, len(p.blobs), n.fetched(p))
	v := n.awaitSnapshot(automaticName(t, p), "AVAILABLE")
	require.Equal(t, "IMAGE_SNAPSHOT_ORIGIN_AUTOMATIC", v.Origin)
	n.forgetImages(p)
	pull()
	require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	require.NotContains(t, n.berthd.Log()+n.cli("image-snapshot", "get", v.Name, "--json"), password)
}

// An automatic one that is being made survives a crash. The API makes it too: that is how front ends that know pods ask
// for it.
func TestAutomaticImageSnapshotSurvivesKill(t *testing.T) {
	n := newNode(t)
	p, other := n.push("app", small("app")), n.push("other", small("other"))
	n.start()
	n.registry.Hold()
	args := append([]string{"match", p.ref, other.ref, "--names-only", "--create-if-missing", "--owner", "team", "--annotation", "k8s.aliyun.com/eci-auto-imc=true"}, n.registryFlags(p.ref)...)
	require.Contains(t, n.cli(args...), "an image snapshot of these images would be made")
	names := n.snapshots()
	require.Equal(t, []string{imagesnapshot.AutomaticName("team", []string{other.ref, p.ref}, nil)}, names)
	n.awaitSnapshot(names[0], "CREATING")
	require.NoError(t, n.berthd.Kill())
	n.registry.Resume()
	require.NoError(t, n.berthd.Start(t.Context()))
	n.awaitSnapshot(names[0], "AVAILABLE")
	n.cli(args...)
	require.Equal(t, names, n.snapshots())
	for _, p := range []pushed{p, other} {
		n.registry.Reset()
		n.pull(p)
		require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	}
}
