package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/blockdev/device"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

// makeDisk makes a layer disk with the image app:1.0 of the layers base and app.
func makeDisk(t *testing.T, file string) layerdisk.Identity {
	t.Helper()
	_, id := layerdisktest.Disk(t, file, layerdisk.FileSystemEROFS, func(layer, dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, layer), []byte("content of "+layer), 0o644))
	}, layerdisktest.Image{Reference: "docker.io/library/app:1.0", Layers: []string{"base", "app"}, WithIndex: true})
	return id
}

// leavesNothing fails the test if a loop device or a mount of the process is left at its end, and takes it away.
func (p *process) leavesNothing(files ...string) {
	p.t.Cleanup(func() {
		mounts, err := fsmount.Below(p.root())
		require.NoError(p.t, err)
		for _, m := range mounts {
			require.NoError(p.t, mount.UnmountAll(m.Target, 0))
		}
		var left []string
		for _, f := range files {
			loops, err := device.FindLoops(f)
			require.NoError(p.t, err)
			for _, l := range loops {
				left = append(left, l.Path)
				require.NoError(p.t, device.DetachLoop(context.Background(), l))
			}
		}
		require.Empty(p.t, mounts)
		require.Empty(p.t, left)
	})
}

func (p *process) attach(file, name string, keep bool) *controlv1.Disk {
	p.t.Helper()
	resp, err := p.control().AttachDisk(p.t.Context(), &controlv1.AttachDiskRequest{VolumeId: file, Name: name, Keep: keep})
	require.NoError(p.t, err, p.log)
	return resp.GetDisk()
}

func (p *process) detach(name string) {
	p.t.Helper()
	resp, err := p.control().DetachDisk(p.t.Context(), &controlv1.DetachDiskRequest{Name: name})
	require.NoError(p.t, err)
	require.True(p.t, resp.GetDetached())
}

func (p *process) snapshotter() snapshots.Snapshotter {
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(p.dial()), "berth")
}

// pull asks for the layers as containerd's unpacker does and says which of them need not be fetched.
func (p *process) pull(image string, layers ...string) []bool {
	p.t.Helper()
	sn, parent := p.snapshotter(), ""
	var hits []bool
	for i := range layers {
		chain := layerdisktest.ChainID(layers[:i+1]...).String()
		key := fmt.Sprintf("extract-%s-%d %s", image, i, chain)
		_, err := sn.Prepare(p.t.Context(), key, parent, snapshots.WithLabels(map[string]string{
			"containerd.io/snapshot.ref": chain, "containerd.io/snapshot/cri.image-ref": image}))
		if err == nil {
			require.NoError(p.t, sn.Commit(p.t.Context(), chain, key, snapshots.WithLabels(map[string]string{"containerd.io/snapshot.ref": chain})))
		} else {
			require.ErrorIs(p.t, err, errdefs.ErrAlreadyExists, p.log)
		}
		hits = append(hits, err != nil)
		parent = p.committed(chain)
	}
	return hits
}

// committed is the name of the snapshot of a chain, found as the metadata store does.
func (p *process) committed(chain string) string {
	p.t.Helper()
	var name string
	require.NoError(p.t, p.snapshotter().Walk(p.t.Context(), func(_ context.Context, info snapshots.Info) error {
		if info.Kind == snapshots.KindCommitted {
			name = info.Name
		}
		return nil
	}, fmt.Sprintf(`labels."containerd.io/snapshot.ref"==%q`, chain)))
	require.NotEmpty(p.t, name)
	return name
}

func (p *process) remove(names ...string) {
	p.t.Helper()
	for _, name := range names {
		require.NoError(p.t, p.snapshotter().Remove(p.t.Context(), name))
	}
}

var metricsAddress = regexp.MustCompile(`msg="metrics are served" address="([^"]+)"`)

// metrics are the samples of a scrape, by name with labels.
func (p *process) metrics() map[string]string {
	p.t.Helper()
	var m []string
	p.eventually("metrics to be served", func() bool { m = metricsAddress.FindStringSubmatch(p.log.String()); return m != nil })
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, "http://"+m[1]+"/metrics", nil)
	require.NoError(p.t, err)
	resp, err := http.DefaultClient.Do(req)
	require.NoError(p.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(p.t, err)
	require.Equal(p.t, http.StatusOK, resp.StatusCode, string(body))
	samples := map[string]string{}
	for line := range strings.Lines(string(body)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok {
			samples[name+"}"] = value
		} else if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			samples[name] = value
		}
	}
	return samples
}

func TestServeFromDisk(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "[metrics]\naddress = \"127.0.0.1:0\"\n[log]\nlevel = \"debug\"\n")
	file := p.path("disk.img")
	id := makeDisk(t, file)
	p.leavesNothing(file)
	p.start()
	d := p.attach(file, "", false)
	require.Equal(t, "disk", d.GetName())
	require.Equal(t, id.UUID, d.GetUuid())
	require.Equal(t, id.IndexDigest.String(), d.GetIndexDigest())
	require.True(t, d.GetServing())
	require.EqualValues(t, 2, d.GetLayers())

	img, err := p.control().FindImage(t.Context(), &controlv1.FindImageRequest{Reference: "docker.io/library/app:1.0", Platform: "linux/amd64"})
	require.NoError(t, err)
	require.Equal(t, "disk", img.GetDisk())
	require.NotEmpty(t, img.GetConfig())
	_, err = p.control().FindImage(t.Context(), &controlv1.FindImageRequest{Reference: "docker.io/library/app:1.0", Platform: "linux/s390x"})
	require.Equal(t, codes.NotFound, status.Code(err))

	layers := []string{"base", "app", "local"}
	require.Equal(t, []bool{true, true, false}, p.pull("app:1.0", layers...))

	explained, err := p.control().ExplainLayers(t.Context(), &controlv1.ExplainLayersRequest{Layers: []*controlv1.LayerName{
		{ChainId: layerdisktest.ChainID("base").String()}, {ChainId: layerdisktest.ChainID(layers...).String()},
	}})
	require.NoError(t, err)
	hit, miss := explained.GetLayers()[0], explained.GetLayers()[1]
	require.True(t, hit.GetHit())
	require.Equal(t, "disk", hit.GetDisk())
	require.Equal(t, controlv1.LayerMatch_LAYER_MATCH_CHAIN_ID, hit.GetMatchedBy())
	require.Equal(t, "app:1.0", hit.GetLast().GetImageRef())
	require.False(t, miss.GetHit())
	require.NotEmpty(t, miss.GetReason())
	require.Equal(t, controlv1.EventKind_EVENT_KIND_MISS, miss.GetLast().GetKind())

	st, err := p.control().Status(t.Context(), &controlv1.StatusRequest{})
	require.NoError(t, err)
	require.Len(t, st.GetHits(), 1)
	require.Equal(t, controlv1.LayerMatch_LAYER_MATCH_CHAIN_ID, st.GetHits()[0].GetMatchedBy())
	require.EqualValues(t, 2, st.GetHits()[0].GetCount())
	require.Len(t, st.GetMisses(), 1)
	require.Equal(t, controlv1.MissReason_MISS_REASON_NOT_ON_DISK, st.GetMisses()[0].GetReason())
	require.EqualValues(t, 1, st.GetMisses()[0].GetCount())
	require.EqualValues(t, 2, st.GetAdoptedSnapshots())
	require.Equal(t, st.GetBytesNotPulled(), uint64(1000+len("base")+1000+len("app")))

	m := p.metrics()
	for name, want := range map[string]string{
		`berth_layer_hits_total{matched_by="chain-id"}`:          "2",
		`berth_layer_misses_total{reason="not-on-disk"}`:         "1",
		`berth_layer_bytes_not_pulled_total`:                     "2007",
		`berth_disks{state="in-use"}`:                            "1",
		`berth_layers`:                                           "2",
		`berth_layers_in_use`:                                    "2",
		`berth_adopted_snapshots`:                                "2",
		`berth_stage_step_duration_seconds_count{step="attach"}`: "1",
		`berth_stage_step_duration_seconds_count{step="mount"}`:  "1",
		`berth_grpc_requests_total{code="AlreadyExists",method="/containerd.services.snapshots.v1.Snapshots/Prepare"}`: "2",
	} {
		require.Equal(t, want, m[name], name)
	}
	require.Contains(t, m, `go_goroutines`)
	require.Contains(t, m, `process_resident_memory_bytes`)

	// In use it stays; released it can go.
	_, err = p.control().DetachDisk(t.Context(), &controlv1.DetachDiskRequest{Name: "disk"})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	require.ErrorContains(t, err, "2 snapshots")
	drained, err := p.control().DetachDisk(t.Context(), &controlv1.DetachDiskRequest{Name: "disk", Drain: true})
	require.NoError(t, err)
	require.False(t, drained.GetDetached())
	require.EqualValues(t, 2, drained.GetHolders())
	p.remove(p.committed(layerdisktest.ChainID(layers...).String()), p.committed(layerdisktest.ChainID("base", "app").String()),
		p.committed(layerdisktest.ChainID("base").String()))
	p.eventually("the drained disk to go", func() bool { return p.disk("disk") == nil })
	p.stop()
}

func TestRestartKeepsServing(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	file := p.path("disk.img")
	makeDisk(t, file)
	p.leavesNothing(file)
	p.start()
	p.attach(file, "disk", true)
	require.Equal(t, []bool{true, true}, p.pull("app:1.0", "base", "app"))
	before := p.disk("disk")

	for name, end := range map[string]func(){"crash": p.kill, "stop": p.stop} {
		end()
		// What is mounted stays mounted without us.
		content, err := os.ReadFile(filepath.Join(before.GetMountPoint(), layerdisk.LayerDir(0), "base"))
		require.NoError(t, err, name)
		require.Equal(t, "content of base", string(content))

		p.start()
		after := p.disk("disk")
		require.Equal(t, before.GetMountPoint(), after.GetMountPoint(), name)
		require.Equal(t, before.GetDevice(), after.GetDevice(), name)
		require.EqualValues(t, 2, after.GetHolders(), name)
		mounts, err := p.snapshotter().View(t.Context(), "view-"+name, p.committed(layerdisktest.ChainID("base", "app").String()))
		require.NoError(t, err)
		require.NotEmpty(t, mounts)
		p.remove("view-" + name)
	}

	// As after a reboot: nothing is mounted or attached, and everything comes back.
	p.stop()
	require.NoError(t, mount.UnmountAll(before.GetMountPoint(), 0))
	loops, err := device.FindLoops(file)
	require.NoError(t, err)
	for _, l := range loops {
		require.NoError(t, device.DetachLoop(t.Context(), l))
	}
	p.start()
	after := p.disk("disk")
	require.True(t, after.GetServing())
	require.EqualValues(t, 2, after.GetHolders())
	p.remove(p.committed(layerdisktest.ChainID("base", "app").String()), p.committed(layerdisktest.ChainID("base").String()))
	p.detach("disk")
	p.stop()
}

func TestConfiguredDisks(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	good, late, broken := p.path("good.img"), p.path("late.img"), p.path("broken.img")
	id := makeDisk(t, good)
	require.NoError(t, os.WriteFile(broken, make([]byte, 1<<20), 0o600))
	p.leavesNothing(good, late, broken)
	p.configure(fmt.Sprintf(`
[metrics]
address = "127.0.0.1:0"
[[disk]]
name = "good"
path = %q
expect = %q
[[disk]]
name = "late"
path = %q
[[disk]]
name = "broken"
path = %q
`, good, id.IndexDigest, late, broken))
	p.start()
	p.eventually("the good disk", func() bool { return p.disk("good").GetServing() })
	require.True(t, p.disk("good").GetConfigured())
	require.True(t, p.disk("good").GetKeep())
	p.eventually("the errors of the others", func() bool {
		return p.disk("late").GetLastError() != "" && p.disk("broken").GetLastError() != ""
	})
	require.Contains(t, p.disk("late").GetLastError(), "no such file")
	require.Contains(t, p.disk("broken").GetLastError(), "layer disk")
	require.Equal(t, []bool{true, true}, p.pull("app:1.0", "base", "app"))
	require.Equal(t, "2", p.metrics()[`berth_disks{state="waiting"}`], "configured disks that are missing count too")

	// The late one appears: it is another disk, made under another name and moved in place.
	_, lateID := layerdisktest.Disk(t, p.path("tmp.img"), layerdisk.FileSystemEROFS, func(layer, dir string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, layer), nil, 0o644))
	}, layerdisktest.Image{Reference: "docker.io/library/late:1", Layers: []string{"late"}})
	require.NoError(t, os.Rename(p.path("tmp.img"), late))
	p.eventually("the late disk", func() bool { return p.disk("late").GetServing() })
	require.Equal(t, lateID.IndexDigest.String(), p.disk("late").GetIndexDigest())

	// A disk that is given up stays away until the next start.
	p.detach("broken")
	require.Nil(t, p.disk("broken"))
	p.detach("late")
	require.Nil(t, p.disk("late"))
	p.stop()
	p.start()
	p.eventually("both disks", func() bool { return p.disk("late").GetServing() && p.disk("good").GetServing() })
	require.EqualValues(t, 2, p.disk("good").GetHolders())

	p.remove(p.committed(layerdisktest.ChainID("base", "app").String()), p.committed(layerdisktest.ChainID("base").String()))
	p.detach("good")
	p.detach("late")
	p.stop()
}

func TestUnexpectedDisk(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	file := p.path("disk.img")
	id := makeDisk(t, file)
	p.leavesNothing(file)
	p.start()
	other := digest.FromString("another disk").String()
	_, err := p.control().AttachDisk(t.Context(), &controlv1.AttachDiskRequest{VolumeId: file, ExpectIndexDigest: other})
	require.ErrorContains(t, err, other)
	require.ErrorContains(t, err, id.IndexDigest.String())
	require.Nil(t, p.disk("disk"))
	p.stop()
}

func TestReload(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	file := p.path("disk.img")
	makeDisk(t, file)
	p.leavesNothing(file)
	p.start()

	p.configure("nonsense = 1\n")
	require.NoError(t, p.cmd.Process.Signal(unix.SIGHUP))
	p.eventually("the refusal", func() bool { return strings.Contains(p.log.String(), "the old one stays") })
	require.Contains(t, p.log.String(), "unknown key")

	p.configure(fmt.Sprintf("[log]\nlevel = \"debug\"\n[stage]\nidle_timeout = \"1h\"\n[[disk]]\nname = \"added\"\npath = %q\n", file))
	require.NoError(t, p.cmd.Process.Signal(unix.SIGHUP))
	p.eventually("the added disk", func() bool { return p.disk("added").GetServing() })
	require.Contains(t, p.log.String(), "restart_needed=true")
	require.Equal(t, []bool{false}, p.pull("other:1", "none"))
	require.Contains(t, p.log.String(), "level=debug")
	p.detach("added")
	p.stop()
}
