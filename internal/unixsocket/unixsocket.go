// Package unixsocket listens on unix sockets that only root may connect to.
package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// probeTimeout is for connecting to a socket that may be somebody's: connecting to a local one is a matter of
// microseconds, even if its owner is busy.
const probeTimeout = 2 * time.Second

// maxPath is what the kernel takes of a socket's path, without the zero byte at its end.
const maxPath = len(unix.RawSockaddrUnix{}.Path) - 1

// CheckPath refuses a path that is too long for a unix socket; the kernel says only that it is invalid.
func CheckPath(path string) error {
	if more := len(path) - maxPath; more > 0 {
		return fmt.Errorf("socket path %s has %d bytes, %d more than the %d that a unix socket's may have: name a shorter one: %w",
			path, len(path), more, maxPath, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Listen makes the socket with mode 0600. A socket that somebody listens on is never taken away, what a crashed daemon
// left behind is, and any other file is refused.
//
// It must be called while nothing else in the process makes files: the mode is made right from the start by the
// process's umask, for a chmod afterwards would leave a moment in which others can connect.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer unix.Umask(unix.Umask(0o177))
	l, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return l, nil
}

func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != os.ModeSocket:
		return errors.New("there is a file that is no socket: remove it, or name another socket")
	}
	conn, err := (&net.Dialer{Timeout: probeTimeout}).DialContext(ctx, "unix", path)
	if err == nil {
		return errors.Join(errors.New("somebody listens on it: stop the other daemon, or name another socket"), conn.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("cannot tell whether somebody listens on it: %w", err)
	}
	return os.Remove(path)
}
