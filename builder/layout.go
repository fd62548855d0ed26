package builder

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// annotationImageName is containerd's and docker's annotation with the full reference of an image in a layout.
const annotationImageName = "io.containerd.image.name"

// files are the plain files of a directory or an archive, by slash-separated path.
type files interface {
	open(name string) (io.ReadSeekCloser, error)
}

// layout is an OCI image layout (the image layout specification of OCI) in a directory or inside a tar archive.
type layout struct {
	files files
	desc  ocispec.Descriptor
}

var _ source = (*layout)(nil)

func (l *layout) root(context.Context) (ocispec.Descriptor, error) { return l.desc, nil }

func (l *layout) open(_ context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("digest %q: %w", desc.Digest, err)
	}
	f, err := l.files.open(path.Join(ocispec.ImageBlobsDir, desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// dirFiles reads a directory without following links out of it.
type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (io.ReadSeekCloser, error) {
	f, err := d.root.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no plain file: %w", name, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func openLayoutDir(given, name, dirAndRef string) (_ *namedSource, err error) {
	dir, ref, err := splitPath(dirAndRef)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", given, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", given, err)
	}
	src, err := openLayout(given, name, ref, dirFiles{root})
	if err != nil {
		return nil, errors.Join(err, root.Close())
	}
	src.close = root.Close
	return src, nil
}

// openLayout chooses one image of the layout: the one that ref names by full reference, by tag or by digest, or the
// only one.
func openLayout(given, name, ref string, fs files) (*namedSource, error) {
	var mark ocispec.ImageLayout
	if err := readJSON(fs, ocispec.ImageLayoutFile, &mark); err != nil {
		return nil, fmt.Errorf("open %s: is no OCI image layout: %w", given, err)
	}
	if mark.Version != ocispec.ImageLayoutVersion {
		return nil, fmt.Errorf("open %s: layout version %q, know only %s: %w", given, mark.Version, ocispec.ImageLayoutVersion, errdefs.ErrNotImplemented)
	}
	var index ocispec.Index
	if err := readJSON(fs, ocispec.ImageIndexFile, &index); err != nil {
		return nil, fmt.Errorf("open %s: %w", given, err)
	}
	desc, err := chooseEntry(index.Manifests, ref)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", given, err)
	}
	if name == "" {
		if name, err = entryName(desc, ref); err != nil {
			return nil, fmt.Errorf("open %s: %w", given, err)
		}
	}
	return &namedSource{given: given, name: name, source: &layout{files: fs, desc: desc}}, nil
}

func chooseEntry(entries []ocispec.Descriptor, ref string) (ocispec.Descriptor, error) {
	var found []ocispec.Descriptor
	var names []string
	for _, e := range entries {
		names = append(names, describeEntry(e))
		if ref == "" || matchesEntry(e, ref) {
			found = append(found, e)
		}
	}
	// The same image may stand there under several names.
	for len(found) > 1 && found[0].Digest == found[len(found)-1].Digest {
		found = found[:len(found)-1]
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(found) == 0:
		return ocispec.Descriptor{}, fmt.Errorf("has no image %q; it has: %s: %w", ref, strings.Join(names, ", "), errdefs.ErrNotFound)
	}
	return ocispec.Descriptor{}, fmt.Errorf("has several images, name one behind a colon: %s: %w", strings.Join(names, ", "), errdefs.ErrInvalidArgument)
}

func matchesEntry(e ocispec.Descriptor, ref string) bool {
	full, tag := e.Annotations[annotationImageName], e.Annotations[ocispec.AnnotationRefName]
	if ref == full || ref == tag || ref == e.Digest.String() {
		return true
	}
	wanted, err := normalise(ref)
	if err != nil {
		return false
	}
	for _, have := range []string{full, tag} {
		if have == "" {
			continue
		}
		if n, err := normalise(have); err == nil && n == wanted {
			return true
		}
	}
	return false
}

func describeEntry(e ocispec.Descriptor) string {
	for _, s := range []string{e.Annotations[annotationImageName], e.Annotations[ocispec.AnnotationRefName]} {
		if s != "" {
			return s
		}
	}
	return e.Digest.String()
}

// entryName finds the reference of a layout's entry. A ref.name annotation that is a bare tag, as the specification
// suggests, is no name.
func entryName(e ocispec.Descriptor, ref string) (string, error) {
	for _, s := range []string{e.Annotations[annotationImageName], e.Annotations[ocispec.AnnotationRefName], ref} {
		if !strings.ContainsAny(s, "/:") {
			continue
		}
		if _, err := digest.Parse(s); err == nil {
			continue
		}
		if name, err := normalise(s); err == nil {
			return name, nil
		}
	}
	return "", fmt.Errorf("the image has no full name there; give it one in front, as NAME=oci:DIR: %w", errdefs.ErrInvalidArgument)
}

// readJSON decodes a small file of a layout.
func readJSON(fs files, name string, to any) error {
	f, err := fs.open(name)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxManifestBytes+1))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if len(b) > maxManifestBytes {
		return fmt.Errorf("%s is larger than %d bytes: %w", name, maxManifestBytes, errdefs.ErrInvalidArgument)
	}
	if err := json.Unmarshal(b, to); err != nil {
		return fmt.Errorf("parse %s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	return nil
}

// tarFiles are the plain files of an uncompressed tar archive, read in place.
type tarFiles struct {
	archive io.ReaderAt
	entries map[string]tarEntry
}

type tarEntry struct {
	offset, size int64
	// link is the path of the entry that stands here too; docker save wrote equal layers as links.
	link string
}

// maxArchiveEntries bounds the table of an archive; images have a few files for each layer.
const maxArchiveEntries = 1 << 18

func openTarFiles(f *os.File) (*tarFiles, error) {
	t := &tarFiles{archive: f, entries: make(map[string]tarEntry)}
	for r := tar.NewReader(f); ; {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read archive (compressed archives have to be decompressed first): %w: %w", err, errdefs.ErrInvalidArgument)
		}
		// archive/tar reads headers in whole blocks and no further, so the file stands at the entry's content.
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, fmt.Errorf("read archive: %w", err)
		}
		name := path.Clean("/" + hdr.Name)[1:]
		switch hdr.Typeflag {
		case tar.TypeReg:
			t.entries[name] = tarEntry{offset: offset, size: hdr.Size}
		case tar.TypeLink:
			t.entries[name] = tarEntry{link: path.Clean("/" + hdr.Linkname)[1:]}
		case tar.TypeSymlink:
			t.entries[name] = tarEntry{link: path.Join("/", path.Dir(name), hdr.Linkname)[1:]}
		}
		if len(t.entries) > maxArchiveEntries {
			return nil, fmt.Errorf("archive has more than %d entries: %w", maxArchiveEntries, errdefs.ErrInvalidArgument)
		}
	}
}

func (t *tarFiles) open(name string) (io.ReadSeekCloser, error) {
	for range 8 { // links to links, but no loop
		e, ok := t.entries[path.Clean(name)]
		if !ok {
			return nil, fmt.Errorf("archive has no %s: %w", name, errdefs.ErrNotFound)
		}
		if e.link == "" {
			return section{io.NewSectionReader(t.archive, e.offset, e.size)}, nil
		}
		name = e.link
	}
	return nil, fmt.Errorf("archive: %s: too many links: %w", name, errdefs.ErrInvalidArgument)
}

// section needs no closing: the archive stays open for the next one.
type section struct{ *io.SectionReader }

// Close does nothing.
func (section) Close() error { return nil }
