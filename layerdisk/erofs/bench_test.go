package erofs_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk/erofs"
	"berth.dev/berth/layerdisk/layertest"
	"berth.dev/berth/layerdisk/tree"
)

// benchLayer makes an archive of files files of size bytes each that do not compress.
func benchLayer(b *testing.B, files, size int) []byte {
	b.Helper()
	data := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{1})
	l := layertest.NewTar(b)
	for i := range files {
		_, _ = rng.Read(data)
		if i%10 == 0 {
			l.Dir(fmt.Sprintf("usr/lib/package-%d", i/10), 0o755)
		}
		l.Add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/lib/package-%d/module-%d.py", i/10, i), Mode: 0o644}, string(data))
	}
	return l.Bytes()
}

type benchCase struct {
	name        string
	files, size int
}

func benchCases() []benchCase {
	return []benchCase{{"large", 4, 64 << 20}, {"small", 20_000, 3000}, {"empty", 50_000, 0}}
}

// BenchmarkRead is the way of an archive into a tree, contents thrown away: the cost per core without any disk.
func BenchmarkRead(b *testing.B) {
	for _, c := range benchCases() {
		b.Run(c.name, func(b *testing.B) {
			layer := benchLayer(b, c.files, c.size)
			b.SetBytes(int64(len(layer)))
			for b.Loop() {
				_, err := tree.Read(b.Context(), bytes.NewReader(layer), io.Discard, tree.Limits{})
				require.NoError(b, err)
			}
			b.ReportMetric(float64(c.files*b.N)/b.Elapsed().Seconds(), "files/s")
		})
	}
}

// BenchmarkReadAndWrite is the whole way into an image file, superblock and all but the syncs.
func BenchmarkReadAndWrite(b *testing.B) {
	for _, c := range benchCases() {
		b.Run(c.name, func(b *testing.B) {
			layer := benchLayer(b, c.files, c.size)
			b.SetBytes(int64(len(layer)))
			f, err := os.Create(filepath.Join(b.TempDir(), "disk.img"))
			require.NoError(b, err)
			defer func() { require.NoError(b, f.Close()) }()
			for b.Loop() {
				layout, err := erofs.Plan(readLayers(b, f, layer))
				require.NoError(b, err)
				require.NoError(b, layout.Write(b.Context(), f))
				require.NoError(b, layout.Commit(b.Context(), struct{ io.WriterAt }{f}, nil))
			}
			b.ReportMetric(float64(c.files*b.N)/b.Elapsed().Seconds(), "files/s")
		})
	}
}

// BenchmarkMetadata measures planning and writing alone, and the memory of a tree and of a plan.
func BenchmarkMetadata(b *testing.B) {
	layer := benchLayer(b, 100_000, 0)
	var before, read, planned runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	img := readLayers(b, discardAt{}, layer)
	runtime.GC()
	runtime.ReadMemStats(&read)
	plan, err := erofs.Plan(img)
	require.NoError(b, err)
	runtime.GC()
	runtime.ReadMemStats(&planned)
	runtime.KeepAlive(layer)
	for b.Loop() {
		plan, err := erofs.Plan(img)
		require.NoError(b, err)
		require.NoError(b, plan.Write(b.Context(), discardAt{}))
	}
	inodes := float64(img.Layers[0].Tree.Inodes)
	b.ReportMetric(float64(read.HeapAlloc-before.HeapAlloc)/inodes, "tree-bytes/inode")
	b.ReportMetric(float64(planned.HeapAlloc-read.HeapAlloc)/inodes, "plan-bytes/inode")
	b.ReportMetric(float64(plan.MetadataBytes())/inodes, "disk-bytes/inode")
	b.ReportMetric(inodes*float64(b.N)/b.Elapsed().Seconds(), "inodes/s")
}

type discardAt struct{}

func (discardAt) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
