package main

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	"berth.dev/berth/internal/program"
	imagesnapshotv1 "berth.dev/berth/proto/berth/imagesnapshot/v1"
	"berth.dev/berth/readahead/accesslist"
)

func newImageSnapshotAccessList() *cobra.Command {
	var (
		daemon  daemonFlags
		image   string
		encoded bool
		put     string
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use:               "access-list NAME|ID",
		ValidArgsFunction: completeOne(daemon.imageSnapshotNames),
		Short:             "Print what starts of an image snapshot's images read, or keep such a list with it",
		Long: `access-list prints the lists that "berth record" recorded, one after another: a line for each part of a file, in the order of first
access (docs/access-lists.md explains them). With --put it keeps a list that "berth record --output" wrote with the image snapshot.`,
		Example: `  berth image-snapshot access-list nightly --image nginx:1.27 | grep '^f '
  berth image-snapshot access-list nightly --encoded --image nginx:1.27 > nginx.accesslist
  berth image-snapshot access-list nightly --put nginx.accesslist`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &imagesnapshotv1.ListAccessListsRequest{NameOrId: args[0]}
			if image != "" {
				named, err := reference.ParseDockerRef(image)
				if err != nil {
					return program.Usage(fmt.Errorf("--image %q: %w", image, err))
				}
				req.Image = named.String()
			}
			return daemon.imageSnapshots(cmd.Context(), func(ctx context.Context, c imageSnapshots) error {
				if put != "" {
					return putAccessList(ctx, c, args[0], put, cmd.OutOrStdout())
				}
				resp, err := c.ListAccessLists(ctx, req)
				if err != nil {
					return err
				}
				if asJSON {
					return writeMessage(cmd.OutOrStdout(), resp)
				}
				return writeAccessLists(cmd.OutOrStdout(), resp.GetAccessLists(), args[0], encoded)
			})
		},
	}
	daemon.register(cmd)
	f := cmd.Flags()
	f.StringVar(&image, "image", "", "only the list of this `image`")
	f.BoolVar(&encoded, "encoded", false, `print the one list as "berth build --access-list" reads it`)
	f.StringVar(&put, "put", "", "keep the list in this `file`")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	cmd.MarkFlagsMutuallyExclusive("encoded", "put", "json")
	return cmd
}

func putAccessList(ctx context.Context, c imageSnapshots, name, file string, w io.Writer) error {
	list, err := readAccessList(file)
	if err != nil {
		return err
	}
	data, err := list.Encode()
	if err != nil {
		return err
	}
	if _, err := c.PutAccessList(ctx, &imagesnapshotv1.PutAccessListRequest{NameOrId: name, List: data}); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s: keeps the access list of %s\n", name, list.Image)
	return err
}

func writeAccessLists(w io.Writer, lists []*imagesnapshotv1.AccessList, name string, encoded bool) error {
	if len(lists) == 0 {
		return fmt.Errorf("%s has no such access list: record one with \"berth record IMAGE --image-snapshot %s\"", name, name)
	}
	if encoded && len(lists) > 1 {
		return fmt.Errorf("%s has %d access lists: choose one with --image", name, len(lists))
	}
	for _, m := range lists {
		if encoded {
			_, err := w.Write(m.GetList())
			return err
		}
		list, err := accesslist.Decode(m.GetList())
		if err != nil {
			return err
		}
		if err := list.WriteText(w); err != nil {
			return err
		}
	}
	return nil
}

// writeAccessListTable writes a table of access lists, if there are any.
func writeAccessListTable(w io.Writer, lists []*imagesnapshotv1.AccessList) error {
	if len(lists) == 0 {
		return nil
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}

	rows := [][]string{{"TRACED IMAGE", "PLATFORM", "FILES", "READS", "METADATA", "RECORDED"}}
	for _, l := range lists {
		rows = append(rows, []string{l.GetImage(), l.GetPlatform(), strconv.FormatInt(l.GetFiles(), 10), humanSize(l.GetFileBytes()),
			humanSize(l.GetMetadataBytes()), stamp(l.GetRecorded())})
	}
	return writeTable(w, rows)
}
