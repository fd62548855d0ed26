package containerdconfig_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/node/containerdconfig"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func settings(version string) containerdconfig.Settings {
	v, err := containerdconfig.ParseVersion(version)
	if err != nil {
		panic(err) // a constant of the test
	}
	return containerdconfig.Settings{Version: v, Snapshotter: "berth", Socket: "/run/berth/berthd.sock",
		Root: "/var/lib/berth", Platform: "linux/amd64", CRI: true}
}

var versions = []string{"1.7", "2.0", "2.1", "2.2", "2.3", "2.4"}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]containerdconfig.Version{
		"2.4":     {Major: 2, Minor: 4},
		"v1.7.35": {Major: 1, Minor: 7},
		"containerd github.com/containerd/containerd/v2 2.4.2+unknown ":       {Major: 2, Minor: 4},
		"containerd github.com/containerd/containerd 1.7.35+unknown ":         {Major: 1, Minor: 7},
		"containerd github.com/containerd/containerd/v2 v2.1.9 ee787a3":       {Major: 2, Minor: 1},
		"containerd containerd.io 2.0.14 0123":                                {Major: 2, Minor: 0},
		"containerd github.com/containerd/containerd 1.7.24~ds1 1.7.24~ds1-6": {Major: 1, Minor: 7},
		"3.0": {Major: 3, Minor: 0},
	} {
		got, err := containerdconfig.ParseVersion(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	_, err := containerdconfig.ParseVersion("new")
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = containerdconfig.ParseVersion("1.6.36")
	require.ErrorIs(t, err, errdefs.ErrNotImplemented)
}

func TestSnippet(t *testing.T) {
	for _, v := range versions {
		t.Run(v, func(t *testing.T) {
			got, err := containerdconfig.Snippet(settings(v))
			require.NoError(t, err)
			golden := filepath.Join("testdata", "snippet-"+v+".toml")
			if *update {
				require.NoError(t, os.WriteFile(golden, got, 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), string(got))

			// What is printed is what is checked for.
			c, err := containerdconfig.Parse(got)
			require.NoError(t, err)
			require.Empty(t, containerdconfig.Check(c, settings(v)))
		})
	}
}

func TestSnippetRefusesWhatItWouldHaveToQuote(t *testing.T) {
	s := settings("2.4")
	s.Root = "/var/lib/\"\n[evil]"
	_, err := containerdconfig.Snippet(s)
	require.ErrorContains(t, err, "cannot stand")
}

// TestSnippetAgainstContainerd lets containerd itself read the snippet, if the binary of that version is at hand.
func TestSnippetAgainstContainerd(t *testing.T) {
	found := 0
	for _, binary := range binaries(t) {
		version, _, err := containerdconfig.BinaryVersion(t.Context(), binary)
		require.NoError(t, err)
		found++
		t.Run(version.String(), func(t *testing.T) {
			s := settings(version.String())
			snippet, err := containerdconfig.Snippet(s)
			require.NoError(t, err)
			path := filepath.Join(t.TempDir(), "config.toml")
			require.NoError(t, os.WriteFile(path, snippet, 0o600))
			out, err := exec.CommandContext(t.Context(), binary, "--config", path, "config", "dump").CombinedOutput()
			require.NoError(t, err, string(out))
			require.NotContains(t, string(out), "unknown key")
			require.NotContains(t, string(out), "migrated")

			c, err := containerdconfig.Dump(t.Context(), binary, path)
			require.NoError(t, err)
			require.Equal(t, version.ConfigVersion(), c.Version)
			require.Empty(t, containerdconfig.Check(c, s))
			require.Equal(t, "overlayfs", c.Unpack()[0].Snapshotter)

			// The check finds that containerd by itself lacks everything.
			require.NoError(t, os.WriteFile(path, nil, 0o600))
			c, err = containerdconfig.Dump(t.Context(), binary, path)
			require.NoError(t, err)
			require.NotEmpty(t, containerdconfig.Check(c, s))
		})
	}
	if found == 0 {
		t.Skip("no containerd binary")
	}
}

// binaries are containerds in the directories that the build keeps its tools in, and the one in PATH.
func binaries(t *testing.T) []string {
	t.Helper()
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	if dir := os.Getenv("BERTH_CACHE"); dir != "" {
		cache = dir
	} else {
		cache = filepath.Join(cache, "berth")
	}
	all, err := filepath.Glob(filepath.Join(cache, "tools", "containerd-*", "containerd"))
	require.NoError(t, err)
	if path, err := exec.LookPath("containerd"); err == nil {
		all = append(all, path)
	}
	return all
}

func TestCheck(t *testing.T) {
	const good = `
[proxy_plugins.berth]
type = "snapshot"
address = "/run/berth/berthd.sock"
capabilities = ["remap-ids"]
[proxy_plugins.berth.exports]
root = "/var/lib/berth"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux/amd64"
snapshotter = "berth"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "berth"
`
	c, err := containerdconfig.Parse([]byte(good))
	require.NoError(t, err)
	require.Empty(t, containerdconfig.Check(c, settings("2.3")))

	for name, tc := range map[string]struct {
		change func(*containerdconfig.Config, *containerdconfig.ProxyPlugin)
		fatal  bool
		want   string
	}{
		"no plugin": {func(c *containerdconfig.Config, _ *containerdconfig.ProxyPlugin) { c.ProxyPlugins = nil },
			true, `no proxy plugin "berth"`},
		"other name": {func(c *containerdconfig.Config, p *containerdconfig.ProxyPlugin) {
			c.ProxyPlugins = map[string]containerdconfig.ProxyPlugin{"remote": *p}
		}, true, `--snapshotter remote`},
		"type": {func(_ *containerdconfig.Config, p *containerdconfig.ProxyPlugin) { p.Type = "diff" }, true, `type is "diff"`},
		"address": {func(_ *containerdconfig.Config, p *containerdconfig.ProxyPlugin) { p.Address = "/run/x.sock" },
			true, `address is "/run/x.sock"`},
		"root": {func(_ *containerdconfig.Config, p *containerdconfig.ProxyPlugin) { p.Exports = nil }, false, "exports.root"},
		"no remap-ids": {func(_ *containerdconfig.Config, p *containerdconfig.ProxyPlugin) { p.Capabilities = nil },
			false, "remap-ids"},
		"rebase too early": {func(_ *containerdconfig.Config, p *containerdconfig.ProxyPlugin) {
			p.Capabilities = []string{"remap-ids", "rebase"}
		}, false, "has rebase"},
		"no unpack_config": {func(c *containerdconfig.Config, _ *containerdconfig.ProxyPlugin) {
			delete(c.Plugins, "io.containerd.transfer.v1.local")
		}, true, "no unpack platforms defined"},
		"cri": {func(c *containerdconfig.Config, _ *containerdconfig.ProxyPlugin) {
			delete(c.Plugins, "io.containerd.cri.v1.images")
		}, false, `snapshotter "overlayfs"`},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := containerdconfig.Parse([]byte(good))
			require.NoError(t, err)
			p := c.ProxyPlugins["berth"]
			c.ProxyPlugins = map[string]containerdconfig.ProxyPlugin{}
			tc.change(&c, &p)
			if c.ProxyPlugins != nil && len(c.ProxyPlugins) == 0 {
				c.ProxyPlugins["berth"] = p
			}
			got := containerdconfig.Check(c, settings("2.3"))
			require.Len(t, got, 1)
			require.Equal(t, tc.fatal, got[0].Fatal)
			require.Contains(t, got[0].What, tc.want)
			require.NotEmpty(t, got[0].Advice)
		})
	}
}

func TestReadFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	main := write("config.toml", "version = 3\nimports = [\"conf.d/*.toml\", \"config.toml\"]\n[proxy_plugins.a]\ntype = \"snapshot\"\n")
	snippet, err := containerdconfig.Snippet(settings("2.1"))
	require.NoError(t, err)
	write("conf.d/berth.toml", string(snippet))
	c, err := containerdconfig.ReadFiles(main)
	require.NoError(t, err)
	require.Len(t, c.ProxyPlugins, 2)
	require.Empty(t, containerdconfig.Check(c, settings("2.1")))

	write("conf.d/bad.toml", "= nonsense")
	_, err = containerdconfig.ReadFiles(main)
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.ErrorContains(t, err, "bad.toml")
	_, err = containerdconfig.ReadFiles(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}
