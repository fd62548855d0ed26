package containerd

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// CtrTimeout bounds one call of ctr.
const CtrTimeout = 5 * time.Minute

// PullOptions of Pull.
type PullOptions struct {
	// Namespace of containerd; empty for that of the configuration.
	Namespace string
	// Snapshotter to unpack for; empty for the default.
	Snapshotter string
	// PlainHTTP speaks to the registry without TLS.
	PlainHTTP bool
	// User is "name:password" for the registry; empty for none.
	User string
}

// Ctr runs the ctr of the daemon's version in a namespace and returns what it printed; an error has its complaint.
func (d *Daemon) Ctr(ctx context.Context, namespace string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, CtrTimeout)
	defer cancel()
	namespace = cmp.Or(namespace, d.cfg.Namespace, "default")
	all := append([]string{"--address", d.cfg.socket(), "--namespace", namespace}, args...)
	cmd := exec.CommandContext(ctx, filepath.Join(d.bin, "ctr"), all...)
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Pull has the daemon's transfer service pull and unpack an image: the path by which ctr and CRI pull by default. The
// ctr of 1.7 has to be told so, unpacks for named platforms only, and has no plain HTTP.
func (d *Daemon) Pull(ctx context.Context, ref string, opts PullOptions) error {
	args := []string{"images", "pull"}
	if d.cfg.Legacy() {
		if opts.PlainHTTP {
			return fmt.Errorf("pull %s: the transfer service of containerd %s has no plain HTTP: use TLS", ref, d.cfg.Version)
		}
		args = append(args, "--local=false", "--platform", Platform)
	} else if opts.PlainHTTP {
		args = append(args, "--plain-http")
	}
	if opts.Snapshotter != "" {
		args = append(args, "--snapshotter", opts.Snapshotter)
	}
	if opts.User != "" {
		args = append(args, "--user", opts.User)
	}
	_, err := d.Ctr(ctx, opts.Namespace, append(args, ref)...)
	return err
}

// RunOptions of Run.
type RunOptions struct {
	Namespace   string
	Snapshotter string
	// Detach returns when the container runs, instead of when it has ended.
	Detach bool
}

// Run a command in a new container of an image and return its output.
func (d *Daemon) Run(ctx context.Context, ref, container string, opts RunOptions, command ...string) (string, error) {
	args := []string{"run"}
	if opts.Detach {
		args = append(args, "--detach")
	} else {
		args = append(args, "--rm")
	}
	if opts.Snapshotter != "" {
		args = append(args, "--snapshotter", opts.Snapshotter)
	}
	return d.withOutput(ctx, opts.Namespace, args, append([]string{ref, container}, command...))
}

// Exec runs a command in a running container and returns its output.
func (d *Daemon) Exec(ctx context.Context, namespace, container string, command ...string) (string, error) {
	id := fmt.Sprintf("e%d", time.Now().UnixNano())
	return d.withOutput(ctx, namespace, []string{"tasks", "exec", "--exec-id", id}, append([]string{container}, command...))
}

// withOutput runs ctr with the container's output going to a file. By its own way, ctr can lose the output of a process
// that ends at once: it stops to copy when the process has ended.
func (d *Daemon) withOutput(ctx context.Context, namespace string, flags, args []string) (string, error) {
	f, err := os.CreateTemp(d.cfg.Dir, "output")
	if err != nil {
		return "", fmt.Errorf("make file for output: %w", err)
	}
	if err := f.Close(); err != nil {
		return "", fmt.Errorf("make file for output: %w", err)
	}
	_, err = d.Ctr(ctx, namespace, slices.Concat(flags, []string{"--log-uri", "file://" + f.Name()}, args)...)
	output, readErr := os.ReadFile(f.Name())
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, output)
	}
	return string(output), readErr
}

// RemoveContainer kills a container's task, if there is one, and deletes both.
func (d *Daemon) RemoveContainer(ctx context.Context, namespace, container string) error {
	if _, err := d.Ctr(ctx, namespace, "tasks", "delete", "--force", container); err != nil && !strings.Contains(err.Error(), "not found") {
		return err
	}
	_, err := d.Ctr(ctx, namespace, "containers", "delete", container)
	return err
}

// RemoveImage deletes an image and waits until garbage collection has run.
func (d *Daemon) RemoveImage(ctx context.Context, namespace, ref string) error {
	_, err := d.Ctr(ctx, namespace, "images", "rm", "--sync", ref)
	return err
}
