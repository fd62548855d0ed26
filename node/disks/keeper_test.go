package disks_test

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/stage"
)

func TestNameFor(t *testing.T) {
	for volume, want := range map[string]string{
		"/srv/base.img":                  "base",
		"/dev/sdb":                       "sdb",
		"/dev/disk/by-id/Virtio-0xAB":    "virtio-0xab",
		"vol-0123":                       "vol-0123",
		"/x/.hidden":                     "hidden",
		"/x/Ä b.img":                     "b",
		"/x/" + strings.Repeat("a", 100): strings.Repeat("a", 64),
	} {
		require.Equal(t, want, disks.NameFor(volume), volume)
	}
}

func TestKeeperTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStager()
		k, _ := newKeeper(f)
		f.faults["/late"] = 3
		f.faults["/never"] = -1
		ctx, cancel := context.WithCancel(t.Context())
		start := time.Now()
		k.Configure(ctx, []stage.Spec{{Name: "now", VolumeID: "/now"}, {Name: "late", VolumeID: "/late"}, {Name: "never", VolumeID: "/never", Keep: true}})
		synctest.Wait()

		list := k.List()
		require.Len(t, list, 3)
		byName := map[string]disks.Disk{}
		for _, d := range list {
			byName[d.Name] = d
			require.True(t, d.Configured, d.Name)
		}
		require.True(t, byName["now"].Serving)
		require.Equal(t, disks.StateWaiting, byName["late"].State)
		require.ErrorContains(t, byName["never"].LastError, "/never is not there")
		require.True(t, byName["never"].Keep)

		// 1 + 2 + 4 seconds for three faults; then it is there.
		time.Sleep(7 * time.Second)
		synctest.Wait()
		list = k.List()
		require.True(t, list[0].Serving, "late")
		require.NoError(t, list[0].LastError)

		// What is configured already is not begun again; detaching a disk that is waited for ends the waiting.
		k.Configure(ctx, []stage.Spec{{Name: "never", VolumeID: "/never"}})
		_, err := k.Detach(ctx, "never", false)
		require.NoError(t, err)
		f.mu.Lock()
		before := len(f.log)
		f.mu.Unlock()
		time.Sleep(time.Hour)
		require.Len(t, f.log, before)
		list = k.List()
		require.Len(t, list, 2)

		cancel()
		k.Wait()
		require.Equal(t, time.Hour+7*time.Second, time.Since(start))
	})
}

func TestKeeperBacksOffToAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeStager()
		k, _ := newKeeper(f)
		f.faults["/never"] = -1
		ctx, cancel := context.WithCancel(t.Context())
		k.Configure(ctx, []stage.Spec{{Name: "never", VolumeID: "/never"}})
		time.Sleep(time.Hour)
		synctest.Wait()
		// 1+2+4+8+16+32 seconds are six waits, then one each minute.
		require.InDelta(t, 6+59, len(f.log), 1)
		cancel()
		k.Wait()
	})
}
