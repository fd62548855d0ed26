package builder

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// source gives the content of one image. What it returns is not verified.
type source interface {
	// root describes the manifest or index that the image's name stands for.
	root(ctx context.Context) (ocispec.Descriptor, error)
	// open streams a blob, manifest, index or config from offset on.
	open(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error)
}

// namedSource is one image as the user listed it.
type namedSource struct {
	// given is the user's own text, for messages.
	given string
	// name is the normalised reference under which the image stands in the index.
	name string
	source
	// close releases what the source holds open; nil if nothing.
	close func() error
}

const (
	layoutPrefix  = "oci:"
	archivePrefix = "docker-archive:"
)

// openSource reads one item of the image list: "REFERENCE", "[NAME=]oci:DIR[:REF]" or
// "[NAME=]docker-archive:FILE[:REF]".
func openSource(given string, registry *registryClient, registryOnly bool) (*namedSource, error) {
	if registryOnly {
		name, err := normalise(given)
		if err != nil {
			return nil, err
		}
		return &namedSource{given: given, name: name, source: registry.image(name)}, nil
	}
	name, rest := "", given
	if before, after, ok := strings.Cut(given, "="); ok &&
		(strings.HasPrefix(after, layoutPrefix) || strings.HasPrefix(after, archivePrefix)) {
		parsed, err := normalise(before)
		if err != nil {
			return nil, err
		}
		name, rest = parsed, after
	}
	if dir, ok := strings.CutPrefix(rest, layoutPrefix); ok {
		return openLayoutDir(given, name, dir)
	}
	if file, ok := strings.CutPrefix(rest, archivePrefix); ok {
		return openArchive(given, name, file)
	}
	name, err := normalise(rest)
	if err != nil {
		return nil, err
	}
	return &namedSource{given: given, name: name, source: registry.image(name)}, nil
}

// normalise completes a reference as Docker Hub's short names demand. A tag beside a digest is dropped: the digest
// decides.
func normalise(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fmt.Errorf("image reference %q: %w: %w", ref, errdefs.ErrInvalidArgument, err)
	}
	return named.String(), nil
}

// splitPath cuts "PATH[:REF]" at the first colon that leaves an existing path on the left, since both parts may
// contain colons.
func splitPath(s string) (path, ref string, err error) {
	if s == "" {
		return "", "", fmt.Errorf("empty path: %w", errdefs.ErrInvalidArgument)
	}
	if _, err := os.Stat(s); err == nil {
		return filepath.Clean(s), "", nil
	}
	for i := range len(s) {
		if s[i] != ':' || i == 0 {
			continue
		}
		if _, err := os.Stat(s[:i]); err == nil {
			return filepath.Clean(s[:i]), s[i+1:], nil
		}
	}
	return "", "", fmt.Errorf("%s: no such file or directory: %w", s, errdefs.ErrNotFound)
}
