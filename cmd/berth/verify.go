package main

import (
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"

	"berth.dev/berth/builder/verify"
	"berth.dev/berth/internal/program"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/attrs"
)

func newVerify() *cobra.Command {
	var asJSON bool
	var want layerdisk.Identity
	cmd := &cobra.Command{
		Use:   "verify DISK",
		Short: "Compare every layer of a disk with the listing of its attributes",
		Long: `Verify reads every layer of a layer disk and compares each entry with the listing
that was made when the disk was built: type, mode, owner, mtime, size, link target,
device number, hard links, extended attributes and content. Every difference is
printed, one on each line.

DISK is a file, a block device, or a directory where the disk is mounted. A file or
device is mounted read-only in a private directory for the time of the command.
The exit status is not 0 if anything differs.

The listings are on the disk too, so this finds damage. To find out that somebody
made another disk, say which one you expect: --index-digest is printed by berth build
and berth inspect.`,
		Example: `  berth verify disk.img
  berth verify /dev/sdb --index-digest sha256:0f3c...
  berth verify /var/lib/berth/d/1 --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVerify(cmd, args[0], want, asJSON)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object instead of lines")
	cmd.Flags().StringVar(&want.UUID, "uuid", "", "refuse a disk with another UUID")
	cmd.Flags().StringVar((*string)(&want.IndexDigest), "index-digest", "", "refuse a disk whose index has another digest")
	return cmd
}

func runVerify(cmd *cobra.Command, path string, want layerdisk.Identity, asJSON bool) error {
	if want.IndexDigest != "" {
		if err := want.IndexDigest.Validate(); err != nil {
			return program.Usage(fmt.Errorf("--index-digest %q: %w", want.IndexDigest, err))
		}
	}
	out := &printer{w: cmd.OutOrStdout()}
	opts := verify.Options{Want: want}
	if !asJSON {
		opts.Start = func(ix *layerdisk.Index, id layerdisk.Identity) {
			out.printf("disk %s, index %s, %s, %s\n", id.UUID, id.IndexDigest, ix.FileSystem, count(len(ix.Layers), "layer"))
		}
		opts.Layer = func(l verify.LayerReport) { printLayerReport(out, l) }
	}
	report, err := verify.Disk(cmd.Context(), path, opts)
	if err != nil {
		return err
	}
	if asJSON {
		out.json(report)
	} else {
		for _, p := range report.Problems {
			out.printf("disk: %s\n", attrs.Printable(p))
		}
	}
	if out.err != nil {
		return fmt.Errorf("print report: %w", out.err)
	}
	if n := report.Findings(); n > 0 {
		return fmt.Errorf("%s is not as it was built: %s", path, count(n, "finding"))
	}
	return nil
}

func printLayerReport(out *printer, l verify.LayerReport) {
	verdict := "ok"
	if n := l.Findings(); n > 0 {
		verdict = count(n, "finding")
	}
	out.printf("layer %d %s: %s, %s: %s\n", l.Number, shortDigest(l.DiffID), count(l.Entries, "entr"), size(l.UnpackedBytes), verdict)
	for _, p := range l.Problems {
		out.printf("  %s\n", attrs.Printable(p))
	}
	for _, d := range l.Differences {
		out.printf("  %s\n", d)
	}
}

// printer keeps the first error, so that printing many lines needs one check.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

func (p *printer) json(v any) {
	if p.err == nil {
		p.err = writeJSON(p.w, v)
	}
}

// count returns "1 layer", "2 layers"; "entr" becomes entry and entries.
func count(n int, noun string) string {
	switch {
	case noun == "entr" && n == 1:
		return "1 entry"
	case noun == "entr":
		return fmt.Sprintf("%d entries", n)
	case n == 1:
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// shortDigest returns enough of a digest to distinguish the layers of one disk.
func shortDigest(d digest.Digest) string {
	const digits = 12
	if hex := d.Encoded(); len(hex) > digits {
		return string(d.Algorithm()) + ":" + hex[:digits]
	}
	return d.String()
}
