package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/internal/metrics"
	"berth.dev/berth/node/diskfailures"
	"berth.dev/berth/node/events"
	"berth.dev/berth/node/imageimport"
	"berth.dev/berth/node/stage"
	"berth.dev/berth/snapshotter"
)

// pulls is an observer of the snapshotter that tells others only of what a pull asked for: an image that is registered
// by the importer is neither used nor started.
type pulls struct {
	observers snapshotter.Observers
	// importer is set before anything is asked.
	importer *imageimport.Importer
}

var _ snapshotter.Observer = (*pulls)(nil)

// Hit implements snapshotter.Observer.
func (p *pulls) Hit(ctx context.Context, h snapshotter.Hit) {
	if !p.importer.Asks(h.Layer.ChainID) {
		p.observers.Hit(ctx, h)
	}
}

// Miss implements snapshotter.Observer.
func (p *pulls) Miss(ctx context.Context, m snapshotter.Miss) {
	if !p.importer.Asks(m.Layer.ChainID) {
		p.observers.Miss(ctx, m)
	}
}

// Start implements snapshotter.Observer.
func (p *pulls) Start(ctx context.Context, s snapshotter.Start) { p.observers.Start(ctx, s) }

// layerObserver passes on which layers are served: to metrics, to the ledger, and to the log.
type layerObserver struct {
	metrics *metrics.Metrics
	ledger  *events.Ledger
}

var _ snapshotter.Observer = layerObserver{}

// Hit implements snapshotter.Observer.
func (o layerObserver) Hit(ctx context.Context, h snapshotter.Hit) {
	o.metrics.Hit(string(h.MatchedBy), h.BlobSize)
	o.ledger.Record(events.Event{Kind: events.Hit, ChainID: h.Layer.ChainID, ImageRef: h.Layer.ImageRef, Disk: h.DiskUUID,
		MatchedBy: h.MatchedBy, Bytes: h.BlobSize})
	log.G(ctx).WithFields(log.Fields{"chain_id": h.Layer.ChainID, "disk": h.DiskUUID, "layer": h.LayerNumber,
		"matched_by": h.MatchedBy, "image": h.Layer.ImageRef}).Debug("layer served from a disk")
}

// Miss implements snapshotter.Observer.
func (o layerObserver) Miss(ctx context.Context, m snapshotter.Miss) {
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

// Start implements snapshotter.Observer.
func (o layerObserver) Start(context.Context, snapshotter.Start) {}

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

// diskObserver passes on what becomes of disks.
type diskObserver struct {
	metrics  *metrics.Metrics
	failures *diskfailures.Reporter
}

var _ stage.Observer = diskObserver{}

// StepDone implements stage.Observer.
func (o diskObserver) StepDone(step stage.Step, took time.Duration, err error) {
	o.metrics.Step(string(step), took, metrics.ErrorClass(err))
}

// DiskFailed implements stage.Observer.
func (o diskObserver) DiskFailed(disk stage.DiskStatus, err error) {
	o.metrics.DiskFailed()
	o.failures.Report(disk, err)
}
