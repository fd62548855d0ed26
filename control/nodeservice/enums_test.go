package nodeservice

import (
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/disks"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/imageimport"
	"berth.dev/berth/node/lost"
	"berth.dev/berth/node/ondemand"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/node/users"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/proto/enumword"
	"berth.dev/berth/readahead"
)

// Every word of the parts of a node has a value of its own in the API, spelled alike for people.
func TestWords(t *testing.T) {
	for _, s := range []stage.State{
		disks.StateWaiting, stage.StateWanted, stage.StateCreating, stage.StateAttaching, stage.StateMounting, stage.StateInUse,
		stage.StateIdle, stage.StateDraining, stage.StateUnmounting, stage.StateDetaching, stage.StateDeleting, stage.StateFailed,
	} {
		require.Equal(t, string(s), enumword.Of(diskStateMessage(s)))
	}
	for _, r := range imageimport.Results() {
		require.Equal(t, string(r), enumword.Of(importResultMessage(r)))
	}
	for _, r := range ondemand.Results() {
		require.Equal(t, string(r), enumword.Of(chosenDiskResultMessage(r)))
	}
	for _, r := range append(readahead.Results(), readahead.ResultWaiting, readahead.ResultRunning) {
		require.Equal(t, string(r), enumword.Of(readAheadStateMessage(r)))
	}
	for _, by := range []layerdisk.Match{layerdisk.MatchChainID, layerdisk.MatchDiffID, layerdisk.MatchBlob, layerdisk.MatchSnapshot} {
		require.Equal(t, string(by), enumword.Of(layerMatchMessage(by)))
	}
	for _, s := range lost.States() {
		require.Equal(t, string(s), enumword.Of(lostLayerStateMessage(s)))
	}
	for _, k := range []users.Kind{users.Image, users.Container, users.Lease} {
		require.Equal(t, string(k), enumword.Of(userKindMessage(k)))
	}
	for _, reason := range []string{
		string(stage.MissNoDisk), string(stage.MissNotOnDisk), string(stage.MissNotReady), string(stage.MissDraining),
		string(stage.MissFailed), string(stage.MissContradiction), events.ReasonProtocol, events.ReasonError,
	} {
		require.Equal(t, reason, enumword.Of(missReasonMessage(reason)))
	}
}

func TestMissMessagesJoinsWhatHasNoWord(t *testing.T) {
	got := missMessages(map[string]uint64{"new": 1, "no-disk": 2, "other": 3})
	require.Len(t, got, 2)
	require.Equal(t, controlv1.MissReason_MISS_REASON_UNSPECIFIED, got[0].GetReason())
	require.EqualValues(t, 4, got[0].GetCount())
	require.EqualValues(t, 2, got[1].GetCount())
}
