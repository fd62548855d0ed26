// Command bench measures berth against containerd's own overlayfs on this machine, in one run: pulls and first starts,
// operations of the snapshotter, the builder, reads, memory. It prints a table with what is expected beside what was
// measured, and writes JSON. Nothing is asserted: a busy machine is no failure.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"berth.dev/berth/test/harness/debian"
	"berth.dev/berth/test/harness/leak"
	"berth.dev/berth/test/harness/registry"
	"berth.dev/berth/test/harness/tools"
)

func main() {
	var o options
	flag.StringVar(&o.json, "json", "", "`file` to write the results to")
	flag.BoolVar(&o.quick, "quick", false, "without the large image and with fewer snapshots")
	flag.StringVar(&o.parts, "parts", "", "comma-separated `names` of the parts to measure: builder, pulls, reads, snapshotter, memory, slow, image-snapshots; all without it. pulls, reads and memory need builder")
	flag.StringVar(&o.stock, "stock", "", "serve containerd's overlay snapshotter in a `directory`; for this command itself")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type options struct {
	json, stock, parts string
	quick              bool
}

// wants says whether one of the parts is to be measured.
func (o options) wants(parts ...string) bool {
	return o.parts == "" || slices.ContainsFunc(strings.Split(o.parts, ","), func(p string) bool { return slices.Contains(parts, p) })
}

// bench has what the measurements share.
type bench struct {
	options
	dir, bin string
	reg      *registry.Registry
	images   []subject
	// scipy is for the slow disk alone.
	scipy  subject
	report report
}

// subject is an image to measure with.
type subject struct {
	Name, ref  string
	check      []string
	compressed int64
}

func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it mounts file systems and runs containers")
	}
	if o.stock != "" {
		return serveStock(ctx, o.stock)
	}
	// Short, for unix sockets and mount options; on a disk, which /tmp need not be.
	dir, err := os.MkdirTemp("/var/tmp", "bb")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	b := &bench{options: o, dir: dir}
	defer func() { err = errors.Join(err, b.close()) }()                                                  //nolint:contextcheck // also after the end of ctx
	if err := errors.Join(os.Chmod(dir, 0o711), os.Mkdir(filepath.Join(dir, "bin"), 0o755)); err != nil { //nolint:gosec // see demo
		return fmt.Errorf("make a directory: %w", err)
	}
	if b.bin, err = tools.BuildBerth(ctx, filepath.Join(dir, "bin")); err != nil {
		return err
	}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	disk := filepath.Join(dir, "layers.img")
	for _, part := range []struct {
		name    string
		measure func(context.Context, string) error
	}{
		{"builder", b.builder}, {"pulls", b.pulls}, {"reads", b.reads}, {"snapshotter", b.operations}, {"memory", b.memory},
		{"slow", b.slow}, {"image-snapshots", b.imageSnapshots},
	} {
		if !o.wants(part.name) {
			continue
		}
		fmt.Printf("==> measuring %s\n", part.name)
		if err := part.measure(ctx, disk); err != nil {
			b.report.print(os.Stdout)
			return fmt.Errorf("measure %s: %w", part.name, err)
		}
	}
	b.report.print(os.Stdout)
	return b.writeJSON()
}

// prepare gets the images and starts the registry.
func (b *bench) prepare(ctx context.Context) (err error) {
	fmt.Println("==> getting images, made from Debian packages and kept in the cache")
	store, err := debian.Open(ctx, os.Stdout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	b.reg, err = registry.Start(ctx, registry.Config{Dir: filepath.Join(b.dir, "r"), Storage: store.RegistryStorage()})
	if err != nil {
		return err
	}
	if b.wants("slow") {
		if b.scipy, err = b.makeSubject(ctx, store, "scipy", debian.Scipy()); err != nil {
			return err
		}
	}
	recipes := []debian.Image{debian.Busybox(), debian.Science(), debian.Everything()}
	switch {
	case !b.wants("builder", "pulls", "reads", "memory", "image-snapshots"):
		return nil
	case b.quick:
		recipes = recipes[:2]
	}
	for i, recipe := range recipes {
		s, err := b.makeSubject(ctx, store, []string{"small", "medium", "large"}[i], recipe)
		if err != nil {
			return err
		}
		b.images = append(b.images, s)
	}
	return nil
}

// makeSubject has the image in the registry.
func (b *bench) makeSubject(ctx context.Context, store *debian.Store, name string, recipe debian.Image) (subject, error) {
	s := subject{Name: name, check: recipe.Check}
	img, err := store.Build(ctx, recipe)
	if err != nil {
		return s, err
	}
	if s.ref, err = b.reg.Push(ctx, recipe.Repository, img); err != nil {
		return s, err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return s, fmt.Errorf("read manifest: %w", err)
	}
	for _, l := range manifest.Layers {
		s.compressed += l.Size
	}
	return s, nil
}

func (b *bench) writeJSON() error {
	if b.json == "" {
		return nil
	}
	data, err := json.MarshalIndent(b.report, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.WriteFile(b.json, append(data, '\n'), 0o644); err != nil { //nolint:gosec // nothing secret
		return fmt.Errorf("write results: %w", err)
	}
	fmt.Printf("results are in %s\n", b.json)
	return nil
}

func (b *bench) close() error {
	var errs []error
	if b.reg != nil {
		errs = append(errs, b.reg.Close())
	}
	if err := leak.WaitNone(context.Background(), b.dir); err != nil {
		return errors.Join(append(errs, err)...) // a directory with something mounted in it must not be deleted
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}
