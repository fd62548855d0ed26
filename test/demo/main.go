// Command demo shows berth at work on this machine: it makes real images from Debian packages, builds a layer disk from
// them, pulls them with berth and with plain overlayfs from the same local registry, runs containers from them, and
// prints what each pull fetched and took. It takes away everything but its cache.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"berth.dev/berth/test/harness/berth"
	"berth.dev/berth/test/harness/debian"
	"berth.dev/berth/test/harness/leak"
	"berth.dev/berth/test/harness/machine"
	"berth.dev/berth/test/harness/registry"
	"berth.dev/berth/test/harness/tools"
)

func main() {
	all := flag.Bool("large", false, "also with the large image (2.5 GB), which takes some minutes to make once")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx, *all)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo has what the steps share.
type demo struct {
	dir, bin string
	reg      *registry.Registry
	images   []*subject
}

func run(ctx context.Context, large bool) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("needs root: it mounts file systems and runs containers")
	}
	// Short, for unix sockets and mount options; on a disk, which /tmp need not be.
	dir, err := os.MkdirTemp("/var/tmp", "bd")
	if err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	if err := os.Chmod(dir, 0o711); err != nil { //nolint:gosec // user-namespaced runtimes have to pass through
		return fmt.Errorf("make a directory: %w", err)
	}
	d := &demo{dir: dir}
	defer func() { err = errors.Join(err, d.close()) }() //nolint:contextcheck // also after the end of ctx
	if err := d.prepare(ctx, large); err != nil {
		return err
	}
	disk, err := d.build(ctx)
	if err != nil {
		return err
	}
	if err := d.compare(ctx, disk); err != nil {
		return err
	}
	d.print(os.Stdout)
	return nil
}

// step tells what goes on.
func step(format string, args ...any) { fmt.Printf("\n==> "+format+"\n", args...) }

// prepare gets programs and images, and starts the registry.
func (d *demo) prepare(ctx context.Context, large bool) (err error) {
	step("Getting programs: berth, containerd %s, runc, a registry", tools.DefaultContainerd)
	for _, tool := range []string{"containerd", "runc", "registry"} {
		if _, err := tools.Dir(ctx, tool); err != nil {
			return err
		}
	}
	d.bin = filepath.Join(d.dir, "bin")
	if err := os.Mkdir(d.bin, 0o755); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	if d.bin, err = tools.BuildBerth(ctx, d.bin); err != nil {
		return err
	}
	step("Getting images, made from Debian packages and kept in the cache")
	store, err := debian.Open(ctx, os.Stdout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	d.reg, err = registry.Start(ctx, registry.Config{Dir: filepath.Join(d.dir, "r"), Storage: store.RegistryStorage()})
	if err != nil {
		return err
	}
	recipes := []debian.Image{debian.Busybox(), debian.Web(), debian.Python(), debian.Science()}
	if large {
		recipes = append(recipes, debian.Everything())
	}
	for _, recipe := range recipes {
		img, err := store.Build(ctx, recipe)
		if err != nil {
			return err
		}
		ref, err := d.reg.Push(ctx, recipe.Repository, img)
		if err != nil {
			return err
		}
		s := &subject{name: recipe.Repository, ref: ref, check: recipe.Check}
		if err := s.measure(img); err != nil {
			return err
		}
		d.images = append(d.images, s)
		fmt.Printf("%-16s %2d layers, %6.1f MB compressed\n", s.name, s.layers, float64(s.bytes)/1e6)
	}
	return nil
}

// build the layer disk, with berth's own words.
func (d *demo) build(ctx context.Context) (string, error) {
	disk := filepath.Join(d.dir, "layers.img")
	args := []string{"build", "-o", disk, "--plain-http", d.reg.Host()}
	for _, s := range d.images {
		args = append(args, s.ref)
	}
	step("berth build -o layers.img %d images", len(d.images))
	start := time.Now()
	out, err := berth.Run(ctx, d.bin, nil, args...)
	if err != nil {
		return "", err
	}
	fmt.Print(out)
	fmt.Printf("built in %.1f s\n", time.Since(start).Seconds())
	return disk, nil
}

// compare pulls each image by both ways, each time on a fresh machine, and runs a container from it.
func (d *demo) compare(ctx context.Context, disk string) error {
	step("Pulling with berth and with overlayfs, each image on a fresh node: containerd %s, berthd", tools.DefaultContainerd)
	for _, s := range d.images {
		var err error
		if s.berth, err = d.pull(ctx, s, machine.Options{Snapshotter: berth.PluginName, Disks: []string{disk}}); err != nil {
			return fmt.Errorf("pull %s with berth: %w", s.name, err)
		}
		if s.overlayfs, err = d.pull(ctx, s, machine.Options{Snapshotter: machine.Overlayfs}); err != nil {
			return fmt.Errorf("pull %s with overlayfs: %w", s.name, err)
		}
		fmt.Printf("%-16s pulled twice, ran twice\n", s.name)
	}
	return nil
}

func (d *demo) pull(ctx context.Context, s *subject, opts machine.Options) (p machine.Pulled, err error) {
	opts.Dir, opts.Bin = filepath.Join(d.dir, "m"), d.bin
	m, err := machine.Start(ctx, opts)
	defer func() { err = errors.Join(err, m.Close()) }() //nolint:contextcheck // also after the end of ctx
	if err != nil {
		return p, err
	}
	return m.Pull(ctx, d.reg, s.ref, s.check)
}

// close takes everything away and says so if something is left.
func (d *demo) close() error {
	var errs []error
	if d.reg != nil {
		errs = append(errs, d.reg.Close())
	}
	if err := leak.WaitNone(context.Background(), d.dir); err != nil {
		return errors.Join(append(errs, err)...) // a directory with something mounted in it must not be deleted
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}
