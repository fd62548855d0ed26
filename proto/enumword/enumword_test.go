package enumword_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
	"berth.dev/berth/proto/enumword"
)

func TestOf(t *testing.T) {
	require.Equal(t, "in-use", enumword.Of(controlv1.DiskState_DISK_STATE_IN_USE))
	require.Equal(t, "gate-not-met", enumword.Of(imagesnapshotv1.MatchVerdict_MATCH_VERDICT_GATE_NOT_MET))
	require.Equal(t, enumword.Other, enumword.Of(controlv1.DiskState(99)))
	require.Empty(t, enumword.Of(controlv1.DiskState_DISK_STATE_UNSPECIFIED))
}
