package metrics

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/containerd/log"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Serve answers Prometheus on a TCP address until ctx ends; an empty address serves nothing. An address that cannot be
// had is logged only: no container may fail to start for want of metrics.
func Serve(ctx context.Context, address string, g prometheus.Gatherer) {
	if address == "" {
		return
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		log.G(ctx).WithField("address", address).WithError(err).Error("no metrics: cannot listen")
		return
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, Timeout: 10 * time.Second, ErrorHandling: promhttp.ContinueOnError, // one part that fails hides no other
	}))
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, MaxHeaderBytes: 1 << 14}
	stop := context.AfterFunc(ctx, func() {
		if err := server.Close(); err != nil {
			log.G(ctx).WithError(err).Debug("metrics end")
		}
	})
	defer stop()
	log.G(ctx).WithField("address", l.Addr().String()).Info("metrics are served")
	if err := server.Serve(l); err != nil && !errors.Is(err, http.ErrServerClosed) {
		log.G(ctx).WithError(err).Error("metrics are no longer served")
	}
}
