package directory

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/imagesnapshot/catalog"
	"berth.dev/berth/readahead/accesslist"
)

const (
	accessListsDir = "access-lists"
	// listMark stands between an ID, which never has it, and the rest of the name of a list's file.
	listMark = "@"
)

var _ catalog.ListPublisher = (*Directory)(nil)

// AccessLists is where a catalog in the directory at path has access lists: a file for each (package liststore).
func AccessLists(path string) string { return filepath.Join(path, accessListsDir) }

// PublishAccessLists writes each list to a file of its own, and removes those of before.
func (d *Directory) PublishAccessLists(ctx context.Context, id string, lists []*accesslist.List) error {
	err := catalog.CheckID(id)
	keep := make(map[string]bool)
	for _, l := range lists {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			name := id + listMark + digest.FromString(l.Image+" "+l.Platform).Encoded()
			keep[name] = true
			err = d.writeList(name, l)
		}
	}
	if err == nil {
		err = d.removeLists(id, keep)
	}
	if err != nil {
		return fmt.Errorf("publish access lists in catalog %s: %w", d.path, err)
	}
	return nil
}

func (d *Directory) writeList(name string, l *accesslist.List) error {
	data, err := l.Encode()
	if err != nil {
		return err
	}
	return replace(filepath.Join(AccessLists(d.path), name), data)
}

// removeLists of an entry but those to keep.
func (d *Directory) removeLists(id string, keep map[string]bool) error {
	dir := AccessLists(d.path)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), id+listMark) && !keep[e.Name()] {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
