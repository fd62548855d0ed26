package builder

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	ctrcompression "github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

// benchImage has layers made of Go's own source tree, some 10,000 files of 100 MB each, so that every machine with the
// tests has the data.
func benchImage(b *testing.B, layers int) (r *testRegistry, ref string, img forgedImage, tarBytes int64) {
	b.Helper()
	goroot, err := exec.CommandContext(b.Context(), "go", "env", "GOROOT").Output()
	require.NoError(b, err)
	root := filepath.Join(strings.TrimSpace(string(goroot)), "src")
	var made []forgedLayer
	for i := range layers {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		require.NoError(b, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() && !d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			hdr, err := tar.FileInfoHeader(info, "")
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			hdr.Name = fmt.Sprintf("layer%d/%s", i, rel)
			if err := w.WriteHeader(hdr); err != nil || d.IsDir() {
				return err
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			_, err = w.Write(content)
			return err
		}))
		require.NoError(b, w.Close())
		tarBytes += int64(buf.Len())
		made = append(made, gzipBench(b, buf.Bytes()))
	}
	r = newTestRegistry(b)
	img = forgeImage(b, amd64, created, made...)
	return r, r.putImage(b, "bench", "1", img), img, tarBytes
}

// gzipBench compresses as registries' images are: with the usual level.
func gzipBench(b *testing.B, raw []byte) forgedLayer {
	b.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.DefaultCompression)
	require.NoError(b, err)
	_, err = w.Write(raw)
	require.NoError(b, err)
	require.NoError(b, w.Close())
	l := gzipLayer(b, nil)
	l.tar, l.blob = raw, buf.Bytes()
	return l
}

// BenchmarkBuild counts bytes of uncompressed layers, fetched from a registry in this process.
func BenchmarkBuild(b *testing.B) {
	_, ref, _, size := benchImage(b, 6)
	for b.Loop() {
		o := buildOptions(b, ref)
		_, err := Build(b.Context(), o)
		require.NoError(b, err)
		require.NoError(b, os.Remove(o.Output.Path))
	}
	b.SetBytes(size)
}

// BenchmarkContainerdUnpack does what a pull by containerd with four unpacks in parallel does with the same layers:
// fetch into a file, verify, decompress, hash, apply.
func BenchmarkContainerdUnpack(b *testing.B) {
	r, _, img, size := benchImage(b, 6)
	for b.Loop() {
		dir := b.TempDir()
		var group errgroup.Group
		group.SetLimit(4)
		for i, l := range img.layers {
			group.Go(func() error { return pullLayer(b, r, l, filepath.Join(dir, fmt.Sprint(i))) })
		}
		require.NoError(b, group.Wait())
		b.StopTimer()
		require.NoError(b, os.RemoveAll(dir))
		b.StartTimer()
	}
	b.SetBytes(size)
}

func pullLayer(b *testing.B, r *testRegistry, l forgedLayer, dir string) error {
	resp, err := http.Get(r.URL + "/v2/bench/blobs/" + l.descriptor().Digest.String())
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	blob, err := os.Create(dir + ".blob")
	if err != nil {
		return err
	}
	defer blob.Close()
	if _, err := io.Copy(io.MultiWriter(blob, sha256.New()), resp.Body); err != nil {
		return err
	}
	if _, err := blob.Seek(0, io.SeekStart); err != nil {
		return err
	}
	raw, err := ctrcompression.DecompressStream(blob)
	if err != nil {
		return err
	}
	defer raw.Close()
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	rest := io.TeeReader(raw, sha256.New())
	if _, err := archive.Apply(b.Context(), dir, rest, archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, rest)
	return err
}
