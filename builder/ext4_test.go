package builder

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
)

func TestBuildExt4EqualsEROFS(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	r := newTestRegistry(t)
	base := gzipLayer(t, makeTar(t, tarContent{
		"etc/": "", "etc/passwd": "root:x:0:0", "big": bigContent(t, 9<<20), "zeros": strings.Repeat("\x00", 3<<20), "implied/parent/file": "x",
	}))
	app := zstdLayer(t, makeTar(t, tarContent{"app/": "", "app/main": bigContent(t, 1<<20), "app/.wh.old": "", "etc/.wh..wh..opq": ""}))
	ref := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, base, app))

	o := buildOptions(t, ref)
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	want := readDisk(t, o.Output.Path)

	for _, size := range []int64{0, 256 << 20} {
		o := buildOptions(t, ref)
		o.Output.FileSystem, o.Output.SizeBytes = layerdisk.FileSystemExt4, size
		res, err := Build(t.Context(), o)
		require.NoError(t, err)
		got := readDisk(t, o.Output.Path)
		require.Equal(t, want.Layers, got.Layers)
		require.Equal(t, want.Chains, got.Chains)
		info, err := os.Stat(o.Output.Path)
		require.NoError(t, err)
		require.Equal(t, res.DiskBytes, info.Size())
		if size > 0 {
			require.Equal(t, size, info.Size())
		}
		requireSound(t, o.Output.Path)
	}
}
