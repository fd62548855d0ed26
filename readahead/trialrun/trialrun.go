// Package trialrun runs an image once, from a layer disk, and records what it reads.
//
// The disk is mounted once more for it, cold and apart from whatever the node does with the same disk, and the
// container runs on an overlay of its layers: neither a pull, nor a snapshot, nor berthd is needed, and what runs on
// the node is not disturbed. Everything that a run makes lies below one directory of its own, is undone when it ends,
// and is found by the next run if it was killed.
package trialrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/recorder"
)

// undoTimeout bounds undoing a run, whose own context may have ended.
const undoTimeout = 30 * time.Second

// Options of one run.
type Options struct {
	// Disk is a file or block device with a layer disk.
	Disk string
	// Image is the normalised reference of an image on it, Platform one of its platforms; the zero value is this
	// machine's.
	Image    string
	Platform ocispec.Platform
	// Args replace the image's entrypoint and command. If there are none, the image's own run.
	Args []string
	// Env is added to the image's, as NAME=VALUE.
	Env []string
	// HostNetwork runs the container in the machine's network; without it has none but its own loopback interface.
	HostNetwork bool
	// Containerd is the address of its socket.
	Containerd string
	// Dir is an absolute path for what runs make: mounts, and what the container writes. Runs of one Dir may overlap.
	Dir string
	// Timeout ends the recording, 0 never. A program that does not end by itself, such as a server, is ready then at
	// the latest.
	Timeout time.Duration
	// Ready, if not nil, ends the recording when a line of the container's output matches.
	Ready *regexp.Regexp
	// Method of recording.
	Method recorder.Method
	// Stdout and Stderr get the container's output.
	Stdout, Stderr io.Writer
}

// EndReason is why a recording ended.
type EndReason string

// Reasons for the end of a recording.
const (
	EndExit    EndReason = "exit"
	EndReady   EndReason = "ready"
	EndTimeout EndReason = "timeout"
)

// Result of a run.
type Result struct {
	List    *accesslist.List
	Summary recorder.Summary
	End     EndReason
	// ImageBytes is the size of all files of the image's layers.
	ImageBytes int64
}

// ErrFailed says that the program did not do what it was started for: its exit status was not 0, or it ended before it
// was ready. Its class is errdefs.ErrFailedPrecondition.
var ErrFailed = fmt.Errorf("program failed: %w", errdefs.ErrFailedPrecondition)

// Run runs the image and undoes everything. Errors: ErrFailed; errdefs.ErrNotFound for an image that the disk does not
// have; those of layerdisk, recorder and containerd. If ctx ends the run is undone and nothing is recorded.
func Run(ctx context.Context, o Options) (_ *Result, err error) {
	img, err := findImage(o)
	if err != nil {
		return nil, err
	}
	w, err := newWorkplace(ctx, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, w.remove(undo))
	}()
	target, err := w.mountDisk(ctx, o.Disk, img)
	if err != nil {
		return nil, err
	}
	// Before the overlay, for which the roots of the layers are read.
	recording, err := recorder.Start(ctx, target, o.Method)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, recording.Close()) }()
	if err := w.mountRoot(target); err != nil {
		return nil, err
	}
	run, err := startContainer(ctx, o, w, img)
	if err != nil {
		return nil, err
	}
	defer func() {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = errors.Join(err, run.remove(undo))
	}()
	end, err := run.wait(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", o.Image, err)
	}
	res := &Result{End: end, ImageBytes: img.bytes}
	if res.List, res.Summary, err = recording.Stop(ctx); err != nil {
		return nil, err
	}
	res.List.Image, res.List.Platform = img.Reference, platforms.FormatAll(img.Platform)
	return res, res.List.Check()
}

// onDisk is an image and where its layers are.
type onDisk struct {
	layerdisk.Image
	index    *layerdisk.Index
	identity layerdisk.Identity
	// layers, the lowest first.
	layers []layerdisk.Layer
	bytes  int64
}

func findImage(o Options) (*onDisk, error) {
	f, err := os.Open(o.Disk)
	if err != nil {
		return nil, fmt.Errorf("open layer disk: %w", err)
	}
	defer f.Close()
	ix, identity, err := layerdisk.ReadIndex(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Disk, err)
	}
	want := o.Platform
	if want.OS == "" {
		want = platforms.DefaultSpec()
	}
	look := layerdisk.NewLookup(ix)
	found := look.Images(o.Image, platforms.Only(want))
	if len(found) == 0 {
		return nil, fmt.Errorf("disk %s has no image %s for %s, \"berth inspect\" lists what it has: %w", o.Disk, o.Image, platforms.FormatAll(want), errdefs.ErrNotFound)
	}
	img := &onDisk{Image: found[0], index: ix, identity: identity, layers: look.Stack(found[0].ChainID)}
	for _, l := range img.layers {
		img.bytes += l.UnpackedBytes
	}
	return img, nil
}
