package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"berth.dev/berth/blockdev/loopdev"
	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/imagesnapshot/catalog/directory"
	"berth.dev/berth/node/disks"
	"berth.dev/berth/readahead/accesslist"
)

func newCatalog() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "catalog",
		Short: "Offer layer disks to nodes, which attach them when a pull needs them",
		Long: `catalog keeps a directory with one file for each image snapshot. berthd reads the directory that its configuration names
(catalog.directory). When a pull wants a layer that no attached disk has, berthd chooses the best image snapshot of the
catalog and attaches its disk.`,
	}
	cmd.AddCommand(newCatalogAdd(), newCatalogRemove())
	return cmd
}

func newCatalogAdd() *cobra.Command {
	var (
		dir         string
		e           catalog.Entry
		expires     time.Duration
		accessLists []string
	)
	cmd := &cobra.Command{
		Use:   "add DISK",
		Short: "Add a layer disk to a catalog, or replace it there",
		Long: `add reads the index of a layer disk, a file or block device, and writes an entry for it.

Nodes attach the disk by the same path as here, read-only, unless --volume-snapshot or --volume names where the storage has it.`,
		Example: "  berth catalog add /srv/berth/base.img --directory /srv/berth/catalog\n" +
			"  berth catalog add /dev/sdb --directory /srv/berth/catalog --name base --volume-snapshot snap-1234",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := filepath.Abs(args[0])
			if err != nil {
				return fmt.Errorf("add %s: %w", args[0], err)
			}
			if e.Source.VolumeSnapshotID == "" && e.Source.VolumeID == "" {
				e.Source.VolumeID = path
			}
			e.Name = cmp.Or(e.Name, disks.NameFor(path))
			e.ID = cmp.Or(e.ID, e.Name)
			e.State, e.Created = catalog.StateAvailable, time.Now().UTC().Truncate(time.Second)
			if expires > 0 {
				e.Expires = e.Created.Add(expires)
			}
			if e.Index, err = indexOf(path); err != nil {
				return fmt.Errorf("add %s: %w", path, err)
			}
			d, err := openCatalog(dir)
			if err != nil {
				return err
			}
			if err := publish(cmd.Context(), d, e, accessLists); err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: added as %s\n", e.Name, e.ID)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "directory", "", "`directory` of the catalog")
	f.StringVar(&e.Name, "name", "", "`name` of the image snapshot; derived from the path if not given")
	f.StringVar(&e.ID, "id", "", "`ID` of the image snapshot; the name if not given")
	f.StringVar(&e.Source.Driver, "driver", loopdev.Name, "`driver` that nodes attach it with")
	f.StringVar(&e.Source.VolumeSnapshotID, "volume-snapshot", "", "`ID` of a volume snapshot of the disk, of which each node makes a volume")
	f.StringVar(&e.Source.VolumeID, "volume", "", "`ID` of the disk's volume, which nodes attach read-only")
	f.StringSliceVar(&accessLists, "access-list", nil, "`file` with what the start of an image reads (berth record --output), for nodes to read ahead; may be repeated")
	f.DurationVar(&expires, "expires", 0, "`time` after which nodes no longer attach it; never if not given")
	cobra.CheckErr(cmd.MarkFlagRequired("directory"))
	cmd.MarkFlagsMutuallyExclusive("volume-snapshot", "volume")
	return cmd
}

// publish an entry with the access lists in files.
func publish(ctx context.Context, d *directory.Directory, e catalog.Entry, accessLists []string) error {
	var lists []*accesslist.List
	for _, file := range accessLists {
		list, err := readAccessList(file)
		if err != nil {
			return fmt.Errorf("--access-list: %w", err)
		}
		lists = append(lists, list)
	}
	if err := d.Publish(ctx, e); err != nil {
		return err
	}
	return d.PublishAccessLists(ctx, e.ID, lists)
}

func newCatalogRemove() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "remove ID…",
		Short: "Remove image snapshots from a catalog; their disks are left alone",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := openCatalog(dir)
			if err != nil {
				return err
			}
			for _, id := range args {
				if err := d.Withdraw(cmd.Context(), id); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&dir, "directory", "", "`directory` of the catalog")
	cobra.CheckErr(cmd.MarkFlagRequired("directory"))
	return cmd
}

func openCatalog(dir string) (*directory.Directory, error) {
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("catalog %s: %w", dir, err)
	}
	return directory.Open(path, 0)
}

func indexOf(disk string) ([]byte, error) {
	f, err := os.Open(disk)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return catalog.ReadIndex(f)
}
