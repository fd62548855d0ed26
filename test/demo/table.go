package main

import (
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"berth.dev/berth/test/harness/machine"
)

// subject is an image and what was measured with it.
type subject struct {
	name, ref string
	check     []string
	layers    int
	// bytes of the compressed layers.
	bytes            int64
	berth, overlayfs machine.Pulled
}

func (s *subject) measure(img v1.Image) error {
	manifest, err := img.Manifest()
	if err != nil {
		return fmt.Errorf("read manifest of %s: %w", s.name, err)
	}
	s.layers = len(manifest.Layers)
	for _, l := range manifest.Layers {
		s.bytes += l.Size
	}
	return nil
}

func (d *demo) print(w io.Writer) {
	fmt.Fprintf(w, "\n%-14s %9s %8s  %12s %12s  %9s %9s %7s  %9s %9s\n", "", "", "layers", "fetched", "", "pull", "", "", "first run", "")
	fmt.Fprintf(w, "%-14s %9s %8s  %12s %12s  %9s %9s %7s  %9s %9s\n",
		"image", "size", "on disk", "berth", "overlayfs", "berth", "overlayfs", "ratio", "berth", "overlayfs")
	for _, s := range d.images {
		fmt.Fprintf(w, "%-14s %9s %8s  %12s %12s  %9s %9s %7s  %9s %9s\n", s.name, megabytes(s.bytes),
			fmt.Sprintf("%d/%d", s.berth.Hits, s.layers), megabytes(s.berth.Bytes), megabytes(s.overlayfs.Bytes),
			seconds(s.berth.Time.Seconds()), seconds(s.overlayfs.Time.Seconds()),
			fmt.Sprintf("%.1fx", s.overlayfs.Time.Seconds()/s.berth.Time.Seconds()),
			seconds(s.berth.Run.Seconds()), seconds(s.overlayfs.Run.Seconds()))
	}
	fmt.Fprintln(w, "\nsize: compressed layers; fetched: bytes of blobs that the registry sent (configurations and layers);\n"+
		"the registry is on this machine, so a network only adds to overlayfs. Each pull was on a fresh file system.")
}

func megabytes(bytes int64) string {
	if bytes < 1e5 {
		return fmt.Sprintf("%.1f kB", float64(bytes)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(bytes)/1e6)
}

func seconds(s float64) string { return fmt.Sprintf("%.2f s", s) }
