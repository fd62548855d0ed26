package matcher_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestImports keeps the choice pure: nothing but the standard library (without files, processes and network), digests
// and the types of the layer disk.
func TestImports(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{join .Imports "\n"}}`, ".").Output()
	require.NoError(t, err)
	imports := strings.Fields(string(out))
	require.Contains(t, imports, "berth.dev/berth/layerdisk")
	for _, path := range imports {
		switch {
		case path == "berth.dev/berth/layerdisk", path == "github.com/opencontainers/go-digest":
		case strings.Contains(strings.Split(path, "/")[0], "."):
			require.Failf(t, "not allowed here", "%s", path)
		default:
			for _, impure := range []string{"os", "io", "net", "syscall", "log", "context", "math/rand"} {
				require.False(t, path == impure || strings.HasPrefix(path, impure+"/"), "%s does I/O or makes chance", path)
			}
		}
	}

	// What layerdisk brings along stays a matter of formats: no other package of the project, no containerd.
	out, err = exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	require.NoError(t, err)
	for _, path := range strings.Fields(string(out)) {
		if strings.HasPrefix(path, "berth.dev/") {
			require.Contains(t, []string{"berth.dev/berth/matcher", "berth.dev/berth/layerdisk"}, path)
		}
		require.False(t, strings.HasPrefix(path, "github.com/containerd/containerd/"), path)
		require.False(t, strings.HasPrefix(path, "google.golang.org/"), path)
	}
}
