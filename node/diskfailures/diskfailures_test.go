package diskfailures

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/node/events"
	"berth.dev/berth/node/stage"
)

// known are names and IDs of image snapshots by the UUIDs of their disks.
type known map[string][2]string

func (k known) ImageSnapshot(diskUUID string) (name, id string, ok bool) {
	s, ok := k[diskUUID]
	return s[0], s[1], ok
}

// notes are what image snapshots are told.
type notes chan string

func (n notes) NoteDiskFailure(_ context.Context, name, id, message string) error {
	n <- name + " " + id + ": " + message
	return errors.New("that this fails is logged only")
}

// A disk that fails is told of with its image snapshot: the one it was attached for, also if no catalog has that any
// more, or the one that a catalog knows it by. What is told while nobody listens yet waits, and what is too much is
// told without.
func TestDiskFailuresNameTheImageSnapshot(t *testing.T) {
	ledger := events.NewLedger()
	r := New(ledger)
	watcher := ledger.Watch(t.Context())
	broken := errors.New("input/output error")
	r.Report(stage.DiskStatus{Name: "nightly-1", UUID: "u", Holders: 3, ImageSnapshot: stage.ImageSnapshot{Name: "nightly", ID: "1"}}, broken)
	r.Report(stage.DiskStatus{Name: "byhand", UUID: "known"}, broken)
	r.Report(stage.DiskStatus{Name: "other", UUID: "unknown"}, broken)

	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	notes := make(notes, 10)
	go func() {
		defer close(ended)
		r.Run(ctx, known{"known": {"weekly", "2"}}, notes)
	}()
	for _, want := range []events.Event{
		{Disk: "nightly-1", ImageSnapshot: "nightly", Detail: "input/output error; 3 snapshots use it"},
		{Disk: "byhand", ImageSnapshot: "weekly", Detail: "input/output error; 0 snapshots use it"},
		{Disk: "other", Detail: "input/output error; 0 snapshots use it"},
	} {
		got := (<-watcher.Events).Event
		want.Kind, want.Time = events.DiskFailed, got.Time
		require.Equal(t, want, got)
	}
	require.Equal(t, "nightly 1: its disk nightly-1 on this node is out of service, 3 snapshots use it: input/output error", <-notes)
	require.Equal(t, "weekly 2: its disk byhand on this node is out of service, 0 snapshots use it: input/output error", <-notes)
	cancel()
	<-ended
	require.Empty(t, notes)

	for range maxFailures + 1 {
		r.Report(stage.DiskStatus{Name: "many"}, broken)
	}
	require.Equal(t, "many", (<-watcher.Events).Event.Disk)
}
