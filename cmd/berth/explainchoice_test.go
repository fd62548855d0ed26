package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

func TestExplainLastChoice(t *testing.T) {
	var out strings.Builder
	require.NoError(t, lastChoiceOf(nil).print(&out))
	require.Empty(t, out.String(), "no choice is no line")
	c := lastChoiceOf(&controlv1.DiskChoice{
		Time: timestamppb.New(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)), Reason: "it is the best", Waited: durationpb.New(1500 * time.Millisecond),
		Disks: []*controlv1.ChosenDisk{
			{ImageSnapshot: "nightly", Disk: "nightly-1", Result: controlv1.ChosenDiskResult_CHOSEN_DISK_RESULT_READY},
			{ImageSnapshot: "weekly", Disk: "weekly-1", Result: controlv1.ChosenDiskResult_CHOSEN_DISK_RESULT_LATE},
			{ImageSnapshot: "old", Disk: "old-1", Result: controlv1.ChosenDiskResult_CHOSEN_DISK_RESULT_FAILED, Error: "storage says no"},
		},
		Candidates: []*controlv1.ChoiceCandidate{{Name: "nightly", Id: "1", Verdict: imagesnapshotv1.MatchVerdict_MATCH_VERDICT_CHOSEN, Why: "it saves 1 GiB"}},
	})
	require.NoError(t, c.print(&out))
	require.Equal(t, `
last pull that no attached disk could serve, 2026-01-02T03:04:05Z: it is the best
  disk nightly-1 of image snapshot nightly: attached in time
  disk weekly-1 of image snapshot weekly: not attached in time, the pull went on without it
  disk old-1 of image snapshot old: failed: storage says no
  the pull waited 1.5 s
  nightly (chosen): it saves 1 GiB
`, out.String())
}
