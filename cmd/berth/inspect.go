package main

import (
	"fmt"
	"os"
	"text/tabwriter"
	"time"

	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"berth.dev/berth/layerdisk"
)

func newInspect() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect DISK",
		Short: "Show the images and layers of a layer disk",
		Long: `Inspect prints the identity of a layer disk, its images, its layers with their sizes,
and what the images share. DISK is a file or a block device, which is read without
mounting it, or a directory where a disk is mounted.

It believes nothing that it cannot check: header, superblock, index and the digests
in it must agree. Use berth verify to check that the layers are as they were built.`,
		Example: `  berth inspect disk.img
  berth inspect /dev/sdb --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			disk, err := inspect(args[0])
			if err != nil {
				return err
			}
			out := &printer{w: cmd.OutOrStdout()}
			if asJSON {
				out.json(disk)
			} else {
				printDisk(out, disk)
			}
			if out.err != nil {
				return fmt.Errorf("print disk: %w", out.err)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object instead of tables")
	return cmd
}

// inspection is what berth inspect --json prints. Sizes are in bytes.
type inspection struct {
	layerdisk.Identity
	FormatVersion string            `json:"format_version"`
	FileSystem    string            `json:"file_system"`
	Created       time.Time         `json:"created"`
	DiskBytes     int64             `json:"disk_bytes,omitempty"` // unknown for a mounted directory
	IndexBytes    int64             `json:"index_bytes,omitempty"`
	Images        []inspectedImage  `json:"images"`
	Layers        []inspectedLayer  `json:"layers"`
	Chains        []layerdisk.Chain `json:"chains"`
	// Placed says where the files that images read first lie together, if the disk has such a place.
	Placed  *layerdisk.Placed `json:"placed,omitempty"`
	Sharing sharing           `json:"sharing"`
}

type inspectedImage struct {
	Reference string           `json:"reference"`
	Platform  ocispec.Platform `json:"platform"`
	Index     digest.Digest    `json:"index,omitempty"`
	Manifest  digest.Digest    `json:"manifest"`
	Config    digest.Digest    `json:"config"`
	ChainID   digest.Digest    `json:"chain_id,omitempty"`
	// Layers by number, lowest first.
	Layers []int `json:"layers"`
	// UnpackedBytes of the image's layers; SharedBytes of them are in layers that other images on the disk have too.
	UnpackedBytes int64 `json:"unpacked_bytes"`
	SharedBytes   int64 `json:"shared_bytes"`
}

type inspectedLayer struct {
	layerdisk.Layer
	// Images that have the layer.
	Images int `json:"images"`
}

// sharing sums up what the disk saves by holding each layer once.
type sharing struct {
	// UnpackedBytes of all layers, each once.
	UnpackedBytes int64 `json:"unpacked_bytes"`
	// ImageBytes is the sum over the images, shared layers counted for each.
	ImageBytes   int64 `json:"image_bytes"`
	SharedLayers int   `json:"shared_layers"`
	SharedBytes  int64 `json:"shared_bytes"`
}

func inspect(path string) (*inspection, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("inspect layer disk: %w", err)
	}
	if info.IsDir() {
		ix, id, err := layerdisk.ReadMountedIndex(path)
		if err != nil {
			return nil, err
		}
		return newInspection(ix, id), nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("inspect layer disk: %w", err)
	}
	defer f.Close() //nolint:errcheck // opened for reading
	header, err := layerdisk.ReadHeader(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ix, id, err := layerdisk.ReadIndex(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	disk := newInspection(ix, id)
	disk.DiskBytes, disk.IndexBytes = header.DiskBytes, header.IndexBytes
	return disk, nil
}

func newInspection(ix *layerdisk.Index, id layerdisk.Identity) *inspection {
	disk := &inspection{
		Identity: id, FormatVersion: ix.FormatVersion, FileSystem: ix.FileSystem, Created: ix.Created,
		Images: make([]inspectedImage, 0, len(ix.Images)), Layers: make([]inspectedLayer, 0, len(ix.Layers)), Chains: ix.Chains,
		Placed: ix.Placed,
	}
	for _, l := range ix.Layers {
		disk.Layers = append(disk.Layers, inspectedLayer{Layer: l})
	}
	lookup := layerdisk.NewLookup(ix)
	for i := range ix.Images {
		stack := lookup.Stack(ix.Images[i].ChainID)
		// An image may have a layer twice; it still is one image that has it.
		seen := make(map[int]bool, len(stack))
		for _, l := range stack {
			if !seen[l.Number] {
				seen[l.Number] = true
				disk.Layers[l.Number].Images++
			}
		}
		disk.Images = append(disk.Images, newInspectedImage(&ix.Images[i], stack))
	}
	disk.addSharing()
	return disk
}

func newInspectedImage(img *layerdisk.Image, stack []layerdisk.Layer) inspectedImage {
	out := inspectedImage{
		Reference: img.Reference, Platform: img.Platform, Manifest: img.Manifest.Digest, Config: img.Config.Digest,
		ChainID: img.ChainID, Layers: make([]int, 0, len(stack)),
	}
	if img.IndexDescriptor != nil {
		out.Index = img.IndexDescriptor.Digest
	}
	for _, l := range stack {
		out.Layers = append(out.Layers, l.Number)
		out.UnpackedBytes += l.UnpackedBytes
	}
	return out
}

// addSharing needs to know how many images have each layer.
func (d *inspection) addSharing() {
	for _, l := range d.Layers {
		d.Sharing.UnpackedBytes += l.UnpackedBytes
		if l.Images > 1 {
			d.Sharing.SharedLayers++
			d.Sharing.SharedBytes += l.UnpackedBytes
		}
	}
	for i := range d.Images {
		d.Sharing.ImageBytes += d.Images[i].UnpackedBytes
		for _, n := range d.Images[i].Layers {
			if d.Layers[n].Images > 1 {
				d.Images[i].SharedBytes += d.Layers[n].UnpackedBytes
			}
		}
	}
}

func size(n int64) string { return units.BytesSize(float64(n)) }

func printDisk(out *printer, d *inspection) {
	out.printf("disk      %s\nindex     %s\nformat    %s on %s\ncreated   %s\n",
		d.UUID, d.IndexDigest, d.FormatVersion, d.FileSystem, d.Created.Format(time.RFC3339))
	if d.DiskBytes > 0 {
		out.printf("size      %s (index %s)\n", size(d.DiskBytes), size(d.IndexBytes))
	}
	out.printf("content   %s, %s, %s unpacked\n", count(len(d.Images), "image"), count(len(d.Layers), "layer"), size(d.Sharing.UnpackedBytes))
	out.printf("sharing   %s (%s) in more than one image; without sharing %s\n",
		count(d.Sharing.SharedLayers, "layer"), size(d.Sharing.SharedBytes), size(d.Sharing.ImageBytes))
	if t := d.Placed; t != nil {
		out.printf("placed    %s that images read first lie together: %s at byte %d\n", count(t.Files, "file"), size(t.Length), t.Offset)
	}
	out.printf("\n")

	table := tabwriter.NewWriter(out.w, 0, 0, 2, ' ', 0)
	rows := &printer{w: table, err: out.err}
	rows.printf("IMAGE\tPLATFORM\tLAYERS\tUNPACKED\tSHARED\tMANIFEST\n")
	for _, img := range d.Images {
		rows.printf("%s\t%s\t%d\t%s\t%s\t%s\n", img.Reference, platforms.FormatAll(img.Platform), len(img.Layers),
			size(img.UnpackedBytes), size(img.SharedBytes), shortDigest(img.Manifest))
	}
	out.flush(table, rows)

	out.printf("\n")
	rows = &printer{w: table, err: out.err}
	rows.printf("LAYER\tDIFF ID\tUNPACKED\tINODES\tCOMPRESSED\tIMAGES\n")
	for _, l := range d.Layers {
		rows.printf("%d\t%s\t%s\t%d\t%s\t%d\n", l.Number, shortDigest(l.DiffID), size(l.UnpackedBytes), l.Inodes, compressed(l.Blobs), l.Images)
	}
	out.flush(table, rows)
}

func (p *printer) flush(table *tabwriter.Writer, rows *printer) {
	if p.err = rows.err; p.err == nil {
		p.err = table.Flush()
	}
}

// compressed is the smallest known form, what a registry would have to send at least.
func compressed(blobs []layerdisk.Blob) string {
	if len(blobs) == 0 {
		return "-"
	}
	least := blobs[0].Size
	for _, b := range blobs {
		least = min(least, b.Size)
	}
	return size(least)
}
