package trialrun

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/retry"
)

const (
	// namespace of containerd for runs, so that nobody takes their containers for his.
	namespace = "berth-record"
	// connectTimeout is for a socket on this machine.
	connectTimeout = 10 * time.Second
)

// container is one that runs.
type container struct {
	client *client.Client
	id     string
	task   client.Task
	exited <-chan client.ExitStatus
	output *watcher
}

// startContainer starts the image's program on the workplace's root.
func startContainer(ctx context.Context, o Options, w *workplace, img *onDisk) (_ *container, err error) {
	c := &container{id: w.id(), output: newWatcher(o.Ready)}
	if c.client, err = connect(ctx, o.Containerd); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
			defer cancel()
			err = errors.Join(fmt.Errorf("start %s: %w", img.Reference, err), c.remove(undo))
		}
	}()
	ctx = namespaces.WithNamespace(ctx, namespace)
	made, err := c.client.NewContainer(ctx, c.id, client.WithNewSpec(specOpts(o, w, img)...))
	if err != nil {
		return nil, err
	}
	stdout, stderr := c.output.stream(o.Stdout), c.output.stream(o.Stderr)
	if c.task, err = made.NewTask(ctx, cio.NewCreator(cio.WithStreams(nil, stdout, stderr))); err != nil {
		return nil, err
	}
	if c.exited, err = c.task.Wait(ctx); err != nil {
		return nil, err
	}
	return c, c.task.Start(ctx)
}

func specOpts(o Options, w *workplace, img *onDisk) []oci.SpecOpts {
	opts := []oci.SpecOpts{
		oci.WithRootFSPath(w.path(rootDir)),
		oci.WithImageConfig(diskImage{img}),
		// A name of its own at the top leaves no directory of the namespace behind.
		oci.WithCgroup("/" + namespace + "-" + w.id()),
		oci.WithEnv(o.Env),
	}
	if len(o.Args) > 0 {
		opts = append(opts, oci.WithProcessArgs(o.Args...))
	}
	if o.HostNetwork {
		opts = append(opts, oci.WithHostNamespace(specs.NetworkNamespace), oci.WithHostHostsFile, oci.WithHostResolvconf)
	}
	return opts
}

// wait returns when the recording should end.
func (c *container) wait(ctx context.Context, o Options) (EndReason, error) {
	var timeout <-chan time.Time
	if o.Timeout > 0 {
		timer := time.NewTimer(o.Timeout)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-timeout:
		return EndTimeout, nil
	case <-c.output.ready:
		return EndReady, nil
	case status := <-c.exited:
		if err := ctx.Err(); err != nil {
			return "", err
		}
		c.task.IO().Wait() // the last lines
		select {
		case <-c.output.ready:
			return EndReady, nil
		default:
		}
		code, _, err := status.Result()
		switch {
		case err != nil:
			return "", err
		case code != 0:
			return "", fmt.Errorf("it ended with status %d: %w", code, ErrFailed)
		case o.Ready != nil:
			return "", fmt.Errorf("it ended before a line matched %q: %w", o.Ready, ErrFailed)
		}
		return EndExit, nil
	}
}

// remove kills the container and removes all of it.
func (c *container) remove(ctx context.Context) error {
	return errors.Join(removeFrom(ctx, c.client, c.id), c.client.Close())
}

// connect wants an answer: a client alone connects when it is first used.
func connect(ctx context.Context, address string) (*client.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", address)
	if err == nil {
		err = conn.Close()
	}
	var c *client.Client
	if err == nil {
		c, err = client.New(address, client.WithTimeout(connectTimeout))
	}
	if err != nil {
		return nil, fmt.Errorf("connect to containerd, %w", err)
	}
	return c, nil
}

// removeContainer removes one that a run has left, if there is one.
func removeContainer(ctx context.Context, address, id string) error {
	c, err := connect(ctx, address)
	if err != nil {
		return err
	}
	return errors.Join(removeFrom(ctx, c, id), c.Close())
}

func removeFrom(ctx context.Context, c *client.Client, id string) error {
	ctx = namespaces.WithNamespace(ctx, namespace)
	made, err := c.LoadContainer(ctx, id)
	if err == nil {
		var task client.Task
		if task, err = made.Task(ctx, nil); err == nil {
			_, err = task.Delete(ctx, client.WithProcessKill)
		}
		if err == nil || errdefs.IsNotFound(err) {
			err = made.Delete(ctx)
		}
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove container %s of namespace %s: %w", id, namespace, err)
	}
	// Others may be running.
	if err := c.NamespaceService().Delete(ctx, namespace); err != nil && !errdefs.IsNotFound(err) && !errdefs.IsFailedPrecondition(err) {
		return fmt.Errorf("remove namespace %s: %w", namespace, err)
	}
	return nil
}

// retryBusy repeats what is in use.
func retryBusy(ctx context.Context, do func() error) error {
	return retry.Do(ctx, func(context.Context) error {
		err := do()
		if errors.Is(err, blockdev.ErrInUse) || errors.Is(err, syscall.EBUSY) {
			return fmt.Errorf("%w: %w", err, blockdev.ErrNotReady)
		}
		return err
	})
}

// diskImage is an image whose config is in the disk's index. Of its store only that can be read, which is all that
// containerd asks it for.
type diskImage struct{ img *onDisk }

var _ oci.Image = diskImage{}

// Config descriptor of the image.
func (d diskImage) Config(context.Context) (ocispec.Descriptor, error) {
	return d.img.Config, nil
}

// ContentStore has the config.
func (d diskImage) ContentStore() content.Store { return configStore{raw: d.img.RawConfig} }

type configStore struct {
	content.Store
	raw []byte
}

// ReaderAt reads the config, whatever was asked for: there is nothing else.
func (s configStore) ReaderAt(context.Context, ocispec.Descriptor) (content.ReaderAt, error) {
	return blob{bytes.NewReader(s.raw)}, nil
}

type blob struct{ *bytes.Reader }

func (b blob) Close() error { return nil }

var _ io.ReaderAt = blob{}
