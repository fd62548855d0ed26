package main

import (
	"context"
	"time"

	"github.com/containerd/log"
	"github.com/coreos/go-systemd/v22/daemon"
)

// notify tells systemd, if it started us, about our state.
func notify(ctx context.Context, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.G(ctx).WithField("state", state).WithError(err).Warn("cannot notify systemd")
	}
}

// feedWatchdog tells systemd's watchdog, if there is one, that we are alive for as long as alive returns in time.
func feedWatchdog(ctx context.Context, alive func(context.Context) error) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		if err != nil {
			log.G(ctx).WithError(err).Warn("systemd's watchdog is set up wrongly")
		}
		return
	}
	ticker := time.NewTicker(interval / 2)
	defer ticker.Stop()
	for {
		check, cancel := context.WithTimeout(ctx, interval/4)
		if err := alive(check); err == nil {
			notify(ctx, daemon.SdNotifyWatchdog)
		} else if ctx.Err() == nil {
			log.G(ctx).WithError(err).Error("the daemon does not answer itself")
		}
		cancel()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}
