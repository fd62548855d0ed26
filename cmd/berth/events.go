package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/proto/enumword"
)

func newEvents() *cobra.Command {
	var (
		daemon daemonFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "events",
		Short: "Print hits, misses and changes of disks as they happen",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			err := daemon.call(cmd.Context(), func(ctx context.Context, c controlv1.ControlServiceClient) error {
				stream, err := c.WatchEvents(ctx, &controlv1.WatchEventsRequest{})
				if err != nil {
					return err
				}
				for {
					m, err := stream.Recv()
					if errors.Is(err, io.EOF) {
						return nil // berthd stops
					}
					if err != nil {
						return err
					}
					if asJSON {
						err = writeMessage(cmd.OutOrStdout(), m)
					} else {
						err = printEvent(cmd.OutOrStdout(), m)
					}
					if err != nil {
						return err
					}
				}
			})
			if cmd.Context().Err() != nil {
				err = nil // interrupted, which is how it is meant to end
			}
			return err
		},
	}
	daemon.register(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printEvent(w io.Writer, m *controlv1.WatchEventsResponse) error {
	if n := m.GetDropped(); n > 0 {
		if _, err := fmt.Fprintf(w, "(%s lost)\n", count(int(n), "event")); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(w, m.GetEvent().GetTime().AsTime().Format(time.RFC3339), describeEvent(m.GetEvent()))
	return err
}

// describeEvent is the event in one line, without its time.
func describeEvent(e *controlv1.Event) string {
	parts := []string{eventWord(e.GetKind())}
	add := func(key, value string) {
		if value != "" {
			parts = append(parts, key+"="+value)
		}
	}
	add("layer", e.GetChainId())
	add("disk", e.GetDisk())
	add("image_snapshot", e.GetImageSnapshot())
	add("matched_by", enumword.Of(e.GetMatchedBy()))
	if b := e.GetBytes(); b > 0 {
		add("saved", humanSize(b))
	}
	add("image", e.GetImageRef())
	if r := e.GetReason(); r != "" {
		parts = append(parts, fmt.Sprintf("reason=%q", r))
	}
	return strings.Join(parts, " ")
}

func eventWord(k controlv1.EventKind) string {
	switch k {
	case controlv1.EventKind_EVENT_KIND_HIT:
		return "hit"
	case controlv1.EventKind_EVENT_KIND_MISS:
		return "miss"
	case controlv1.EventKind_EVENT_KIND_ERROR:
		return "error"
	case controlv1.EventKind_EVENT_KIND_DISK_ATTACHED:
		return "attached"
	case controlv1.EventKind_EVENT_KIND_DISK_DETACHED:
		return "detached"
	case controlv1.EventKind_EVENT_KIND_DISK_FAILED:
		return "failed"
	case controlv1.EventKind_EVENT_KIND_IMAGE_IMPORTED:
		return "imported"
	case controlv1.EventKind_EVENT_KIND_IMAGE_WITHDRAWN:
		return "withdrawn"
	case controlv1.EventKind_EVENT_KIND_IMAGE_NOT_IMPORTED:
		return "not-imported"
	case controlv1.EventKind_EVENT_KIND_UNSPECIFIED:
	}
	return "other"
}
