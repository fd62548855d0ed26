package sysblock

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Event is what the kernel announces about a block device (Documentation/ABI/stable/sysfs-uevent,
// lib/kobject_uevent.c).
type Event struct {
	// Action is "add", "remove", "change" and a few others.
	Action string
	// Name of the device, as in Device.
	Name string
}

const (
	// kernelGroup is the multicast group of events as the kernel sends them; udev sends its own to another.
	kernelGroup = 1
	// maxEventBytes is more than the kernel's UEVENT_BUFFER_SIZE of 2048 and a header.
	maxEventBytes = 8192
	// receiveBytes is room for some thousand events, as many as a large machine has at its boot.
	receiveBytes = 2 << 20
)

// ErrOverrun says that events were lost, because there were more than could be read in time: look at everything.
var ErrOverrun = errors.New("events about devices were lost")

// Listener receives the kernel's events about block devices. It is for one goroutine; Close may be called by another.
type Listener struct {
	socket *os.File
	buf    []byte
}

// Listen begins to receive events. Where the process may not, as in a user namespace, that is the error.
func Listen() (*Listener, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen for events about devices: %w", err)
	}
	socket := os.NewFile(uintptr(fd), "uevent")
	// Without the right to exceed the system's limit the usual size has to do: what is lost is noticed.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBytes)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for events about devices: %w", err), socket.Close())
	}
	return &Listener{socket: socket, buf: make([]byte, maxEventBytes)}, nil
}

// Close ends listening, also a Next that waits.
func (l *Listener) Close() error { return l.socket.Close() }

// Next waits for the next event about a block device. After ErrOverrun it can be called again.
func (l *Listener) Next(ctx context.Context) (Event, error) {
	if err := l.socket.SetReadDeadline(time.Time{}); err != nil {
		return Event{}, fmt.Errorf("receive event about a device: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = l.socket.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		data, err := l.receive()
		if ctx.Err() != nil {
			return Event{}, ctx.Err()
		}
		if errors.Is(err, unix.ENOBUFS) {
			return Event{}, ErrOverrun
		}
		if err != nil {
			return Event{}, fmt.Errorf("receive event about a device: %w", err)
		}
		if e, ok := parseEvent(data); ok {
			return e, nil
		}
	}
}

// receive gives the next message of the kernel; anything else is given as nothing.
func (l *Listener) receive() ([]byte, error) {
	raw, err := l.socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	var (
		n       int
		from    unix.Sockaddr
		recvErr error
	)
	err = raw.Read(func(fd uintptr) bool {
		n, from, recvErr = unix.Recvfrom(int(fd), l.buf, 0)
		return !errors.Is(recvErr, unix.EAGAIN) && !errors.Is(recvErr, unix.EINTR)
	})
	if err := errors.Join(err, recvErr); err != nil {
		return nil, err
	}
	// Any process with the right can send to the group; the kernel alone has port 0.
	if nl, ok := from.(*unix.SockaddrNetlink); !ok || nl.Pid != 0 {
		return nil, nil
	}
	return l.buf[:n], nil
}

// parseEvent reads "ACTION@DEVPATH" and NUL-separated KEY=VALUE pairs. ok is false for what is not about a block
// device.
func parseEvent(data []byte) (e Event, ok bool) {
	head, rest, found := bytes.Cut(data, []byte{0})
	if !found || !bytes.Contains(head, []byte("@")) {
		return Event{}, false
	}
	block := false
	for field := range bytes.SplitSeq(rest, []byte{0}) {
		key, value, _ := strings.Cut(string(field), "=")
		switch key {
		case "ACTION":
			e.Action = value
		case "SUBSYSTEM":
			block = value == "block"
		case "DEVPATH":
			// sysfs writes '!' for the '/' in a name, and so does List.
			e.Name = value[strings.LastIndexByte(value, '/')+1:]
		}
	}
	return e, block && e.Action != "" && e.Name != ""
}
