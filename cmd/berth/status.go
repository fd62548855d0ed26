package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/proto/enumword"
)

func newStatus() *cobra.Command {
	var (
		daemon daemonFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the node's layer disks, what is used of them, and hits and misses",
		Long: `status shows what berthd does on this node: the layer disks that are attached or waited for, how many of their
layers are in use, and how many layers containerd found on them, or had to pull, since berthd started.

If a disk does not serve, its last error is shown below the table. Layers that images need and no disk has any more are
listed at the end, with who needs them and the containers that run from a lost disk. "berth doctor" checks the whole
node.

A table of its own shows what is read ahead for starts of images, and what was read ahead lately; see docs/read-ahead.md.`,
		Example: "  berth status\n  berth status --json | jq '.disks[] | select(.serving | not)'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return daemon.call(cmd.Context(), func(ctx context.Context, c controlv1.ControlServiceClient) error {
				st, err := c.Status(ctx, &controlv1.StatusRequest{})
				if err != nil {
					return err
				}
				if asJSON {
					return writeMessage(cmd.OutOrStdout(), st)
				}
				if err := printStatus(cmd.OutOrStdout(), st, time.Now()); err != nil {
					return err
				}
				lost, err := lostLayers(ctx, c)
				if err != nil {
					return err
				}
				return printLost(cmd.OutOrStdout(), lost)
			})
		},
	}
	daemon.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printStatus(w io.Writer, st *controlv1.StatusResponse, now time.Time) error {
	up := units.HumanDuration(now.Sub(st.GetStarted().AsTime()))
	if _, err := fmt.Fprintf(w, "berthd %s, process %d, up %s, root %s\n\n", st.GetVersion(), st.GetPid(), up, st.GetRoot()); err != nil {
		return err
	}
	if err := printDisks(w, st.GetDisks()); err != nil {
		return err
	}
	if err := printReadAhead(w, st.GetReadAhead(), now); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nhits    %s\nmisses  %s\n%s not pulled, %s on disks\n",
		total(hitWords(st.GetHits())), total(missWords(st.GetMisses())), units.BytesSize(float64(st.GetBytesNotPulled())), count(int(st.GetAdoptedSnapshots()), "snapshot"))
	return err
}

func printDisks(w io.Writer, disks []*controlv1.Disk) error {
	if len(disks) == 0 {
		_, err := fmt.Fprintln(w, "no disks: attach one with \"berth attach\", or name it in berthd's configuration")
		return err
	}
	rows := [][]string{{"DISK", "STATE", "LAYERS", "IN USE", "SNAPSHOTS", "SIZE", "KEEP", "VOLUME"}}
	for _, d := range disks {
		keep := "no"
		if d.GetKeep() {
			keep = "yes"
		}
		rows = append(rows, []string{d.GetName(), orDash(enumword.Of(d.GetState())), strconv.FormatInt(d.GetLayers(), 10),
			strconv.FormatInt(d.GetLayersInUse(), 10), strconv.FormatInt(d.GetHolders(), 10), humanSize(d.GetSizeBytes()),
			keep, cmp.Or(d.GetVolumeId(), d.GetVolumeSnapshotId())})
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	for _, d := range disks {
		if e := d.GetLastError(); e != "" {
			if _, err := fmt.Fprintf(w, "! %s: %s\n", d.GetName(), e); err != nil {
				return err
			}
		}
	}
	return printImports(w, disks)
}

// printImports prints how many images of each disk containerd knows, and why it does not know the others.
func printImports(w io.Writer, disks []*controlv1.Disk) error {
	var lines []string
	for _, d := range disks {
		known := 0
		var others []string
		for _, img := range d.GetImports() {
			if img.GetResult() == controlv1.ImportResult_IMPORT_RESULT_REGISTERED {
				known++
				continue
			}
			others = append(others, fmt.Sprintf("  %s (%s) %s: %s", img.GetReference(), img.GetNamespace(), enumword.Of(img.GetResult()), img.GetReason()))
		}
		if len(d.GetImports()) > 0 {
			lines = append(lines, fmt.Sprintf("%s: %d of %s registered in containerd", d.GetName(), known, count(len(d.GetImports()), "image")))
		}
		lines = append(lines, others...)
		if e := d.GetImportError(); e != "" {
			lines = append(lines, fmt.Sprintf("! %s: images: %s", d.GetName(), e))
		}
	}
	if len(lines) == 0 {
		return nil
	}
	_, err := fmt.Fprintf(w, "\n%s\n", strings.Join(lines, "\n"))
	return err
}

// shownEnded is how many of the ended runs of reading ahead are printed; --json has all.
const shownEnded = 5

func printReadAhead(w io.Writer, list []*controlv1.ReadAhead, now time.Time) error {
	rows := [][]string{{"READ AHEAD FOR", "DISK", "STATE", "READ", "OF", "RATE", "TOOK", "SEEN", "LIST"}}
	ended := 0
	for _, h := range list {
		switch h.GetState() {
		case controlv1.ReadAheadState_READ_AHEAD_STATE_WAITING, controlv1.ReadAheadState_READ_AHEAD_STATE_RUNNING:
		default:
			if ended++; ended > shownEnded {
				continue
			}
		}
		listed := "no"
		if h.GetHasAccessList() {
			listed = "yes"
		}
		rate := "-"
		if h.GetBytesPerSecond() > 0 {
			rate = units.BytesSize(float64(h.GetBytesPerSecond())) + "/s"
		}
		rows = append(rows, []string{h.GetImage(), h.GetDisk(), enumword.Of(h.GetState()), humanSize(h.GetBytes()), humanSize(h.GetTotalBytes()), rate,
			h.GetTook().AsDuration().Round(time.Millisecond).String(), units.HumanDuration(now.Sub(h.GetWanted().AsTime())) + " ago", listed})
	}
	if len(rows) == 1 {
		return nil
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	for _, h := range list {
		if h.GetState() == controlv1.ReadAheadState_READ_AHEAD_STATE_FAILED {
			_, err := fmt.Fprintf(w, "! %s: %s\n", h.GetImage(), h.GetReason())
			return err // the last failure is enough
		}
	}
	return nil
}

func hitWords(hits []*controlv1.HitCount) map[string]uint64 {
	counts := make(map[string]uint64, len(hits))
	for _, h := range hits {
		counts[cmp.Or(enumword.Of(h.GetMatchedBy()), enumword.Other)] += h.GetCount()
	}
	return counts
}

func missWords(misses []*controlv1.MissCount) map[string]uint64 {
	counts := make(map[string]uint64, len(misses))
	for _, m := range misses {
		counts[cmp.Or(enumword.Of(m.GetReason()), enumword.Other)] += m.GetCount()
	}
	return counts
}

// total returns the sum and its parts: "7 (chain-id 5, diff-id 2)".
func total(counts map[string]uint64) string {
	var (
		sum   uint64
		parts []string
	)
	for _, k := range slices.Sorted(maps.Keys(counts)) {
		sum += counts[k]
		parts = append(parts, fmt.Sprintf("%s %d", k, counts[k]))
	}
	if len(parts) == 0 {
		return "0"
	}
	return fmt.Sprintf("%d (%s)", sum, strings.Join(parts, ", "))
}
