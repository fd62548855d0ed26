package drivers_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/drivers"
)

func config(t *testing.T) drivers.Config {
	t.Helper()
	dir := t.TempDir()
	return drivers.Config{
		LoopDirectory: filepath.Join(dir, "volumes"), Attached: attached.Config{Dir: filepath.Join(dir, "attached")},
		CSI: map[string]csi.Config{"cloud": {Node: "/run/nowhere.sock", Directory: filepath.Join(dir, "csi")}},
	}
}

func open(t *testing.T, c drivers.Config) *drivers.Set {
	t.Helper()
	s, err := drivers.Open(c)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestOpen(t *testing.T) {
	s := open(t, config(t))
	require.ElementsMatch(t, []string{"loop", "attached", "cloud"}, names(s))
	all := s.All()
	require.NotNil(t, all["loop"].Provisioner)
	require.NotNil(t, all["loop"].VolumeSnapshotter)
	require.Nil(t, all["loop"].CheckProvisioning)
	require.Nil(t, all["attached"].Provisioner)
	require.Nil(t, all["attached"].VolumeSnapshotter)
	require.NotNil(t, all["cloud"].CheckProvisioning)
	require.NotNil(t, all["cloud"].TakeParameters)
	require.NotNil(t, s.Found())
	require.Len(t, s.Attachers(), 3)
}

func names(s *drivers.Set) (list []string) {
	for name := range s.All() {
		list = append(list, name)
	}
	return list
}

// What was opened is closed when a later driver cannot be, so that the next attempt can have its directory.
func TestOpenFailsWhole(t *testing.T) {
	c := config(t)
	bad := c
	bad.CSI = map[string]csi.Config{"cloud": c.CSI["cloud"], "wrong": {Node: "relative", Directory: t.TempDir()}}
	_, err := drivers.Open(bad)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	require.ErrorContains(t, err, "open driver wrong: ")
	open(t, c)
}

// own is a driver of another program.
type own struct {
	*blockdevtest.Fake
	check  []error
	closed *[]string
	name   string
}

func (d *own) CheckProvisioning(context.Context) error {
	err := d.check[0]
	d.check = d.check[1:]
	return err
}

func (d *own) TakeParameters(parameters map[string]string) (taken map[string]string, ignored []string) {
	return map[string]string{"type": parameters["type"]}, []string{"other"}
}

func (d *own) Close() error {
	*d.closed = append(*d.closed, d.name)
	return errors.New("close " + d.name)
}

// A program adds a driver of its own, and has it with the same patience and measurement as the others.
func TestAdd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type attempt struct {
			driver, operation string
			took              time.Duration
			failed            bool
		}
		var seen []attempt
		c := config(t)
		c.CSI = nil
		c.Observe = func(driver, operation string, took time.Duration, err error) {
			seen = append(seen, attempt{driver, operation, took, err != nil})
		}
		s, err := drivers.Open(c)
		require.NoError(t, err)
		var closed []string
		fake := blockdevtest.NewFake(0)
		d := &own{Fake: fake, check: []error{blockdev.ErrThrottled, nil}, closed: &closed, name: "mine"}
		require.NoError(t, s.Add("mine", d))

		busy := true
		fake.OnCall(func(context.Context, blockdevtest.Action) error {
			if !busy {
				return nil
			}
			busy = false
			time.Sleep(time.Second) // of the test's own clock
			return blockdev.ErrThrottled
		})
		mine := s.All()["mine"]
		v, err := mine.Provisioner.CreateVolume(t.Context(), blockdev.CreateVolumeRequest{Name: "v", SizeBytes: 4096})
		require.NoError(t, err, "it was busy once")
		require.Equal(t, []attempt{{"mine", "CreateVolume", time.Second, true}, {"mine", "CreateVolume", 0, false}}, seen)
		_, err = s.Attachers()["mine"].Attach(t.Context(), v.ID, blockdev.AttachOptions{})
		require.NoError(t, err)
		require.NoError(t, mine.CheckProvisioning(t.Context()), "it was busy once")
		taken, ignored := mine.TakeParameters(map[string]string{"type": "fast", "other": "x"})
		require.Equal(t, map[string]string{"type": "fast"}, taken)
		require.Equal(t, []string{"other"}, ignored)

		second := &own{Fake: blockdevtest.NewFake(0), closed: &closed, name: "second"}
		err = s.Add("loop", second)
		require.True(t, errdefs.IsAlreadyExists(err), "%v", err)
		require.False(t, slices.Contains(names(s), "second"))

		require.ErrorContains(t, s.Close(), "close mine")
		require.Equal(t, []string{"second", "mine"}, closed, "the last one first, and the refused one too")
		again, err := drivers.Open(c)
		require.NoError(t, err, "the embedded driver was closed as well")
		require.NoError(t, again.Close())
	})
}
