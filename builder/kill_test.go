package builder

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Environment of the child that TestKilled starts and kills.
const (
	envKillRef  = "BERTH_TEST_KILL_REF"
	envKillDisk = "BERTH_TEST_KILL_DISK"
	envKillFS   = "BERTH_TEST_KILL_FS"
)

// TestKilledChild is the body of that child, nothing by itself.
func TestKilledChild(t *testing.T) {
	if os.Getenv(envKillRef) == "" {
		t.Skip("only as a child")
	}
	o := Options{
		Images: []string{os.Getenv(envKillRef)},
		Output: Output{Path: os.Getenv(envKillDisk), FileSystem: os.Getenv(envKillFS)},
	}
	o.Progress = func(e Event) { _, _ = os.Stdout.WriteString(string(e.Kind) + "\n") }
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
}

// TestKilled kills a build at several moments: no file, no mount and no loop device is left.
func TestKilled(t *testing.T) {
	var layers []forgedLayer
	for range 4 {
		layers = append(layers, gzipLayer(t, makeTar(t, tarContent{"file": bigContent(t, 20<<20)})))
	}
	ref := onePut(t, layers...)
	for _, fs := range []string{"erofs", "ext4"} {
		for _, moment := range []EventKind{EventLayerStarted, EventLayerDone, EventFinishing} {
			for _, later := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond} {
				t.Run(strings.Join([]string{fs, string(moment), later.String()}, " "), func(t *testing.T) {
					if fs == "ext4" {
						needRoot(t)
					}
					killBuild(t, ref, fs, moment, later)
				})
			}
		}
	}
}

func killBuild(t *testing.T, ref, fs string, moment EventKind, later time.Duration) {
	t.Helper()
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.img")
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledChild$")
	child.Env = append(os.Environ(), envKillRef+"="+ref, envKillDisk+"="+disk, envKillFS+"="+fs)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == string(moment) {
			break
		}
	}
	timer := time.NewTimer(later)
	<-timer.C
	require.NoError(t, child.Process.Kill())
	waitErr := child.Wait()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		backing, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		require.NoError(c, err)
		for _, b := range backing {
			file, _ := os.ReadFile(b)
			require.NotContains(c, string(file), dir)
		}
	}, 20*time.Second, 20*time.Millisecond)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	if waitErr == nil { // it was faster
		require.Len(t, left, 1)
		requireSound(t, disk)
		return
	}
	if len(left) == 1 { // killed between its name and its exit
		require.Equal(t, "disk.img", left[0].Name())
		requireSound(t, disk)
		return
	}
	require.Empty(t, left)
}
