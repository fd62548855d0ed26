// Package directory is a catalog of files: in the image of a node, on a share that many nodes have mounted, or made by hand.
//
//	NAME.json             an entry, as package catalog encodes it
//	sha256-HEX.index      the encoded index of a disk, for every entry whose identity has that digest
//
// Files appear under their names when they are whole: Publish writes them under another name first, and the index before the entry.
// What is not whole or not sound nevertheless, because somebody else wrote it, is reported and skipped until it changes. A relative
// path of a disk is relative to the directory.
package directory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/catalog"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/layerdisk"
)

const (
	entrySuffix   = ".json"
	indexSuffix   = ".index"
	maxEntryBytes = 1 << 20
	// maxEntries bounds what a directory that is not one of entries can cost.
	maxEntries = 1 << 16
	// keepIndex is how long an index without an entry is kept.
	keepIndex = time.Hour
)

// Catalog is a catalog.Lister and a catalog.Publisher. It is safe for concurrent use, by several processes too.
type Catalog struct{ dir string }

var (
	_ catalog.Lister    = (*Catalog)(nil)
	_ catalog.Publisher = (*Catalog)(nil)
)

// New uses the directory dir, which may be missing as long as nothing is published.
func New(dir string) *Catalog { return &Catalog{dir} }

// Problem is a file that is skipped.
type Problem struct {
	File string
	Err  error
}

func (p Problem) Error() string { return fmt.Sprintf("%s: %s", p.File, p.Err) }

// Unwrap gives the reason.
func (p Problem) Unwrap() error { return p.Err }

// List is of catalog.Lister. It leaves out what Read reports.
func (c *Catalog) List(ctx context.Context) ([]catalog.Entry, error) {
	entries, _, err := c.Read(ctx)
	return entries, err
}

// Read gives the entries, sorted by name, and what is wrong with the other files.
func (c *Catalog) Read(ctx context.Context) ([]catalog.Entry, []Problem, error) {
	files, err := os.ReadDir(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read catalog: %w", err)
	}
	if len(files) > maxEntries {
		return nil, nil, fmt.Errorf("read catalog %s: more than %d files: %w", c.dir, maxEntries, errdefs.ErrResourceExhausted)
	}
	var entries []catalog.Entry
	var problems []Problem
	ids := make(map[string]string)
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), entrySuffix)
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		e, err := c.read(name)
		if errors.Is(err, fs.ErrNotExist) && !errors.As(err, new(indexError)) {
			continue // withdrawn since the listing
		}
		if err == nil && ids[e.ID] != "" {
			err = fmt.Errorf("ID %s is that of %s too: %w", e.ID, ids[e.ID], errdefs.ErrInvalidArgument)
		}
		if err != nil {
			problems = append(problems, Problem{f.Name(), err})
			continue
		}
		ids[e.ID] = e.Name
		entries = append(entries, e)
	}
	slices.SortFunc(entries, func(a, b catalog.Entry) int { return strings.Compare(a.Name, b.Name) })
	return entries, problems, nil
}

// indexError says that it is the index that is missing, not the entry.
type indexError struct{ error }

func (e indexError) Unwrap() error { return e.error }

func (c *Catalog) read(name string) (catalog.Entry, error) {
	raw, err := readFile(filepath.Join(c.dir, name+entrySuffix), maxEntryBytes)
	if err != nil {
		return catalog.Entry{}, err
	}
	var e catalog.Entry
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := dec.Decode(&e); err != nil {
		return e, fmt.Errorf("not an entry: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if dec.More() {
		return e, fmt.Errorf("something follows the entry: %w", errdefs.ErrInvalidArgument)
	}
	if e.Name != name {
		return e, fmt.Errorf("the entry's name is %q: %w", e.Name, errdefs.ErrInvalidArgument)
	}
	if d := e.Identity.IndexDigest; d != "" {
		if err := d.Validate(); err != nil {
			return e, fmt.Errorf("index digest %q: %w: %w", d, err, errdefs.ErrInvalidArgument)
		}
		if e.Index, err = readFile(c.indexFile(e), layerdisk.MaxIndexBytes); err != nil {
			return e, indexError{fmt.Errorf("its index: %w", err)}
		}
	}
	if e.Source.Path != "" && !filepath.IsAbs(e.Source.Path) {
		dir, err := filepath.Abs(c.dir)
		if err != nil {
			return e, err
		}
		e.Source.Path = filepath.Join(dir, e.Source.Path)
	}
	return e, e.Check()
}

func (c *Catalog) indexFile(e catalog.Entry) string {
	d := e.Identity.IndexDigest
	return filepath.Join(c.dir, d.Algorithm().String()+"-"+d.Encoded()+indexSuffix)
}

// readFile reads a plain file up to a size.
func readFile(path string, most int64) ([]byte, error) {
	// A pipe would hold up whoever opens it.
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("not a plain file of at most %d bytes: %w", most, errdefs.ErrInvalidArgument)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("more than %d bytes: %w", most, errdefs.ErrInvalidArgument)
	}
	return b, err
}

// Publish is of catalog.Publisher. An entry that Read would report is InvalidArgument.
func (c *Catalog) Publish(ctx context.Context, e catalog.Entry) error {
	if err := e.Check(); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(e, "", "  ")
	if err != nil {
		return fmt.Errorf("publish %s: %w", e.Name, err)
	}
	if len(raw) > maxEntryBytes {
		return fmt.Errorf("publish %s: the entry has %d bytes, at most %d are allowed: %w", e.Name, len(raw), maxEntryBytes, errdefs.ErrInvalidArgument)
	}
	err = os.MkdirAll(c.dir, 0o755)
	if err == nil && len(e.Index) > 0 {
		err = writeWhole(c.indexFile(e), e.Index)
	}
	if err == nil {
		err = writeWhole(filepath.Join(c.dir, e.Name+entrySuffix), append(raw, '\n'))
	}
	if err != nil {
		return fmt.Errorf("publish %s: %w", e.Name, err)
	}
	return c.dropIndexes(ctx)
}

// Withdraw is of catalog.Publisher.
func (c *Catalog) Withdraw(ctx context.Context, name string) error {
	if err := imagesnapshot.CheckName(name); err != nil {
		return fmt.Errorf("withdraw: %w", err)
	}
	err := os.Remove(filepath.Join(c.dir, name+entrySuffix))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("withdraw %s: %w", name, err)
	}
	return c.dropIndexes(ctx)
}

// dropIndexes deletes old ones that no entry refers to. With entries that cannot be read it deletes none.
func (c *Catalog) dropIndexes(ctx context.Context) error {
	entries, problems, err := c.Read(ctx)
	if err != nil || len(problems) > 0 {
		return err
	}
	used := make(map[string]bool)
	for _, e := range entries {
		if e.Identity.IndexDigest != "" {
			used[filepath.Base(c.indexFile(e))] = true
		}
	}
	files, err := os.ReadDir(c.dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("read catalog: %w", err)
	}
	for _, f := range files {
		if strings.HasSuffix(f.Name(), indexSuffix) && strings.HasPrefix(f.Name(), "sha256-") && !used[f.Name()] {
			// Another publisher may be about to write the entry.
			if info, err := f.Info(); err != nil || time.Since(info.ModTime()) < keepIndex {
				continue
			}
			if err := os.Remove(filepath.Join(c.dir, f.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("delete index: %w", err)
			}
		}
	}
	return nil
}

// writeWhole makes a file appear with all of its content, on the disk.
func writeWhole(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
