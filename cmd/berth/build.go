package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"berth.dev/berth/builder"
	"berth.dev/berth/internal/program"
	"berth.dev/berth/layerdisk/tree"
)

const buildLong = `Build unpacks container images once, onto a layer disk: a file, or a block device, with one
EROFS file system that holds each distinct layer of all images as a directory. berthd serves the
layers of attached disks to containerd, which then neither fetches nor unpacks them.

IMAGE is one of
  REFERENCE                          an image in a registry; short names are Docker Hub's
  [NAME=]oci:DIR[:REF]               an image in an OCI image layout
  [NAME=]docker-archive:FILE[:REF]   an image saved by "docker save" or "ctr images export"
REF chooses one of several images there by name, tag or digest. NAME is the reference under which
the image stands on the disk, where the layout or archive has no full one.

Each layer is fetched and unpacked once, however many images share it. Blob digests and diff IDs are
verified. The same images always give the same bytes (with --fs ext4: the same index and the same
trees, but not the same bytes). The disk appears at its path only when it is complete; if the build
fails or is interrupted, nothing is left. On a block device the first block is cleared first and
written last.

Credentials come from the docker configuration (docker login, credential helpers, DOCKER_CONFIG).

With --json each line of standard output is an object with "event", one of
  image-resolved   "image": reference, platform, manifest, layers
  planned          "plan": images, layers, blob_bytes
  layer-started    "layer": number, diff_id, blob, image, blob_bytes, fetched_bytes
  layer-progress   the same
  layer-done       the same, and unpacked_bytes, inodes
  finishing        metadata and index are being written
  result           "result": identity (uuid, index_digest), file_system, images, layers,
                   shared_layers, layer_uses, fetched_bytes, unpacked_bytes, inodes,
                   reused_layers, reused_bytes, taken_from (disk, layers,
                   unpacked_bytes), placed_files, placed_bytes, disk_bytes,
                   written_bytes, duration_nanoseconds
  contents         with --plan: "contents": images, layers (diff_id, blob, blob_bytes), chains
  error            "error": what went wrong, "code": its class, such as NotFound, and if the
                   disk was too small "needed_bytes"; the exit status is not 0`

const buildExample = `  berth build -o disk.img nginx:1.27 redis registry.example/team/app@sha256:…
  berth build -o /dev/sdb --platform linux/amd64 --platform linux/arm64 debian:12
  berth build -o disk.img --plain-http localhost:5000 localhost:5000/app:1
  berth build -o disk.img --size 20GiB registry.example/app:1=oci:./layout docker-archive:app.tar
  berth build -o disk.img --access-list python.accesslist registry.example/python-app:1
  berth build -o disk.img --json nginx | jq -c 'select(.event=="result").result'`

// buildFlags are the flags as given.
type buildFlags struct {
	output, fileSystem, size, created, tempDir string
	platforms                                  []string
	force, reuse, plan, registryOnly, json     bool
	dns, accessLists, takeFrom                 []string
	parallel                                   int
	maxLayerSize                               string
	maxLayerFiles                              int64
	registry                                   builder.RegistryOptions
}

func newBuild() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:     "build -o FILE|DEVICE IMAGE...",
		Short:   "Make a layer disk from container images",
		Long:    buildLong,
		Example: buildExample,
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runBuild(cmd.Context(), f, args, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&f.output, "output", "o", "", "file or block device to make the disk in (required)")
	flags.BoolVarP(&f.force, "force", "f", false, "replace an existing file, or the content of a device that is not blank")
	flags.BoolVar(&f.reuse, "reuse", false, "add to the layer disk that the device or file holds: layers that are there are neither fetched nor\nwritten; if the build fails, what was there is lost")
	flags.StringArrayVar(&f.takeFrom, "take-from", nil, "layer disk, a device or file, to copy layers from instead of fetching them; it is only read;\nmay be repeated")
	flags.BoolVar(&f.plan, "plan", false, "only resolve the images and print what they consist of; needs no --output")
	flags.BoolVar(&f.registryOnly, "registry-only", false, "take every IMAGE for a reference, also one that looks like oci:DIR")
	flags.StringSliceVar(&f.dns, "dns", nil, "address of a name server to find registries with; may be repeated (default: the machine's)")
	flags.StringSliceVar(&f.accessLists, "access-list", nil, "access list made by \"berth record\": what images read first is placed together; may be repeated")
	flags.StringVar(&f.fileSystem, "fs", "erofs", "file system: erofs, or ext4 for nodes whose kernel has no EROFS (needs root here)")
	flags.StringVar(&f.size, "size", "", "size of the disk, such as 20GiB (units are powers of 1024); out of space is an error\n(default: as large as its content)")
	flags.StringSliceVar(&f.platforms, "platform", nil, "platform of the images, such as linux/arm64; may be repeated (default: this machine's)")
	flags.StringVar(&f.created, "created", "", "creation time in the index, RFC 3339 or seconds since 1970\n(default: $SOURCE_DATE_EPOCH, else the newest image's)")
	flags.IntVarP(&f.parallel, "parallel", "p", 0, "layers fetched and unpacked at once (default: half the processors, from 2 to 4)")
	flags.StringVar(&f.tempDir, "tmp-dir", "", "directory for layers that have to wait for their turn (default: that of the output)")
	flags.StringVar(&f.maxLayerSize, "max-layer-size", "1TiB", "refuse layers whose files are larger together")
	flags.Int64Var(&f.maxLayerFiles, "max-layer-files", tree.DefaultLimits().MaxEntries, "refuse layers with more files")
	flags.StringSliceVar(&f.registry.PlainHTTP, "plain-http", nil, "registry HOST[:PORT] to speak HTTP with, * for all; may be repeated")
	flags.StringSliceVar(&f.registry.InsecureSkipVerify, "insecure-skip-verify", nil, "registry HOST[:PORT] whose certificate is not checked, * for all; may be repeated")
	flags.StringVar(&f.registry.HostsDir, "hosts-dir", "", "directory with containerd's hosts.toml files (mirrors, certificates), such as /etc/containerd/certs.d")
	flags.BoolVar(&f.json, "json", false, "write events and the result as lines of JSON to standard output")
	cmd.MarkFlagsOneRequired("output", "plan")
	cmd.MarkFlagsMutuallyExclusive("output", "plan")
	return cmd
}

func (f buildFlags) options(images []string) (builder.Options, error) {
	o := builder.Options{
		Images: images, Registry: f.registry, RegistryOnly: f.registryOnly, Parallel: f.parallel,
		Output: builder.Output{Path: f.output, Force: f.force, Reuse: f.reuse, TakeFrom: f.takeFrom, FileSystem: f.fileSystem, TempDir: f.tempDir},
	}
	if f.size != "" {
		size, err := units.RAMInBytes(f.size)
		if err != nil || size <= 0 {
			return o, fmt.Errorf("--size %q is no size such as 20GiB", f.size)
		}
		const block = 4096
		o.Output.SizeBytes = size - size%block
		if o.Output.SizeBytes == 0 {
			return o, fmt.Errorf("--size %q is less than one block of %d bytes", f.size, block)
		}
	}
	var err error
	if o.Registry.NameServers, err = nameServers(f.dns); err != nil {
		return o, err
	}
	for _, file := range f.accessLists {
		list, err := readAccessList(file)
		if err != nil {
			return o, fmt.Errorf("--access-list: %w", err)
		}
		o.AccessLists = append(o.AccessLists, list)
	}
	if o.Limits.MaxBytes, err = units.RAMInBytes(f.maxLayerSize); err != nil || o.Limits.MaxBytes <= 0 {
		return o, fmt.Errorf("--max-layer-size %q is no size such as 20GiB", f.maxLayerSize)
	}
	if o.Limits.MaxEntries = f.maxLayerFiles; f.maxLayerFiles <= 0 {
		return o, fmt.Errorf("--max-layer-files %d is not positive", f.maxLayerFiles)
	}
	if o.Platforms, err = platforms.ParseAll(f.platforms); err != nil {
		return o, fmt.Errorf("--platform: %w", err)
	}
	if f.created != "" {
		if o.Created, err = parseTime(f.created); err != nil {
			return o, fmt.Errorf("--created: %w", err)
		}
	} else if epoch := os.Getenv("SOURCE_DATE_EPOCH"); epoch != "" {
		if o.Created, err = parseTime(epoch); err != nil {
			return o, fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
		}
	}
	return o, nil
}

// parseTime parses RFC 3339, or seconds since 1970 as in https://reproducible-builds.org/specs/source-date-epoch.
func parseTime(s string) (time.Time, error) {
	if seconds, err := strconv.ParseInt(strings.TrimPrefix(s, "@"), 10, 64); err == nil {
		return time.Unix(seconds, 0).UTC(), nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return t, fmt.Errorf("%q is neither RFC 3339 nor seconds since 1970", s)
	}
	return t.UTC(), nil
}

func runBuild(ctx context.Context, f buildFlags, images []string, stdout, stderr io.Writer) (err error) {
	o, err := f.options(images)
	if err != nil {
		return program.Usage(err)
	}
	// The registry client's remarks would run through the progress bars; what matters comes back as an error.
	if err := log.SetLevel("warn"); err != nil {
		return err
	}
	var view buildView
	switch {
	case f.json:
		view = newJSONView(stdout)
	case isTerminal(stderr):
		view = newBarView(stderr)
	default:
		view = newLineView(stderr)
	}
	o.Progress = view.event
	if f.plan {
		return runPlan(ctx, o, view, stdout, f.json)
	}
	result, err := builder.Build(ctx, o)
	if ctx.Err() != nil && err != nil {
		err = errors.New("interrupted, nothing was made")
	}
	if viewErr := view.end(result, err); err == nil {
		err = viewErr
	}
	if err != nil || f.json {
		return err
	}
	return writeBuildSummary(stdout, f.output, result)
}

// runPlan shows what images consist of.
func runPlan(ctx context.Context, o builder.Options, view buildView, stdout io.Writer, asJSON bool) error {
	contents, err := builder.Plan(ctx, o)
	if err == nil && asJSON {
		return json.NewEncoder(stdout).Encode(struct {
			Event    string            `json:"event"`
			Contents *builder.Contents `json:"contents"`
		}{"contents", contents})
	}
	if err != nil {
		return errors.Join(err, view.end(nil, err))
	}
	if err := view.end(&builder.Result{}, nil); err != nil {
		return err
	}
	var sum int64
	for _, l := range contents.Layers {
		sum += l.BlobBytes
		if _, err := fmt.Fprintf(stdout, "layer %s: blob %s, %s\n", l.DiffID, l.Blob, units.BytesSize(float64(l.BlobBytes))); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintf(stdout, "%s, %s, %s to fetch\n", count(len(contents.Images), "image"), count(len(contents.Layers), "layer"), size(sum))
	return err
}

// nameServers are addresses as given, with the port of DNS.
func nameServers(given []string) ([]netip.AddrPort, error) {
	const port = 53
	var list []netip.AddrPort
	for _, s := range given {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("--dns %q is no IP address", s)
		}
		list = append(list, netip.AddrPortFrom(ip, port))
	}
	return list, nil
}

func isTerminal(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd()))
}

func writeBuildSummary(w io.Writer, output string, r *builder.Result) error {
	size := func(n int64) string { return units.BytesSize(float64(n)) }
	_, err := fmt.Fprintf(w, "%s: %s layer disk of %s\n"+
		"  uuid      %s\n  index     %s\n"+
		"  images    %d\n  layers    %d, %d of them shared; %d without sharing\n"+
		"  fetched   %s of blobs\n  unpacked  %s in %d inodes, %s of it was there\n  time      %s\n",
		output, r.FileSystem, size(r.DiskBytes), r.Identity.UUID, r.Identity.IndexDigest, r.Images,
		r.Layers, r.SharedLayers, r.LayerUses, size(r.FetchedBytes), size(r.UnpackedBytes), r.Inodes, size(r.ReusedBytes), r.Duration.Round(time.Millisecond))
	if err == nil && r.PlacedFiles > 0 {
		_, err = fmt.Fprintf(w, "  placed    %s of %d files lie together\n", size(r.PlacedBytes), r.PlacedFiles)
	}
	return err
}
