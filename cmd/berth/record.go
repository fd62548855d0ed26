package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"time"

	"github.com/containerd/log"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/recorder"
	"berth.dev/berth/readahead/trialrun"
)

const recordLong = `Record runs an image once from a layer disk and records which parts of which files its start reads,
in their order. With that list a node reads them ahead while a container starts, which makes a start
from a slow disk several times faster, and a build places them together (berth build --access-list).

The disk is the file or block device of --disk, or what berthd has of the image: the image snapshot
of --image-snapshot, or the attached disk that has the image. It is mounted once more, read-only and
apart from what the node does with it, so nothing has to be pulled and nothing that runs is
disturbed. The list goes to the image snapshot, or to the file of --output.

CMD runs in place of the image's entrypoint and command. Without it those run. The container has a
root file system of its own that is deleted with it, and no network but with --host-network. The
recording ends when the program ends, when a line that it prints matches --ready, or after --timeout.
A program that ends with another status than 0, or before it was ready, is an error, and nothing is
kept. However the command ends, everything that it made is undone; what a killed one has left the next
one removes.

One start may read other files than the next: with --merge the list is merged with the one that is
there, and has what at least half of both have.`

const recordExample = `  berth record python-app:1 --image-snapshot nightly -- python3 -c 'import scipy.stats'
  berth record nginx:1.27 --ready 'start worker process' --timeout 30s
  berth record nginx:1.27 --disk disk.img --output nginx.accesslist -- nginx -t
  berth build -o disk2.img --access-list nginx.accesslist nginx:1.27`

type recordFlags struct {
	daemon                  daemonFlags
	disk, snapshot, output  string
	platform, ready, method string
	merge, asJSON           bool
	options                 trialrun.Options
}

func newRecord() *cobra.Command {
	var f recordFlags
	cmd := &cobra.Command{
		Use:     "record IMAGE [-- CMD...]",
		Short:   "Run an image once and record what its start reads from the disk",
		Long:    recordLong,
		Example: recordExample,
		Args: func(cmd *cobra.Command, args []string) error {
			images := args
			if dash := cmd.ArgsLenAtDash(); dash >= 0 {
				images = args[:dash]
			}
			if len(images) != 1 {
				return errors.New(`name one image, and the command behind "--"`)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			f.options.Args = args[1:]
			return f.run(cmd, args[0])
		},
	}
	f.daemon.register(cmd)
	flags := cmd.Flags()
	flags.StringVar(&f.disk, "disk", "", "layer `disk` to run the image from: a file or block device; needs --output")
	flags.StringVar(&f.snapshot, "image-snapshot", "", "`name` or ID of the image snapshot to run the image from, and to keep the list with")
	flags.StringVarP(&f.output, "output", "o", "", "`file` for the list, - for standard output (default: the image snapshot keeps it)")
	flags.BoolVar(&f.merge, "merge", false, "merge the list with the one that is there")
	flags.StringVar(&f.platform, "platform", "", "platform of the image, if the disk has several (default: this machine's)")
	flags.DurationVar(&f.options.Timeout, "timeout", time.Minute, "end of the recording at the latest, 0 for never")
	flags.StringVar(&f.ready, "ready", "", "regular `expression` for the line of output with which the start is over")
	flags.StringArrayVarP(&f.options.Env, "env", "e", nil, "`NAME=VALUE` in the program's environment; may be repeated")
	flags.BoolVar(&f.options.HostNetwork, "host-network", false, "run in the machine's network")
	flags.StringVar(&f.options.Containerd, "containerd", "/run/containerd/containerd.sock", "containerd's `socket`")
	flags.StringVar(&f.options.Dir, "dir", "/var/lib/berth-record", "`directory` for mounts and for what the container writes; the same for all runs")
	flags.StringVar(&f.method, "method", "", "how to record: trace (kernel tracing, exact), or open (fanotify, files but no order within them)\n(default: trace, or open where the kernel forbids it)")
	flags.BoolVar(&f.asJSON, "json", false, "print one JSON object instead of lines; the program's output goes to standard error")
	cmd.MarkFlagsMutuallyExclusive("disk", "image-snapshot")
	return cmd
}

func (f *recordFlags) run(cmd *cobra.Command, image string) (err error) {
	named, err := reference.ParseDockerRef(image)
	if err != nil {
		return fmt.Errorf("image %q: %w", image, err)
	}
	f.options.Image = named.String()
	if f.platform != "" {
		if f.options.Platform, err = platforms.Parse(f.platform); err != nil {
			return fmt.Errorf("--platform: %w", err)
		}
	}
	if f.ready != "" {
		if f.options.Ready, err = regexp.Compile(f.ready); err != nil {
			return fmt.Errorf("--ready: %w", err)
		}
	}
	if f.options.Method = recorder.Method(f.method); f.method != "" && f.options.Method != recorder.MethodTrace && f.options.Method != recorder.MethodOpen {
		return fmt.Errorf("--method %q is none of %s, %s", f.method, recorder.MethodTrace, recorder.MethodOpen)
	}
	if f.disk != "" && f.output == "" {
		return errors.New("--disk needs --output: nobody keeps lists of a disk that berthd does not know")
	}
	if os.Geteuid() != 0 {
		return errors.New("record mounts disks and runs containers: run it as root")
	}
	if f.options.Dir, err = filepath.Abs(f.options.Dir); err != nil {
		return err
	}
	// What the container library logs is not part of the output.
	if err := log.SetLevel("error"); err != nil {
		return err
	}
	f.options.Stdout, f.options.Stderr = cmd.ErrOrStderr(), cmd.ErrOrStderr()
	// Everything must be undone if the terminal is closed, too.
	ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGHUP)
	defer stop()
	if f.disk != "" {
		f.options.Disk = f.disk
		return f.toFile(ctx, cmd.OutOrStdout())
	}
	return f.fromDaemon(ctx, cmd.OutOrStdout())
}

// record runs the image and merges the list with the old one, if there is one.
func (f *recordFlags) record(ctx context.Context, old *accesslist.List) (*trialrun.Result, error) {
	res, err := trialrun.Run(ctx, f.options)
	if ctx.Err() != nil && err != nil {
		return nil, errors.New("interrupted, nothing was kept")
	}
	if err != nil {
		return nil, fmt.Errorf("record %s: %w", f.options.Image, err)
	}
	if old != nil {
		if res.List, err = accesslist.Merge(old, res.List); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// toFile writes the list to a file, or to standard output.
func (f *recordFlags) toFile(ctx context.Context, stdout io.Writer) error {
	var old *accesslist.List
	if f.merge && f.output != "-" {
		var err error
		if old, err = readAccessList(f.output); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	res, err := f.record(ctx, old)
	if err != nil {
		return err
	}
	data, err := res.List.Encode()
	if err != nil {
		return err
	}
	if f.output == "-" {
		_, err := stdout.Write(data)
		return err
	}
	if err := replaceFile(f.output, data); err != nil {
		return fmt.Errorf("write list: %w", err)
	}
	return f.summary(stdout, res, f.output)
}

// replaceFile either writes the whole file or keeps the old one.
func replaceFile(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp.Name()))
	}
	return nil
}

// recordSummary is what berth record --json prints. Sizes are in bytes.
type recordSummary struct {
	Image    string             `json:"image"`
	Platform string             `json:"platform"`
	End      trialrun.EndReason `json:"end"`
	Method   recorder.Method    `json:"method"`
	Seconds  float64            `json:"seconds"`
	Files    int                `json:"files"`
	// FileBytes were read from files, MetadataBytes from the disk's own metadata.
	FileBytes     int64 `json:"fileBytes"`
	MetadataBytes int64 `json:"metadataBytes"`
	ImageBytes    int64 `json:"imageBytes"`
	// LostPages were read but could not be recorded.
	LostPages int64 `json:"lostPages"`
	// KeptBy names the file or the image snapshot that keeps the list.
	KeptBy string `json:"keptBy"`
}

func (f *recordFlags) summary(w io.Writer, res *trialrun.Result, keptBy string) error {
	s := recordSummary{
		Image: res.List.Image, Platform: res.List.Platform, End: res.End, Method: res.Summary.Method, Seconds: res.Summary.Duration.Seconds(),
		Files: res.List.FileCount(), ImageBytes: res.ImageBytes, LostPages: res.Summary.Lost, KeptBy: keptBy,
	}
	s.MetadataBytes, s.FileBytes = res.List.Size()
	if f.asJSON {
		return writeJSON(w, s)
	}
	share := "-"
	if s.ImageBytes > 0 {
		share = fmt.Sprintf("%.1f %%", 100*float64(s.FileBytes)/float64(s.ImageBytes))
	}
	ended := map[trialrun.EndReason]string{
		trialrun.EndExit: "the program ended", trialrun.EndReady: "it was ready", trialrun.EndTimeout: "the time was over (--timeout)",
	}[s.End]
	_, err := fmt.Fprintf(w, "%s (%s), recorded for %s until %s\n  files     %d, %s: %s of the image's %s\n  metadata  %s of the disk\n  kept by   %s\n",
		s.Image, s.Platform, res.Summary.Duration.Round(time.Millisecond), ended, s.Files, units.BytesSize(float64(s.FileBytes)), share,
		humanSize(s.ImageBytes), units.BytesSize(float64(s.MetadataBytes)), s.KeptBy)
	if err == nil && s.LostPages > 0 {
		_, err = fmt.Fprintf(w, "  lost      %d pages came faster than they could be noted: record it on a quieter machine\n", s.LostPages)
	}
	return err
}

// fromDaemon runs the image from one of berthd's disks. An image snapshot keeps the list unless it goes to a file.
func (f *recordFlags) fromDaemon(ctx context.Context, stdout io.Writer) error {
	return f.daemon.dial(ctx, func(ctx context.Context, conn connection) error {
		src := diskSource{control: controlv1.NewControlServiceClient(conn), snapshots: imagesnapshotv1.NewImageSnapshotServiceClient(conn)}
		disk, release, err := src.find(ctx, f.snapshot, f.options.Image)
		if err != nil {
			return err
		}
		f.options.Disk = disk.device
		err = f.keep(ctx, stdout, src.snapshots, disk)
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
		defer cancel()
		return errors.Join(err, release(undo))
	})
}

// keep records an access list and stores it where it belongs.
func (f *recordFlags) keep(ctx context.Context, stdout io.Writer, c imageSnapshots, disk foundDisk) error {
	if f.output != "" {
		return f.toFile(ctx, stdout)
	}
	if disk.snapshot == "" {
		return fmt.Errorf("disk %s belongs to no image snapshot of this berthd that could keep the list: name a file with --output", disk.name)
	}
	var old *accesslist.List
	if f.merge {
		var err error
		if old, err = keptList(ctx, c, disk.snapshot, f.options); err != nil {
			return err
		}
	}
	res, err := f.record(ctx, old)
	if err != nil {
		return err
	}
	data, err := res.List.Encode()
	if err != nil {
		return err
	}
	if _, err := c.PutAccessList(ctx, &imagesnapshotv1.PutAccessListRequest{NameOrId: disk.snapshot, List: data}); err != nil {
		return err
	}
	return f.summary(stdout, res, "image snapshot "+disk.snapshot)
}

// keptList returns the access list that the image snapshot keeps for the image, nil if it keeps none.
func keptList(ctx context.Context, c imageSnapshots, snapshot string, o trialrun.Options) (*accesslist.List, error) {
	resp, err := c.ListAccessLists(ctx, &imagesnapshotv1.ListAccessListsRequest{NameOrId: snapshot, Image: o.Image})
	if err != nil {
		return nil, err
	}
	want := o.Platform
	if want.OS == "" {
		want = platforms.DefaultSpec()
	}
	for _, m := range resp.GetAccessLists() {
		if m.GetPlatform() == platforms.FormatAll(platforms.Normalize(want)) {
			return accesslist.Decode(m.GetList())
		}
	}
	return nil, nil //nolint:nilnil // there is none
}
