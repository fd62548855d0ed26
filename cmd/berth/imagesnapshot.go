package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

func newImageSnapshot() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "image-snapshot",
		Aliases: []string{"isnap", "snapshot"},
		Short:   "Create, list, change and delete image snapshots",
		Long: `An image snapshot is a set of container images, unpacked once onto a layer disk and kept as a volume snapshot. Nodes
attach it and run the images, and all others that share layers with them, without pulling and unpacking.

berthd builds image snapshots in the background: "create" returns at once, or with --wait when it is usable. Every command
takes a name or an ID.`,
	}
	cmd.AddCommand(newImageSnapshotCreate(), newImageSnapshotList(), newImageSnapshotGet(), newImageSnapshotUpdate(), newImageSnapshotDelete(), newImageSnapshotEvents(), newImageSnapshotAccessList())
	return cmd
}

type imageSnapshots = imagesnapshotv1.ImageSnapshotServiceClient

func newImageSnapshotList() *cobra.Command {
	var (
		daemon daemonFlags
		owner  string
		labels map[string]string
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List image snapshots",
		Example: "  berth image-snapshot list --label env=prod\n  berth image-snapshot list --json | jq '.image_snapshots[].name'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter := &imagesnapshotv1.ImageSnapshotFilter{Labels: labels}
			if cmd.Flags().Changed("owner") {
				filter.Owner = &owner
			}
			return daemon.imageSnapshots(cmd.Context(), func(ctx context.Context, c imageSnapshots) error {
				all, err := listImageSnapshots(ctx, c, filter)
				if err != nil {
					return err
				}
				if asJSON {
					return writeMessage(cmd.OutOrStdout(), &imagesnapshotv1.ListImageSnapshotsResponse{ImageSnapshots: all})
				}
				return writeImageSnapshots(cmd.OutOrStdout(), all, time.Now())
			})
		},
	}
	daemon.register(cmd)
	cmd.Flags().StringVar(&owner, "owner", "", "only those of this `tenant`")
	pairsVar(cmd.Flags(), &labels, "label", "l", "only those with this label, `key=value`; may be repeated")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// listImageSnapshots gets all pages.
func listImageSnapshots(ctx context.Context, c imageSnapshots, filter *imagesnapshotv1.ImageSnapshotFilter) ([]*imagesnapshotv1.ImageSnapshot, error) {
	var all []*imagesnapshotv1.ImageSnapshot
	for token := ""; ; {
		resp, err := c.ListImageSnapshots(ctx, &imagesnapshotv1.ListImageSnapshotsRequest{Filter: filter, PageToken: token})
		if err != nil {
			return nil, err
		}
		all = append(all, resp.GetImageSnapshots()...)
		if token = resp.GetNextPageToken(); token == "" {
			return all, nil
		}
	}
}

func writeImageSnapshots(w io.Writer, all []*imagesnapshotv1.ImageSnapshot, now time.Time) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, `no image snapshots: make one with "berth image-snapshot create"`)
		return err
	}
	rows := [][]string{{"NAME", "OWNER", "PHASE", "PROGRESS", "IMAGES", "SIZE", "MATCHES", "EXPIRES", "AGE"}}
	for _, s := range all {
		st := s.GetStatus()
		rows = append(rows, []string{s.GetName(), orDash(s.GetOwner()), phaseWord(st.GetPhase()), fmt.Sprintf("%d%%", st.GetProgress()),
			strconv.Itoa(len(s.GetSpec().GetImages())), humanSize(st.GetDiskBytes()), strconv.FormatInt(st.GetMatchCount(), 10),
			until(st.GetExpires(), now), units.HumanDuration(now.Sub(s.GetCreated().AsTime()))})
	}
	return writeTable(w, rows)
}

func newImageSnapshotGet() *cobra.Command {
	var (
		daemon daemonFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:               "get NAME|ID",
		ValidArgsFunction: completeOne(daemon.imageSnapshotNames),
		Aliases:           []string{"show"},
		Short:             "Show one image snapshot: its specification, its state and its events",
		Args:              cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return daemon.imageSnapshots(cmd.Context(), func(ctx context.Context, c imageSnapshots) error {
				resp, err := c.GetImageSnapshot(ctx, &imagesnapshotv1.GetImageSnapshotRequest{NameOrId: args[0]})
				if err != nil {
					return err
				}
				if asJSON {
					return writeMessage(cmd.OutOrStdout(), resp.GetImageSnapshot())
				}
				lists, err := c.ListAccessLists(ctx, &imagesnapshotv1.ListAccessListsRequest{NameOrId: resp.GetImageSnapshot().GetId(), Summary: true})
				if err != nil {
					return err
				}
				if err := writeImageSnapshot(cmd.OutOrStdout(), resp.GetImageSnapshot()); err != nil {
					return err
				}
				return writeAccessListTable(cmd.OutOrStdout(), lists.GetAccessLists())
			})
		},
	}
	daemon.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func newImageSnapshotDelete() *cobra.Command {
	var (
		daemon daemonFlags
		req    imagesnapshotv1.DeleteImageSnapshotRequest
		pre    imagesnapshotv1.Preconditions
		wait   bool
	)
	cmd := &cobra.Command{
		Use:               "delete NAME|ID",
		ValidArgsFunction: completeOne(daemon.imageSnapshotNames),
		Aliases:           []string{"rm"},
		Short:             "Delete an image snapshot; a build under way is aborted",
		Long: `delete takes an image snapshot down in every phase; a build under way is aborted first. Running containers go on: nodes
that have the disk attached keep it until nothing uses it.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req.NameOrId, req.Preconditions = args[0], &pre
			return daemon.imageSnapshots(cmd.Context(), func(ctx context.Context, c imageSnapshots) error {
				resp, err := c.DeleteImageSnapshot(ctx, &req)
				if err != nil {
					return err
				}
				name := resp.GetImageSnapshot().GetName()
				switch {
				case req.GetDryRun():
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: would be deleted\n", name)
				case wait:
					if err := awaitGone(ctx, c, resp.GetImageSnapshot().GetId()); err != nil {
						return err
					}
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: deleted\n", name)
				default:
					_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: being deleted\n", name)
				}
				return err
			})
		},
	}
	daemon.register(cmd)
	f := cmd.Flags()
	f.BoolVarP(&wait, "wait", "w", false, "return when nothing is left of it")
	f.BoolVar(&req.DryRun, "dry-run", false, "check, and do nothing")
	f.StringVar(&pre.Id, "if-id", "", "only if it has this `ID`")
	f.StringVar(&pre.ResourceVersion, "if-version", "", "only if it is at this resource `version`")
	return cmd
}

// imageSnapshots connects to the image snapshot service of berthd for use.
func (f *daemonFlags) imageSnapshots(ctx context.Context, use func(context.Context, imageSnapshots) error) error {
	return f.dial(ctx, func(ctx context.Context, conn connection) error {
		return use(ctx, imagesnapshotv1.NewImageSnapshotServiceClient(conn))
	})
}

// phaseWord returns the phase as it is usually written, such as UpdateFailed.
func phaseWord(p imagesnapshotv1.ImageSnapshotPhase) string {
	if p == imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_UNSPECIFIED {
		return "other"
	}
	return camel(strings.TrimPrefix(p.String(), "IMAGE_SNAPSHOT_PHASE_"))
}

func originWord(o imagesnapshotv1.ImageSnapshotOrigin) string {
	return strings.ToLower(strings.TrimPrefix(o.String(), "IMAGE_SNAPSHOT_ORIGIN_"))
}

// camel turns UPDATE_FAILED into UpdateFailed.
func camel(s string) string {
	var b strings.Builder
	for word := range strings.SplitSeq(strings.ToLower(s), "_") {
		if word != "" {
			b.WriteString(strings.ToUpper(word[:1]) + word[1:])
		}
	}
	return b.String()
}

// stamp formats a time; the text is empty if there is no time.
func stamp(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.RFC3339)
}

func until(t *timestamppb.Timestamp, now time.Time) string {
	switch {
	case t == nil:
		return "never"
	case t.AsTime().Before(now):
		return "now"
	}
	return "in " + units.HumanDuration(t.AsTime().Sub(now))
}

func pairs(m map[string]string) string {
	var list []string
	for _, k := range sortedKeys(m) {
		list = append(list, k+"="+m[k])
	}
	return strings.Join(list, ", ")
}

// showsProgress reports whether w is a terminal, so that somebody sees the progress.
func showsProgress(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isTerminal(f)
}
