package main

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/snapshotter"
)

// observer passes on what the snapshotter and the stage do: to metrics, to the ledger, and to the log.
type observer struct {
	metrics  *metrics.Metrics
	ledger   *events.Ledger
	failures *diskFailures
}

var (
	_ snapshotter.Observer = observer{}
	_ stage.Observer       = observer{}
)

func (o observer) Hit(ctx context.Context, h snapshotter.Hit) {
	o.metrics.Hit(string(h.MatchedBy), h.BlobSize)
	o.ledger.Record(events.Event{Kind: events.Hit, ChainID: h.Layer.ChainID, ImageRef: h.Layer.ImageRef, Disk: h.DiskUUID,
		MatchedBy: h.MatchedBy, Bytes: h.BlobSize})
	log.G(ctx).WithFields(log.Fields{"chain_id": h.Layer.ChainID, "disk": h.DiskUUID, "layer": h.LayerNumber,
		"matched_by": h.MatchedBy, "image": h.Layer.ImageRef}).Debug("layer served from a disk")
}

func (o observer) Miss(ctx context.Context, m snapshotter.Miss) {
	reason := missReason(m.Err)
	o.metrics.Miss(reason)
	e := events.Event{Kind: events.Miss, ChainID: m.Layer.ChainID, ImageRef: m.Layer.ImageRef, Reason: reason, Detail: m.Err.Error()}
	entry := log.G(ctx).WithFields(log.Fields{"chain_id": m.Layer.ChainID, "image": m.Layer.ImageRef, "reason": reason}).WithError(m.Err)
	switch reason {
	case events.ReasonError:
		e.Kind = events.Failure
		entry.Warn("layer could not be looked for, it is pulled")
	case string(stage.MissFailed), string(stage.MissContradiction):
		entry.Warn("layer is pulled")
	default:
		entry.Debug("layer is pulled")
	}
	o.ledger.Record(e)
}

// Start implements snapshotter.Observer; what reads ahead wants to know.
func (o observer) Start(context.Context, snapshotter.Start) {}

// missReason is one of metrics.MissReasons.
func missReason(err error) string {
	var miss *stage.MissError
	switch {
	case errors.As(err, &miss):
		return string(miss.Reason)
	case errdefs.IsFailedPrecondition(err):
		return events.ReasonProtocol
	case errdefs.IsNotFound(err):
		return string(stage.MissNotOnDisk)
	}
	return events.ReasonError
}

func (o observer) StepDone(step stage.Step, took time.Duration, err error) {
	o.metrics.Step(string(step), took, metrics.ErrorClass(err))
}

func (o observer) DiskFailed(disk stage.DiskStatus, err error) {
	o.metrics.DiskFailed()
	o.failures.add(disk, err)
}

// diskTotals are for the gauges.
func diskTotals(list []stage.DiskStatus) metrics.DiskTotals {
	t := metrics.DiskTotals{ByState: map[string]int{}}
	for _, d := range list {
		t.ByState[string(d.State)]++
		if d.Serving {
			t.Layers += d.Layers
		}
		t.LayersInUse += d.LayersInUse
		t.Adopted += d.Holders
	}
	return t
}
