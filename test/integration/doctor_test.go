//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/containerd"
	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/tools"
)

// diagnosis is one result of "berth doctor --json".
type diagnosis struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	Detail string `json:"detail"`
	Advice string `json:"advice"`
}

// doctor runs "berth doctor" on the node and returns what fails. Its exit status has to agree.
func (n *node) doctor() []diagnosis {
	n.Helper()
	dir, err := tools.Dir(n.Context(), "containerd@"+containerdVersion())
	require.NoError(n, err)
	out, err := n.berthd.CLI(n.Context(), "doctor", "--json", "--root", n.berthd.Root(), "--socket", n.berthd.Socket(),
		"--containerd", filepath.Join(dir, "containerd"), "--containerd-address", n.containerd.Socket(),
		"--containerd-config", filepath.Join(n.containerd.Config().Dir, "containerd.toml"))
	var all []diagnosis
	require.NoError(n, json.Unmarshal([]byte(out), &all), "%s: %v", out, err)
	failed := slices.DeleteFunc(all, func(d diagnosis) bool { return d.Status != "FAIL" })
	require.Equal(n, len(failed) > 0, err != nil, "%v, %v", failed, err)
	if err != nil {
		require.ErrorContains(n, err, "exit status 1")
	}
	return failed
}

// requireFailure is the one failure of this name.
func (n *node) requireFailure(name, says string) diagnosis {
	n.Helper()
	failed := n.doctor()
	i := slices.IndexFunc(failed, func(d diagnosis) bool { return d.Name == name })
	require.GreaterOrEqual(n, i, 0, "%v", failed)
	require.Contains(n, failed[i].Detail, says)
	require.NotEmpty(n, failed[i].Advice)
	return failed[i]
}

// TestDoctor makes a healthy node ill in one way after the other. Each way is found, named, and gone again when the
// advice was followed.
func TestDoctor(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	n.pauseImage = n.push("pause", n.busybox()).ref
	n.attachAtStart("d", n.build("d", p))
	n.start()
	c := n.cri()
	_, err := c.Pull(t.Context(), p.ref)
	require.NoError(t, err)
	require.Empty(t, n.doctor(), "a healthy node")

	// containerd was not restarted after its configuration was changed.
	snippet := n.containerd.Config().Snippet
	change := func(text string) {
		require.NoError(t, n.containerd.Configure(func(c *containerd.Config) { c.Snippet = []byte(text) }))
	}
	change(strings.ReplaceAll(string(snippet), n.berthd.Socket(), n.berthd.Socket()+".new"))
	require.Contains(t, n.requireFailure("running containerd", n.berthd.Socket()+".new").Advice, "restart containerd")
	change(string(snippet))
	require.NoError(t, n.containerd.Stop())

	// containerd was started while berthd was down.
	require.NoError(t, n.berthd.Stop())
	require.NoError(t, n.containerd.Start(t.Context()))
	n.eventually("CRI to have looked at its images", func() error { _, err := c.Images(t.Context()); return err })
	n.requireFailure("berthd", "not running")
	n.requireFailure("images of Kubernetes", p.ref)
	n.startBerthd()
	n.eventually("CRI to see its images again", func() error { return n.seenByCRI(c, p.ref) })
	require.Empty(t, n.doctor())

	// A database is damaged.
	require.NoError(t, n.berthd.Stop())
	journal := filepath.Join(n.berthd.Root(), "stage.db")
	good, err := os.ReadFile(journal)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(journal, 4096))
	n.requireFailure("berthd", "not running")
	n.requireFailure("database stage.db", "damaged")
	require.NoError(t, os.WriteFile(journal, good, 0o600))

	// The state is gone, and containerd still has the images.
	require.NoError(t, os.Remove(filepath.Join(n.berthd.Root(), "metadata.db")))
	n.startBerthd()
	advice := n.requireFailure("images", p.ref).Advice
	require.Contains(t, advice, "ctr -n k8s.io images rm")
	_, names, _ := strings.Cut(advice, "--sync ")
	for _, name := range strings.Fields(names) {
		_, err := n.containerd.Ctr(t.Context(), "k8s.io", "images", "rm", "--sync", name)
		require.NoError(t, err)
	}
	require.Empty(t, n.doctor())
	_, err = c.Pull(t.Context(), p.ref)
	require.NoError(t, err, "it can be pulled again")
	require.Empty(t, n.doctor())
}

// TestUsersOfADisk: who refuses to let a disk go is named, and who suffers when it is gone.
func TestUsersOfADisk(t *testing.T) {
	n := newNode(t)
	p := n.push("all", n.fiveLayers()...)
	n.pauseImage = n.push("pause", n.busybox()).ref
	disk := n.build("d", p)
	n.attachAtStart("d", disk)
	n.start()
	c := n.cri()
	ref, err := c.Pull(t.Context(), p.ref)
	require.NoError(t, err)
	n.pod(c, "web", ref, 0)
	n.pull(p)
	n.runDetached(p, "loose")
	space := filepath.Base(n.dir)
	want := []string{
		"used by image " + p.ref + " in namespace k8s.io",
		"used by image " + p.ref + " in namespace " + space,
		"used by container loose in namespace " + space,
		"(pod test/web) in namespace k8s.io",
	}
	for _, more := range [][]string{nil, {"--drain"}} {
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "berth"), append([]string{
			"detach", "d", "--socket", n.berthd.Socket(), "--containerd-address", n.containerd.Socket(),
		}, more...)...)
		out, err := cmd.CombinedOutput()
		require.Equal(t, more == nil, err != nil, string(out))
		for _, line := range want {
			require.Contains(t, string(out), line)
		}
		require.NotContains(t, string(out), "image sha256:")
	}

	// A disk that fails under them: the file is cut off, and the device with it.
	require.NoError(t, n.berthd.Stop())
	require.NoError(t, loop.DetachBelow(n.dir))
	require.NoError(t, os.Truncate(disk, 4096))
	n.startBerthd()
	failed := n.doctor()
	i := slices.IndexFunc(failed, func(d diagnosis) bool { return d.Name == "disk d" })
	require.GreaterOrEqual(t, i, 0, "%v", failed)
	require.Contains(t, failed[i].Detail, "image "+p.ref+" in namespace k8s.io")
}
