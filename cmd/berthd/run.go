package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"sync"

	"github.com/containerd/log"
	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"berth.dev/berth/daemon"
	"berth.dev/berth/internal/config"
	"berth.dev/berth/internal/unixsocket"
	"berth.dev/berth/internal/version"
)

// run serves until ctx ends. It leaves mounts and containers alone.
func run(ctx context.Context, c config.Config, load func() (config.Config, error)) (err error) {
	root, err := makeRoot(c.Root)
	if err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(root, "berthd.lock"), "root")
	if err != nil {
		return err
	}
	defer joinClose(&err, lock)
	// Clients that come too early wait in the socket's queue instead of failing. Nothing else runs yet, see
	// unixsocket.Listen.
	listener, err := unixsocket.Listen(ctx, c.Socket)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreClosed(listener.Close())) }()

	reloads := make(chan config.Config)
	d, err := daemon.Open(ctx, daemon.Options{Config: c, Root: root, Reloads: reloads})
	if err != nil {
		if ctx.Err() != nil {
			log.G(ctx).WithError(err).Info("stopped before serving")
			return nil
		}
		return err
	}
	defer joinClose(&err, d)
	var running sync.WaitGroup
	defer running.Wait()
	work, stop := context.WithCancel(ctx)
	defer stop()
	return d.Serve(ctx, listener, watcher{c.Socket, root, func() {
		hangups := make(chan os.Signal, 1)
		signal.Notify(hangups, unix.SIGHUP)
		running.Go(func() {
			defer signal.Stop(hangups)
			reloadOn(work, hangups, load, reloads)
		})
		running.Go(func() { feedWatchdog(work, d.Alive) })
	}})
}

// watcher reports the state of the daemon to systemd and to the log.
type watcher struct {
	socket, root string
	// start starts what runs while the daemon serves.
	start func()
}

var _ daemon.Watcher = watcher{}

// Serving implements daemon.Watcher.
func (w watcher) Serving(ctx context.Context) {
	w.start()
	notify(ctx, systemd.SdNotifyReady)
	log.G(ctx).WithFields(log.Fields{"socket": w.socket, "root": w.root, "version": version.String()}).Info("berthd serves")
}

// Stopping implements daemon.Watcher.
func (w watcher) Stopping(ctx context.Context) {
	notify(ctx, systemd.SdNotifyStopping)
	log.G(ctx).Info("berthd stops, containers go on")
}

// reloadOn reads the configuration again at each hangup and passes it on, until ctx ends.
func reloadOn(ctx context.Context, hangups <-chan os.Signal, load func() (config.Config, error), reloads chan<- config.Config) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangups:
		}
		c, err := load()
		if err == nil {
			err = setLogging(c.Log)
		}
		if err != nil {
			log.G(ctx).WithError(err).Error("configuration is not read again, the old one stays")
			continue
		}
		select {
		case reloads <- c:
		case <-ctx.Done():
		}
	}
}

// makeRoot returns the root without symbolic links, which mounts cannot have in their paths.
func makeRoot(path string) (string, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return "", fmt.Errorf("make root: %w", err)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("find root: %w", err)
	}
	return real, nil
}

func joinClose(err *error, c io.Closer) { *err = errors.Join(*err, c.Close()) }

// ignoreClosed drops the error of closing a closed listener: the server closes its listener too.
func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
