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

// snapshotView is what the test reads of "berth snapshot get --json".
type snapshotView struct {
	Name   string `json:"name"`
	ID     string `json:"id"`
	Status struct {
		Phase            string `json:"phase"`
		Reason           string `json:"reason"`
		Builds           int    `json:"builds"`
		VolumeSnapshotID string `json:"volume_snapshot_id"`
		Images           []struct {
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
	out, err := n.berthd.CLI(n.Context(), "snapshot", "get", name, "--json")
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

// C-20 to C-25 from the command line, over a real daemon, a real registry and real loop devices.
func TestSnapshotLife(t *testing.T) {
	n := newNode(t)
	img := n.push("app", image.Layer{Entries: []image.Entry{image.File("a", "one")}}, image.Layer{Entries: []image.Entry{image.File("b", "two")}})
	n.start()
	flags := n.registryFlags(img.ref)

	out := n.cli(append([]string{"snapshot", "create", "nightly", "--image", img.ref, "--retention-days", "7", "--wait"}, flags...)...)
	require.Contains(t, out, "nightly: usable, Available")
	v, err := n.snapshot("nightly")
	require.NoError(t, err)
	require.Equal(t, img.ref, v.Status.Images[0].Reference)
	require.Len(t, n.stored("snapshots"), 1)
	require.Empty(t, n.stored("volumes"), "the volume of the build is gone")
	require.Contains(t, n.cli("snapshot", "list"), "nightly")
	require.Contains(t, n.cli("snapshot", "events", "nightly"), "Ready")
	matched := n.cli(append([]string{"match", img.ref}, flags...)...)
	require.Contains(t, matched, "use: ")
	require.Contains(t, matched, "nightly: chosen")

	require.Contains(t, n.cli("snapshot", "update", "nightly", "--rebuild", "--wait"), "usable")
	updated, err := n.snapshot("nightly")
	require.NoError(t, err)
	require.Equal(t, 2, updated.Status.Builds)
	require.Equal(t, v.ID, updated.ID)
	require.NotEqual(t, v.Status.VolumeSnapshotID, updated.Status.VolumeSnapshotID)

	require.Contains(t, n.cli("snapshot", "delete", "nightly", "--wait"), "nightly: deleted")
	require.Empty(t, n.stored("snapshots"))
	require.Empty(t, n.stored("volumes"))
	_, err = n.berthd.CLI(t.Context(), "snapshot", "get", "nightly")
	require.ErrorContains(t, err, `no image snapshot "nightly"`)
}

// An image that is not there fails with its reason, and leaves no volume.
func TestSnapshotOfMissingImage(t *testing.T) {
	n := newNode(t)
	img := n.push("app", image.Layer{Entries: []image.Entry{image.File("a", "one")}})
	n.start()
	missing := strings.Replace(img.ref, "app:1", "none:1", 1)
	_, err := n.berthd.CLI(t.Context(), append([]string{"snapshot", "create", "bad", "--image", missing, "--wait"}, n.registryFlags(img.ref)...)...)
	require.ErrorContains(t, err, "image snapshot bad is Failed (ImageUnavailable)")
	require.Empty(t, n.stored("volumes"))
	require.Contains(t, n.cli("snapshot", "delete", "bad", "--wait"), "deleted")
}

// M-22: a crash in the middle of a build is followed by a build that succeeds, and nothing is left of the first.
func TestSnapshotSurvivesKill(t *testing.T) {
	n := newNode(t)
	img := n.push("app", image.Layer{Entries: []image.Entry{image.File("a", strings.Repeat("x", 1<<20))}})
	n.start()
	n.cli(append([]string{"snapshot", "create", "nightly", "--image", img.ref}, n.registryFlags(img.ref)...)...)
	require.NoError(t, wait.Until(t.Context(), soon, "the build to have a volume", func(context.Context) error {
		if len(n.stored("volumes")) == 0 && len(n.stored("snapshots")) == 0 {
			return errors.New("there is none")
		}
		return nil
	}))
	require.NoError(t, n.berthd.Kill())
	require.NoError(t, n.berthd.Start(t.Context()))
	n.awaitSnapshot("nightly", "AVAILABLE")
	require.NoError(t, wait.Until(t.Context(), soon, "what the crash left to be gone", func(context.Context) error {
		if v, s := n.stored("volumes"), n.stored("snapshots"); len(v) != 0 || len(s) != 1 {
			return errors.New("there are " + strings.Join(append(v, s...), " "))
		}
		return nil
	}))
	n.cli("snapshot", "delete", "nightly", "--wait")
	require.Empty(t, n.stored("snapshots"))
}
