package control_test

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/control"
	"berth.dev/berth/layerdisk"
)

type lastChoices map[string]control.Choice

func (l lastChoices) LastChoice(ref string, chainIDs []digest.Digest) *control.Choice {
	for _, key := range append([]digest.Digest{digest.Digest(ref)}, chainIDs...) {
		if c, ok := l[key.String()]; ok {
			return &c
		}
	}
	return nil
}

func TestLastChoice(t *testing.T) {
	s := control.NewService(control.Node{}, nil, nil, nil, nil)
	require.Nil(t, s.LastChoice("a", nil), "nobody chooses")
	c := control.Choice{Time: time.Now(), ChainID: digest.FromString("x"), Reason: "r", Waited: time.Second,
		Disks: []control.ChosenDisk{{ImageSnapshot: "s", Disk: "d", Result: "failed", Error: "e"}}}
	s.WithChoices(lastChoices{"a": c, "": c})
	require.Equal(t, &c, s.LastChoice("a", nil))
	require.Equal(t, &c, s.LastChoice("x", []layerdisk.LayerName{{ChainID: "a"}}))
	require.Nil(t, s.LastChoice("b", nil))
	require.Nil(t, s.LastChoice("", nil), "no image, no choice")
}
