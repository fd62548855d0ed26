package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
)

// awaitUsable returns when the image snapshot is Available. If it cannot become Available, awaitUsable returns an error
// together with the last state. Progress goes to w: phases and percent on lines, or on one line if w is a terminal.
func awaitUsable(ctx context.Context, c imageSnapshots, id string, w io.Writer) (*imagesnapshotv1.ImageSnapshot, error) {
	stream, err := c.WatchImageSnapshots(ctx, &imagesnapshotv1.WatchImageSnapshotsRequest{Filter: &imagesnapshotv1.ImageSnapshotFilter{NameOrId: id}})
	if err != nil {
		return nil, interrupted(ctx, id, err)
	}
	terminal, shown := showsProgress(w), ""
	if terminal {
		defer fmt.Fprintln(w)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("berthd stopped; it goes on when it is back: %q shows how far it is", "berth image-snapshot get "+id)
		}
		if err != nil {
			return nil, interrupted(ctx, id, err)
		}
		s, st := m.GetImageSnapshot(), m.GetImageSnapshot().GetStatus()
		if now := fmt.Sprintf("%s %d%%", phaseWord(st.GetPhase()), st.GetProgress()); now != shown {
			shown = now
			if terminal {
				_, err = fmt.Fprintf(w, "\r%s: %-20s", s.GetName(), now)
			} else {
				_, err = fmt.Fprintf(w, "%s: %s\n", s.GetName(), now)
			}
			if err != nil {
				return nil, err
			}
		}
		if m.GetDeleted() {
			return s, fmt.Errorf("image snapshot %s was deleted", s.GetName())
		}
		switch st.GetPhase() {
		case imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_AVAILABLE:
			return s, nil
		case imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_FAILED, imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_UNAVAILABLE,
			imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_UPDATE_FAILED, imagesnapshotv1.ImageSnapshotPhase_IMAGE_SNAPSHOT_PHASE_DELETING:
			return s, fmt.Errorf("image snapshot %s is %s (%s): %s", s.GetName(), phaseWord(st.GetPhase()), st.GetReason(), st.GetMessage())
		default:
		}
	}
}

// interrupted returns err, unless the user interrupted the wait: then the error says that the build goes on.
func interrupted(ctx context.Context, id string, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return fmt.Errorf("interrupted; berthd goes on with the build: %q shows how far it is", "berth image-snapshot get "+id)
}

// awaitGone returns when nothing is left of the image snapshot with this ID.
func awaitGone(ctx context.Context, c imageSnapshots, id string) error {
	stream, err := c.WatchImageSnapshots(ctx, &imagesnapshotv1.WatchImageSnapshotsRequest{Filter: &imagesnapshotv1.ImageSnapshotFilter{NameOrId: id}})
	for err == nil {
		var m *imagesnapshotv1.WatchImageSnapshotsResponse
		if m, err = stream.Recv(); err == nil && m.GetDeleted() {
			return nil
		}
	}
	if isNotFound(err) {
		return nil // gone before anybody looked
	}
	if errors.Is(err, io.EOF) {
		return errors.New("berthd stopped; it goes on deleting when it is back")
	}
	if ctx.Err() != nil {
		return errors.New("interrupted; berthd goes on deleting")
	}
	return err
}

func newImageSnapshotEvents() *cobra.Command {
	var (
		daemon        daemonFlags
		watch, asJSON bool
	)
	cmd := &cobra.Command{
		Use:               "events [NAME|ID]",
		ValidArgsFunction: completeOne(daemon.imageSnapshotNames),
		Short:             "Show what happened to image snapshots",
		Long:              "events shows what happened to one image snapshot, or to all, oldest first; with --watch also what happens from now on.",
		Example:           "  berth image-snapshot events nightly --watch",
		Args:              cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			filter := &imagesnapshotv1.ImageSnapshotFilter{NameOrId: strings.Join(args, "")}
			err := daemon.imageSnapshots(cmd.Context(), func(ctx context.Context, c imageSnapshots) error {
				if watch {
					return watchImageSnapshotEvents(ctx, c, filter, cmd.OutOrStdout(), asJSON)
				}
				resp, err := c.ListImageSnapshotEvents(ctx, &imagesnapshotv1.ListImageSnapshotEventsRequest{Filter: filter})
				if err != nil {
					return err
				}
				if asJSON {
					return writeMessage(cmd.OutOrStdout(), resp)
				}
				return writeTable(cmd.OutOrStdout(), eventRows(resp.GetEvents(), true))
			})
			if cmd.Context().Err() != nil {
				err = nil // interrupted, which is how a watch is meant to end
			}
			return err
		},
	}
	daemon.register(cmd)
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on with what happens from now on")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func watchImageSnapshotEvents(ctx context.Context, c imageSnapshots, filter *imagesnapshotv1.ImageSnapshotFilter, w io.Writer, asJSON bool) error {
	stream, err := c.WatchImageSnapshotEvents(ctx, &imagesnapshotv1.WatchImageSnapshotEventsRequest{Filter: filter})
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		e := m.GetEvent()
		if asJSON {
			err = writeMessage(w, e)
		} else {
			_, err = fmt.Fprintf(w, "%s %s %s %s: %s\n", stamp(e.GetLast()), e.GetImageSnapshotName(), imageSnapshotEventWord(e.GetType()), e.GetReason(), e.GetMessage())
		}
		if err != nil {
			return err
		}
	}
}

func eventRows(events []*imagesnapshotv1.ImageSnapshotEvent, names bool) [][]string {
	rows := [][]string{{"LAST", "TYPE", "REASON", "COUNT", "MESSAGE"}}
	if names {
		rows[0] = append([]string{"NAME"}, rows[0]...)
	}
	for _, e := range events {
		row := []string{stamp(e.GetLast()), imageSnapshotEventWord(e.GetType()), e.GetReason(), strconv.FormatInt(e.GetCount(), 10), e.GetMessage()}
		if names {
			row = append([]string{e.GetImageSnapshotName()}, row...)
		}
		rows = append(rows, row)
	}
	return rows
}

func imageSnapshotEventWord(t imagesnapshotv1.ImageSnapshotEventType) string {
	return camel(strings.TrimPrefix(t.String(), "IMAGE_SNAPSHOT_EVENT_TYPE_"))
}
