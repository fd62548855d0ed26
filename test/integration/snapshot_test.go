//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/wait"
)

// snapshotView is what the test reads of "berth image-snapshot get --json".
type snapshotView struct {
	Name   string `json:"name"`
	ID     string `json:"id"`
	Origin string `json:"origin"`
	// Annotations of it.
	Annotations map[string]string `json:"annotations"`
	Status      struct {
		Phase  string `json:"phase"`
		Reason string `json:"reason"`
		Builds int    `json:"builds"`
		// MatchCount is a number in a string, as protojson writes 64 bits; absent is none.
		MatchCount       json.Number `json:"match_count"`
		VolumeSnapshotID string      `json:"volume_snapshot_id"`
		Driver           string      `json:"driver"`
		// FetchedBytes and ReusedBytes are likewise.
		FetchedBytes json.Number `json:"fetched_bytes"`
		ReusedBytes  json.Number `json:"reused_bytes"`
		BaseName     string      `json:"base_name"`
		Images       []struct {
			Reference string `json:"reference"`
			Digest    string `json:"digest"`
		} `json:"images"`
	} `json:"status"`
}

func (n *node) cli(args ...string) string {
	n.Helper()
	out, err := n.berthd.CLI(n.Context(), args...)
	require.NoError(n, err, n.berthd.LogTail(40))
	return out
}

func (n *node) snapshot(name string) (snapshotView, error) {
	var v snapshotView
	out, err := n.berthd.CLI(n.Context(), "image-snapshot", "get", name, "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &v)
	}
	return v, err
}

func (n *node) awaitSnapshot(name, phase string) (v snapshotView) {
	n.Helper()
	require.NoError(n, wait.Until(n.Context(), soon, name+" to be "+phase, func(context.Context) (err error) {
		if v, err = n.snapshot(name); err == nil && v.Status.Phase != "IMAGE_SNAPSHOT_PHASE_"+phase {
			err = errors.New("it is " + v.Status.Phase + ", " + v.Status.Reason)
		}
		return err
	}), n.berthd.LogTail(40))
	return v
}

// volumes of the embedded driver, or its volume snapshots.
func (n *node) stored(kind string) []string {
	n.Helper()
	entries, err := os.ReadDir(filepath.Join(n.berthd.Root(), "volumes", kind))
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(n, err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "berth-") {
			names = append(names, e.Name())
		}
	}
	return names
}

// registryFlags let the build speak to the test's registry.
func (n *node) registryFlags(ref string) []string {
	if !n.registry.PlainHTTP() {
		return nil
	}
	host, _, _ := strings.Cut(ref, "/")
	return []string{"--plain-http", host}
}

// E-20, E-27, E-31: the whole life from the command line, over a real daemon, a real registry and real loop devices.
func TestSnapshotLife(t *testing.T) {
	n := newNode(t)
	img := n.push("app", image.Layer{Entries: []image.Entry{image.File("a", "one")}}, image.Layer{Entries: []image.Entry{image.File("b", "two")}})
	n.start()
	flags := n.registryFlags(img.ref)

	out := n.cli(append([]string{"image-snapshot", "create", "nightly", "--image", img.ref, "--retention-days", "7", "--wait"}, flags...)...)
	require.Contains(t, out, "nightly: usable, Available")
	v, err := n.snapshot("nightly")
	require.NoError(t, err)
	require.Equal(t, img.ref, v.Status.Images[0].Reference)
	require.Len(t, n.stored("snapshots"), 1)
	require.Empty(t, n.stored("volumes"), "the volume of the build is gone")
	require.Contains(t, n.cli("image-snapshot", "list"), "nightly")
	require.Contains(t, n.cli("image-snapshot", "events", "nightly"), "Ready")
	matched := n.cli(append([]string{"match", img.ref}, flags...)...)
	require.Contains(t, matched, "use: ")
	require.Contains(t, matched, "nightly: chosen")

	require.Contains(t, n.cli("image-snapshot", "update", "nightly", "--rebuild", "--wait"), "usable")
	updated, err := n.snapshot("nightly")
	require.NoError(t, err)
	require.Equal(t, 2, updated.Status.Builds)
	require.Equal(t, v.ID, updated.ID)
	require.NotEqual(t, v.Status.VolumeSnapshotID, updated.Status.VolumeSnapshotID)

	require.Contains(t, n.cli("image-snapshot", "delete", "nightly", "--wait"), "nightly: deleted")
	require.Empty(t, n.stored("snapshots"))
	require.Empty(t, n.stored("volumes"))
	_, err = n.berthd.CLI(t.Context(), "image-snapshot", "get", "nightly")
	require.ErrorContains(t, err, `no image snapshot "nightly"`)
}

// C-1, E-12: an image snapshot made on this node serves the next pull, without anybody attaching anything, and counts
// that.
func TestPullFindsItsImageSnapshot(t *testing.T) {
	n := newNode(t)
	p := n.push("app", n.fiveLayers()...)
	n.start()
	n.cli(append([]string{"image-snapshot", "create", "nightly", "--image", p.ref, "--wait"}, n.registryFlags(p.ref)...)...)
	n.registry.Reset()
	n.pull(p)
	require.Zero(t, n.fetched(p), "layer blobs fetched: %v", n.registry.Blobs())
	require.Equal(t, []string{"nightly"}, n.attached())
	require.Equal(t, "content of top", n.run(p, "c", "cat", "/s/top"))
	n.requireSameTree(p)
	require.NoError(t, wait.Until(t.Context(), soon, "the use to be noted", func(context.Context) error {
		v, err := n.snapshot("nightly")
		if err == nil && v.Status.MatchCount.String() == "" {
			err = errors.New("it was never matched")
		}
		return err
	}))
}

// The disk of an image snapshot goes away under a running container: the event names the image snapshot, and its own
// events say so.
func TestDiskOfImageSnapshotVanishes(t *testing.T) {
	n := newNode(t)
	p := n.push("app", n.busybox(), small("top"))
	n.start()
	n.cli(append([]string{"image-snapshot", "create", "nightly", "--image", p.ref, "--wait"}, n.registryFlags(p.ref)...)...)
	n.pull(p)
	n.runDetached(p, "running")
	d := n.status().Disks[0]
	volumes, err := os.ReadDir(filepath.Join(n.berthd.Root(), "volumes", "volumes"))
	require.NoError(t, err)
	for _, v := range volumes {
		require.NoError(t, os.Truncate(filepath.Join(n.berthd.Root(), "volumes", "volumes", v.Name(), "disk"), 0))
	}
	dropCaches(t)
	require.NoError(t, wait.Until(t.Context(), soon, "the disk to be out of service", func(context.Context) error {
		status, err := n.status().Disk(d.Name)
		if err == nil && status.Serving {
			err = errors.New("it serves")
		}
		return err
	}))
	require.NoError(t, wait.Until(t.Context(), soon, "the event", func(context.Context) error {
		events := n.cli("image-snapshot", "events", "nightly")
		if !strings.Contains(events, "DiskFailed") || !strings.Contains(events, "its disk "+d.Name+" on this node is out of service") {
			return errors.New(events)
		}
		return nil
	}))
	require.Contains(t, n.berthd.Log(), "image_snapshot=nightly")
}

// An image that is not there fails with its reason, and leaves no volume.
func TestSnapshotOfMissingImage(t *testing.T) {
	n := newNode(t)
	img := n.push("app", image.Layer{Entries: []image.Entry{image.File("a", "one")}})
	n.start()
	missing := strings.Replace(img.ref, "app:1", "none:1", 1)
	_, err := n.berthd.CLI(t.Context(), append([]string{"image-snapshot", "create", "bad", "--image", missing, "--wait"}, n.registryFlags(img.ref)...)...)
	require.ErrorContains(t, err, "image snapshot bad is Failed (ImageUnavailable)")
	require.Empty(t, n.stored("volumes"))
	require.Contains(t, n.cli("image-snapshot", "delete", "bad", "--wait"), "deleted")
}

// beginHeldBuild creates an image snapshot whose build waits for the registry, and returns in the middle of it.
func (n *node) beginHeldBuild(name string, img pushed) {
	n.Helper()
	n.registry.Reset()
	n.registry.Hold()
	// Without reuse the volume comes before the first request.
	n.cli(append([]string{"image-snapshot", "create", name, "--image", img.ref, "--reuse-layers=false"}, n.registryFlags(img.ref)...)...)
	require.NoError(n, wait.Until(n.Context(), soon, "the build to ask the registry", func(context.Context) error {
		if len(n.stored("volumes")) != 1 || n.registry.Requests() == 0 {
			return errors.New("it has not begun")
		}
		return nil
	}), n.berthd.LogTail(40))
}

// A crash in the middle of a build is followed by a build that succeeds, and nothing is left of the first.
func TestSnapshotSurvivesKill(t *testing.T) {
	n := newNode(t)
	img := n.push("app", image.Layer{Entries: []image.Entry{image.File("a", "one")}})
	n.start()
	n.beginHeldBuild("nightly", img)
	first := n.stored("volumes")
	require.NoError(t, n.berthd.Kill())
	require.Equal(t, first, n.stored("volumes"))
	n.registry.Resume()
	require.NoError(t, n.berthd.Start(t.Context()))
	v := n.awaitSnapshot("nightly", "AVAILABLE")
	require.Equal(t, 2, v.Status.Builds)
	require.Contains(t, n.cli("image-snapshot", "events", "nightly"), "the build was interrupted and begins anew")
	require.NoError(t, wait.Until(t.Context(), soon, "what the crash left to be gone", func(context.Context) error {
		if v, s := n.stored("volumes"), n.stored("snapshots"); len(v) != 0 || len(s) != 1 {
			return errors.New("there are " + strings.Join(append(v, s...), " "))
		}
		return nil
	}))
	n.cli("image-snapshot", "delete", "nightly", "--wait")
	require.Empty(t, n.stored("snapshots"))
}

// C-25: deleting aborts a build, whatever it waits for.
func TestSnapshotDeletedWhileBuilt(t *testing.T) {
	n := newNode(t)
	img := n.push("app", image.Layer{Entries: []image.Entry{image.File("a", "one")}})
	n.start()
	n.beginHeldBuild("nightly", img)
	require.Contains(t, n.cli("image-snapshot", "delete", "nightly", "--wait"), "nightly: deleted")
	n.registry.Resume()
	require.Empty(t, n.stored("volumes"))
	require.Empty(t, n.stored("snapshots"))
}

// A stop does not wait for a build, and the next start goes on.
func TestSnapshotSurvivesRestart(t *testing.T) {
	n := newNode(t)
	img := n.push("app", image.Layer{Entries: []image.Entry{image.File("a", "one")}})
	n.start()
	n.beginHeldBuild("nightly", img)
	require.NoError(t, n.berthd.Stop())
	n.registry.Resume()
	require.NoError(t, n.berthd.Start(t.Context()))
	require.Equal(t, 2, n.awaitSnapshot("nightly", "AVAILABLE").Status.Builds)
	n.cli("image-snapshot", "delete", "nightly", "--wait")
	require.Empty(t, n.stored("volumes"))
}
