package attached

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"berth.dev/berth/blockdev/sysblock"
)

const (
	// settleTime gathers the events that come with one disk: itself, its partitions, its multipath device.
	settleTime = 100 * time.Millisecond
	// rescanEvery is for what comes without an event, such as a disk that was written to where no udev watches, or one
	// that was unmounted.
	rescanEvery = 5 * time.Minute
	// deafEvery is instead of that where events cannot be had.
	deafEvery = 5 * time.Second
	// unreadFirst is when a device that gave an error is read again; the wait doubles up to rescanEvery.
	unreadFirst = time.Second
)

// Rescan makes a running Watch read all devices again.
func (d *Driver) Rescan() {
	select {
	case d.rescan <- struct{}{}:
	default:
	}
}

// Watch looks for layer disks until ctx ends: it calls tell with what is there now, then each time that has changed. It
// begins to listen before it looks, so that nothing is missed in between. While it runs, Attach learns of new devices
// at once. Its error is that of ctx, or says why devices cannot be listed at all.
func (d *Driver) Watch(ctx context.Context, tell func(View)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	names := make(chan string, 1024)
	listener, noEvents := sysblock.Listen()
	if noEvents == nil {
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			listen(ctx, listener, names)
		}()
		defer func() {
			cancel()
			<-ended
			_ = listener.Close() // nothing was written
		}()
	}
	w := watch{driver: d, names: names, every: rescanEvery, unreadWait: unreadFirst}
	if noEvents != nil {
		w.every = deafEvery
	}
	last := ""
	for first := true; ; first = false {
		view, err := d.scanner.scan(ctx)
		if err != nil {
			return fmt.Errorf("watch for layer disks: %w", err)
		}
		view.EventsErr = noEvents
		d.devices.ring()
		if now := view.summary(); first || now != last {
			last = now
			tell(view)
		}
		if err := w.wait(ctx, view.unread); err != nil {
			return fmt.Errorf("watch for layer disks: %w", err)
		}
	}
}

// listen passes on the names of devices that have come, gone or changed; an empty one stands for all.
func listen(ctx context.Context, l *sysblock.Listener, names chan<- string) {
	for {
		e, err := l.Next(ctx)
		if err != nil && !errors.Is(err, sysblock.ErrOverrun) {
			return // the end, or a socket that is broken: what is left is looking now and then
		}
		select {
		case names <- e.Name: // empty after an overrun
		case <-ctx.Done():
			return
		}
	}
}

// watch waits for reasons to look again.
type watch struct {
	driver     *Driver
	names      <-chan string
	every      time.Duration
	unreadWait time.Duration
}

func (w *watch) wait(ctx context.Context, unread bool) error {
	every := w.every
	if unread {
		every = min(every, w.unreadWait)
		w.unreadWait = min(2*w.unreadWait, rescanEvery)
	} else {
		w.unreadWait = unreadFirst
	}
	timer := time.NewTimer(every)
	defer timer.Stop()
	headers := w.driver.scanner.headers
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-w.driver.rescan:
		headers.forget("")
		return nil
	case <-timer.C:
		if !unread {
			headers.forget("")
		}
		return nil
	case name := <-w.names:
		headers.forget(name)
	}
	settled := time.NewTimer(settleTime)
	defer settled.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-settled.C:
			return nil
		case name := <-w.names:
			headers.forget(name)
		}
	}
}

// summary is the same for two views if nothing has changed between them.
func (v View) summary() string {
	var b strings.Builder
	for _, d := range v.Disks {
		fmt.Fprintf(&b, "%s %s %d", d.VolumeID, d.Device.Name, d.Device.Sequence)
		for _, o := range d.Others {
			fmt.Fprintf(&b, " %s %d", o.Name, o.Sequence)
		}
		b.WriteByte('\n')
	}
	for _, r := range v.Refused {
		fmt.Fprintf(&b, "%s %d %v\n", r.Device.Name, r.Device.Sequence, r.Err)
	}
	return b.String()
}
