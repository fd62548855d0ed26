package systemd_test

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/internal/config"
)

// units writes the units as "make install" does, with a program that exists everywhere.
func units(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	unit, err := os.ReadFile("berthd.service")
	require.NoError(t, err)
	text := strings.ReplaceAll(string(unit), "@BINDIR@/berthd", "/bin/true")
	text = strings.ReplaceAll(text, "@DOCDIR@", "/usr/share/doc/berth")
	require.NotContains(t, text, "@")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "berthd.service"), []byte(text), 0o644))

	dropIn, err := os.ReadFile("containerd.service.d/berth.conf")
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "containerd.service.d"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "containerd.service.d", "berth.conf"), dropIn, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "containerd.service"),
		[]byte("[Unit]\nDescription=containerd\n[Service]\nType=notify\nExecStart=/bin/true\n"), 0o644))
	return dir
}

func TestUnitsVerify(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("systemd-analyze is not installed")
	}
	require.NoError(t, err)
	dir := units(t)
	verify := func() (string, error) {
		cmd := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", filepath.Join(dir, "berthd.service"), filepath.Join(dir, "containerd.service"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := verify()
	require.NoError(t, err, out)
	require.Empty(t, out)

	// The check can fail: a misspelt key is found.
	path := filepath.Join(dir, "berthd.service")
	unit, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte(strings.Replace(string(unit), "LimitNOFILE", "LimitNOFILES", 1)), 0o644))
	out, _ = verify()
	require.Contains(t, out, "LimitNOFILES")
}

// TestNoMountNamespace: any of these settings gives the service mounts of its own, which containerd would never see.
// The list is from systemd.exec(5).
func TestNoMountNamespace(t *testing.T) {
	unit, err := os.ReadFile("berthd.service")
	require.NoError(t, err)
	namespaced := []string{
		"PrivateTmp", "PrivateMounts", "PrivateDevices", "PrivateUsers", "PrivateNetwork", "PrivateIPC", "ProtectSystem", "ProtectHome", "ProtectKernel",
		"ProtectControlGroups", "ProtectProc", "ProcSubset", "ProtectClock", "ProtectHostname", "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths",
		"ExecPaths", "NoExecPaths", "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "RootDirectory", "RootImage", "MountAPIVFS", "MountFlags",
		"MountImages", "ExtensionImages", "ExtensionDirectories", "DynamicUser", "NetworkNamespacePath", "RestrictNamespaces", "LogNamespace", "LoadCredential", "SetCredential",
	}
	for line := range strings.Lines(string(unit)) {
		key, _, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		for _, bad := range namespaced {
			require.False(t, strings.HasPrefix(key, bad), line)
		}
	}
	for _, want := range []string{"Type=notify", "Before=containerd.service", "KillMode=process", "Restart=always", "WatchdogSec="} {
		require.Contains(t, string(unit), want)
	}
	dropIn, err := os.ReadFile("containerd.service.d/berth.conf")
	require.NoError(t, err)
	require.NotContains(t, strings.ReplaceAll(string(dropIn), "Not Requires=", ""), "Requires=")
}

func TestInstall(t *testing.T) {
	makeTool, err := exec.LookPath("make")
	if errors.Is(err, exec.ErrNotFound) {
		t.Skip("make is not installed")
	}
	require.NoError(t, err)
	dest, built := t.TempDir(), t.TempDir()
	build, err := exec.CommandContext(t.Context(), "go", "build", "-o", built, "../cmd/berth", "../cmd/berthd").CombinedOutput()
	require.NoError(t, err, string(build))
	run := func(target string, more ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), makeTool, append([]string{"-s", "-f", "scripts/mk/install.mk", target, "DESTDIR=" + dest, "BUILDDIR=" + built}, more...)...)
		cmd.Dir = ".."
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	out, err := run("install")
	require.NoError(t, err, out)
	want := map[string]os.FileMode{
		"usr/local/bin/berth":                                  0o755,
		"usr/local/bin/berthd":                                 0o755,
		"etc/systemd/system/berthd.service":                    0o644,
		"etc/systemd/system/containerd.service.d/berth.conf":   0o644,
		"etc/berth/config.toml":                                0o600,
		"usr/local/share/doc/berth/operations.md":              0o644,
		"usr/local/share/doc/berth/drivers.md":                 0o644,
		"usr/local/share/doc/berth/config.toml":                0o644,
		"usr/local/share/bash-completion/completions/berth":    0o644,
		"usr/local/share/zsh/site-functions/_berth":            0o644,
		"usr/local/share/fish/vendor_completions.d/berth.fish": 0o644,
	}
	got := filesBelow(t, dest)
	maps.DeleteFunc(got, func(path string, mode os.FileMode) bool {
		return mode == 0o644 && strings.HasPrefix(path, "usr/local/share/man/man1/") && strings.HasSuffix(path, ".1")
	})
	require.Equal(t, want, got)
	for _, page := range []string{"berth", "berthd", "berth-image-snapshot-create", "berth-build", "berthd-config-default"} {
		require.FileExists(t, filepath.Join(dest, "usr/local/share/man/man1", page+".1"))
	}
	if groff, err := exec.LookPath("groff"); err == nil {
		pages, err := filepath.Glob(filepath.Join(dest, "usr/local/share/man/man1", "*.1"))
		require.NoError(t, err)
		warnings, err := exec.CommandContext(t.Context(), groff, append([]string{"-man", "-Tutf8", "-ww", "-z"}, pages...)...).CombinedOutput()
		require.NoError(t, err, string(warnings))
		require.Empty(t, string(warnings))
	}
	shipped, err := os.ReadFile(filepath.Join(dest, "etc/berth/config.toml"))
	require.NoError(t, err)
	require.Equal(t, string(config.CommentedTOML()), string(shipped))
	unit, err := os.ReadFile(filepath.Join(dest, "etc/systemd/system/berthd.service"))
	require.NoError(t, err)
	require.Contains(t, string(unit), "ExecStart=/usr/local/bin/berthd\n")
	require.NotContains(t, string(unit), "@")

	// Installing again keeps the administrator's configuration, as uninstalling does.
	config := filepath.Join(dest, "etc/berth/config.toml")
	require.NoError(t, os.WriteFile(config, []byte("root = \"/b\"\n"), 0o600))
	out, err = run("install")
	require.NoError(t, err, out)
	out, err = run("uninstall")
	require.NoError(t, err, out)
	require.Equal(t, map[string]os.FileMode{"etc/berth/config.toml": 0o600}, filesBelow(t, dest))
	data, err := os.ReadFile(config)
	require.NoError(t, err)
	require.Equal(t, "root = \"/b\"\n", string(data))

	// A package's prefix puts units where packages have them.
	out, err = run("install", "PREFIX=/usr")
	require.NoError(t, err, out)
	require.FileExists(t, filepath.Join(dest, "usr/lib/systemd/system/berthd.service"))

	out, err = run("install", "BUILDDIR="+t.TempDir())
	require.Error(t, err)
	require.Contains(t, out, `run "make build" first`)
}

func filesBelow(t *testing.T, dir string) map[string]os.FileMode {
	t.Helper()
	files := map[string]os.FileMode{}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		files[rel] = info.Mode().Perm()
		return err
	}))
	return files
}
