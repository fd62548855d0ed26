package csi_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/blockdev/csi"
	"berth.dev/berth/blockdev/loopcsi"
)

// TestSuite runs the suite against drivers that lack one thing or another.
func TestSuite(t *testing.T) {
	for name, without := range map[string][]loopcsi.Feature{
		"everything":           nil,
		"no publish":           {loopcsi.Publish},
		"no stage":             {loopcsi.Stage},
		"no publish, no stage": {loopcsi.Publish, loopcsi.Stage},
		"read-only ignored":    {loopcsi.ReadOnly},
		"no list":              {loopcsi.List},
		"no get":               {loopcsi.Get},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			suite(t, loopcsi.Options{Without: without, MaxVolumes: 3}, func(d *csi.Driver) blockdev.Attacher { return d })
		})
	}
}

// withoutSnapshots is what a user of a driver without volume snapshots sees of it.
type withoutSnapshots struct {
	blockdev.Attacher
	blockdev.Provisioner
}

func TestSuiteOfBareDriver(t *testing.T) {
	suite(t, loopcsi.Options{Without: loopcsi.Features()}, func(d *csi.Driver) blockdev.Attacher { return withoutSnapshots{d, d} })
}

func suite(t *testing.T, options loopcsi.Options, as func(*csi.Driver) blockdev.Attacher) {
	t.Helper()
	// One process for all tests, each of which leaves nothing: starting it is what takes time.
	p := newPlant(t, options)
	var now *csi.Driver
	blockdevtest.Suite(t, blockdevtest.Config{
		New: func(t *testing.T) blockdev.Attacher {
			now = openDriver(t, p.config("node"))
			require.NoError(t, now.Connect(t.Context()))
			t.Cleanup(func() {
				if !t.Failed() {
					p.expectNothing("node")
				}
			})
			return as(now)
		},
		Reopen: func(t *testing.T, _ blockdev.Attacher) blockdev.Attacher {
			require.NoError(t, now.Close())
			now = openDriver(t, p.config("node"))
			require.NoError(t, now.Connect(t.Context()))
			return as(now)
		},
	})
}
