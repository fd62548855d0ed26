package stage

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	"berth.dev/berth/test/harness/slowdisk"
	"berth.dev/berth/test/harness/slowdisk/lazy"
)

// large makes a disk that is large enough for a sample.
func (n *node) large(name string) (path string, id layerdisk.Identity) {
	path = filepath.Join(n.dir, name+".img")
	data := make([]byte, 4*paceParts*pacePartBytes)
	_, _ = rand.Read(data)
	_, id = layerdisktest.Disk(n.t, path, "erofs", func(layer, dir string) {
		require.NoError(n.t, os.WriteFile(filepath.Join(dir, "name"), []byte(layer), 0o644))
		require.NoError(n.t, os.WriteFile(filepath.Join(dir, "data"), data, 0o644))
	}, layerdisktest.Image{Reference: "example.org/" + name + ":1", Layers: []string{"a"}})
	return path, id
}

func (n *node) slowly(file string, rate int64) *slowdisk.Disk {
	speed := lazy.Typical()
	speed.RestoreRate = rate
	slow, err := slowdisk.Start(n.t.Context(), slowdisk.Config{Dir: n.t.TempDir(), File: file, Speed: speed})
	require.NoError(n.t, err)
	n.t.Cleanup(func() {
		n.clearKernel()
		require.NoError(n.t, slow.Close())
	})
	return slow
}

// A disk from which containers would start later than after a pull is refused, and nothing is left of it; one that is
// fast enough is sampled, and not again once it has served. The disk brings 4 MB/s, so a sample of 8 MiB takes 2 s and
// not an eighth of one.
func TestTooSlowDiskIsRefused(t *testing.T) {
	n := newNode(t)
	n.reconfigure(func(c *Config) { c.MinRate = 64 << 20 })
	path, _ := n.large("one")
	slow := n.slowly(path, 4_000_000)
	spec := Spec{Name: "one", Driver: "loop", VolumeID: slow.Path()}
	_, err := n.Stage(t.Context(), spec)
	require.True(t, errdefs.IsUnavailable(err), err)
	require.ErrorContains(t, err, "stage.min_rate")
	require.Empty(t, n.left())
	require.Empty(t, n.Disks())

	n.reconfigure(func(c *Config) { c.MinRate = 0 })
	before, err := slow.Stats(t.Context())
	require.NoError(t, err)
	_, err = n.Stage(t.Context(), spec)
	require.NoError(t, err)
	after, err := slow.Stats(t.Context())
	require.NoError(t, err)
	require.Less(t, after.Bytes-before.Bytes, int64(paceParts*pacePartBytes), "no sample is taken")
	held := n.acquire("h", chain("a"), "a")

	// It is in use, so after a reboot it has to come back, however slow it is.
	require.NoError(t, n.Close())
	n.clearKernel()
	n.config.MinRate = 1 << 40
	n.open()
	n.start(Hold{Holder: "h", DiskUUID: held.DiskUUID, LayerNumber: held.LayerNumber})
	require.Equal(t, StateInUse, n.status("one").State)
}

func (n *node) reconfigure(change func(*Config)) {
	n.t.Helper()
	require.NoError(n.t, n.Close())
	change(&n.config)
	n.open()
	n.start()
}

func TestSampleIsTaken(t *testing.T) {
	n := newNode(t)
	n.reconfigure(func(c *Config) { c.MinRate = 1 })
	path, _ := n.large("one")
	slow := n.slowly(path, 1_000_000_000)
	_, err := n.Stage(t.Context(), Spec{Name: "one", Driver: "loop", VolumeID: slow.Path()})
	require.NoError(t, err)
	stats, err := slow.Stats(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, stats.Bytes, int64(paceParts*pacePartBytes))
	require.GreaterOrEqual(t, stats.Restored, int64(paceParts))

	small, _ := n.disk("small", "erofs", "b")
	n.reconfigure(func(c *Config) { c.MinRate = 1 << 40 })
	n.stage("small", small) // too small to be worth a sample
}
