package events_test

import (
	"context"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/events"
)

func TestLedgerForgetsTheOldest(t *testing.T) {
	l := events.NewLedger()
	first := digest.FromString("first")
	l.Record(events.Event{Kind: events.Hit, ChainID: first, MatchedBy: "blob"})
	require.Equal(t, layerdisk.MatchBlob, l.Last(first).MatchedBy)
	for i := range 5000 {
		l.Record(events.Event{Kind: events.Miss, ChainID: digest.FromBytes([]byte{byte(i), byte(i >> 8)}), Reason: "no-disk"})
	}
	require.Nil(t, l.Last(first))
	require.NotNil(t, l.Last(digest.FromBytes([]byte{byte(4999 & 0xff), byte(4999 >> 8)})))
}

func TestLedgerBoundsReasons(t *testing.T) {
	l := events.NewLedger()
	for i := range 100 {
		l.Record(events.Event{Kind: events.Miss, Reason: strings.Repeat("x", i+1)})
	}
	require.LessOrEqual(t, len(l.Counts().Misses), 33)
	require.EqualValues(t, 68, l.Counts().Misses["other"])
}

func TestWatchers(t *testing.T) {
	l := events.NewLedger()
	ctx, cancel := context.WithCancel(t.Context())
	quick, slow := l.Watch(ctx), l.Watch(t.Context())
	l.Record(events.Event{Kind: events.Hit, MatchedBy: "blob"})
	got := <-quick.Events
	require.Equal(t, events.Hit, got.Event.Kind)
	require.False(t, got.Event.Time.IsZero())

	// A watcher that does not read loses events and is told how many; nobody waits for it.
	for range 300 {
		l.Record(events.Event{Kind: events.Miss, Reason: "no-disk"})
	}
	for range 256 {
		require.Zero(t, (<-slow.Events).Dropped)
	}
	l.Record(events.Event{Kind: events.Hit})
	require.EqualValues(t, 301-256, (<-slow.Events).Dropped)

	cancel()
	for range quick.Events { // ends with its context
	}
	l.Close()
	_, open := <-slow.Events
	require.False(t, open)
	_, open = <-l.Watch(t.Context()).Events
	require.False(t, open)
	l.Record(events.Event{Kind: events.Hit})
}
