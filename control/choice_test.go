package control_test

import (
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/control"
)

type lastChoices map[string]control.Choice

func (l lastChoices) LastChoice(ref string) *control.Choice {
	if c, ok := l[ref]; ok {
		return &c
	}
	return nil
}

func TestLastChoice(t *testing.T) {
	s := control.NewService(control.Node{}, nil, nil, nil, nil)
	require.Nil(t, s.LastChoice("a"), "nobody chooses")
	c := control.Choice{Time: time.Now(), ChainID: digest.FromString("x"), Reason: "r", Waited: time.Second,
		Disks: []control.ChosenDisk{{ImageSnapshot: "s", Disk: "d", Result: "failed", Error: "e"}}}
	s.WithChoices(lastChoices{"a": c, "": c})
	require.Equal(t, &c, s.LastChoice("a"))
	require.Nil(t, s.LastChoice("b"))
	require.Nil(t, s.LastChoice(""), "no image, no choice")
}
