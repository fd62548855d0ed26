package debian

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"berth.dev/berth/test/harness/image"
	"berth.dev/berth/test/harness/tools"
)

// Store makes images and keeps them. It has a directory in the cache; Close removes what is there for the time of work.
type Store struct {
	dir  string
	lock *os.File
	log  io.Writer
}

// Open the store, waiting for another process that has it open. What takes long is told to log.
func Open(ctx context.Context, log io.Writer) (*Store, error) {
	dir, err := tools.CacheDir("images")
	if err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock of images: %w", err)
	}
	for ctx.Err() == nil {
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
	if err != nil || ctx.Err() != nil {
		return nil, errors.Join(fmt.Errorf("lock images: %w", err), ctx.Err(), lock.Close())
	}
	s := &Store{dir: dir, lock: lock, log: log}
	// What a killed run left. Its mounts went with it or are unmounted first.
	return s, errors.Join(s.clean(), os.MkdirAll(s.path("layers"), 0o755), os.MkdirAll(s.path("apt/lists/partial"), 0o755),
		os.MkdirAll(s.path("apt/archives/partial"), 0o755), os.MkdirAll(s.path("registry"), 0o755))
}

func (s *Store) path(name string) string { return filepath.Join(s.dir, name) }

// work has a short name: the trees of all layers are named in one page of mount options.
func (s *Store) work() string { return s.path("w") }

func (s *Store) clean() error {
	if err := os.Remove(s.path("apt/lists/.fetched")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("forget package lists: %w", err)
	}
	return os.RemoveAll(s.work())
}

// Close removes the unpacked trees; the layers stay.
func (s *Store) Close() error { return errors.Join(s.clean(), s.lock.Close()) }

// RegistryStorage is a directory of a registry for Push to fill.
func (s *Store) RegistryStorage() string { return s.path("registry") }

// Build the image, or take it from the cache.
func (s *Store) Build(ctx context.Context, recipe Image) (v1.Image, error) {
	keys, err := recipe.keys()
	if err != nil {
		return nil, err
	}
	layers := make([]v1.Layer, len(keys))
	for n, key := range keys {
		l, err := openLayer(s.path("layers"), key)
		if err != nil {
			return nil, err
		}
		if l == nil {
			start := time.Now()
			fmt.Fprintf(s.log, "making layer %d of %d of %s (once on this machine)\n", n+1, len(keys), recipe.Repository)
			if l, err = s.makeLayer(ctx, recipe.Steps[n], keys[:n], key); err != nil {
				return nil, fmt.Errorf("make layer %d of %s: %w", n+1, recipe.Repository, err)
			}
			fmt.Fprintf(s.log, "  %d MB, compressed %d MB, %.0f s\n", l.meta.TarSize/1e6, l.meta.Size/1e6, time.Since(start).Seconds())
		}
		layers[n] = l
	}
	return image.FromLayers(layers, recipe.Command, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"})
}

func (s *Store) makeLayer(ctx context.Context, step Step, below []string, key string) (*layer, error) {
	tree, work := filepath.Join(s.work(), key), filepath.Join(s.work(), key+".w")
	if err := errors.Join(os.MkdirAll(tree, 0o755), os.MkdirAll(work, 0o755)); err != nil {
		return nil, fmt.Errorf("make work directories: %w", err)
	}
	if len(below) == 0 || strings.HasPrefix(step.Script, "busybox") {
		return s.makeBase(ctx, step, key, tree, work)
	}
	trees, err := s.trees(ctx, below)
	if err != nil {
		return nil, err
	}
	var l *layer
	err = mount.WithTempMount(ctx, overlay(trees, tree, work), func(merged string) error {
		if err := s.run(ctx, merged, step.script()); err != nil {
			return err
		}
		return mount.WithTempMount(ctx, overlay(trees, "", ""), func(lower string) (err error) {
			l, err = writeLayer(ctx, s.path("layers"), key, lower, merged)
			return err
		})
	})
	return l, err
}

// makeBase makes the layers that are not made by a command in the image.
func (s *Store) makeBase(ctx context.Context, step Step, key, tree, empty string) (*layer, error) {
	var err error
	switch step.Script {
	case baseStep().Script:
		err = command(ctx, "mmdebstrap", "--quiet", "--variant=minbase", "--format=directory", "bookworm", tree)
		if err == nil {
			// Container runtimes mount over it.
			err = os.WriteFile(filepath.Join(tree, "etc/resolv.conf"), nil, 0o644) //nolint:gosec // world-readable as everywhere
		}
	case "busybox":
		err = image.WriteBusybox(tree)
	case "busybox app":
		err = writeApp(tree)
	default:
		err = fmt.Errorf("unknown base %q", step.Script)
	}
	if err != nil {
		return nil, err
	}
	return writeLayer(ctx, s.path("layers"), key, empty, tree)
}

func writeApp(tree string) error {
	app := filepath.Join(tree, "app")
	if err := os.MkdirAll(app, 0o755); err != nil {
		return fmt.Errorf("make application: %w", err)
	}
	for i := range 200 {
		if err := os.WriteFile(filepath.Join(app, "data"+strconv.Itoa(i)), bytes.Repeat([]byte{byte(i)}, 500), 0o644); err != nil { //nolint:gosec // an image's file
			return fmt.Errorf("write application: %w", err)
		}
	}
	script := "cat /app/data7 >/dev/null && echo ready; [ \"$1\" = check ] || exec sleep 3600\n"
	if err := os.WriteFile(filepath.Join(app, "run"), []byte(script), 0o755); err != nil { //nolint:gosec // a program
		return fmt.Errorf("write application: %w", err)
	}
	return nil
}

// trees are the unpacked layers, unpacked again if they were made in an earlier run.
func (s *Store) trees(ctx context.Context, keys []string) ([]string, error) {
	trees := make([]string, len(keys))
	for n, key := range keys {
		trees[n] = filepath.Join(s.work(), key)
		if _, err := os.Stat(trees[n]); err == nil {
			continue
		}
		l, err := openLayer(s.path("layers"), key)
		if err != nil {
			return nil, err
		}
		if err := os.MkdirAll(trees[n], 0o755); err != nil {
			return nil, fmt.Errorf("make work directory: %w", err)
		}
		if err := l.extract(ctx, trees[n]); err != nil {
			return nil, err
		}
	}
	return trees, nil
}

// run a script in a tree. The mounts it needs are made in a mount namespace of its own, and all its processes are in a
// process namespace, so that nothing stays however it ends.
func (s *Store) run(ctx context.Context, root, script string) error {
	const setup = `mount --bind "$2" "$1/var/lib/apt/lists"
mount --bind "$3" "$1/var/cache/apt/archives"
mount --bind /etc/resolv.conf "$1/etc/resolv.conf"
mount -t proc proc "$1/proc"
exec chroot "$1" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 /bin/sh -eu -c "$4"`
	return command(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "/bin/sh", "-eu", "-c", setup, "sh",
		root, s.path("apt/lists"), s.path("apt/archives"), script)
}

func command(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.WaitDelay = 10 * time.Second
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		b := output.Bytes()
		return fmt.Errorf("run %s: %w\n%s", args[0], err, b[max(0, len(b)-4000):])
	}
	return nil
}
