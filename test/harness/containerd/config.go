package containerd

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Proxy is a proxy snapshotter that containerd is told about.
type Proxy struct {
	// Name of the plugin.
	Name string
	// Socket of its service and Root of its files.
	Socket, Root string
	// Capabilities announced for it. A proxy plugin cannot announce its own.
	Capabilities []string
}

// Config of one containerd.
type Config struct {
	// Version of containerd, such as "2.4.2".
	Version string
	// Dir holds everything: root, state, sockets, log. Sockets need it to be short.
	Dir string
	// Namespace for what names none; empty for "default". runc and the cgroups of the host know a container by
	// namespace and name, so daemons that run at the same time need different ones. It is cleaned up by Close.
	Namespace string
	// Proxies beside the built-in snapshotters. Each can be used by pulls.
	Proxies []Proxy
	// CRISnapshotter is the snapshotter of CRI images; empty for overlayfs.
	CRISnapshotter string
	// SandboxImage is the reference of the pause image.
	SandboxImage string
	// MaxConcurrentUnpacks of the transfer service; 0 for containerd's default, which is 1. Known since 2.2.
	MaxConcurrentUnpacks int
	// CAFile has the only certificates to trust; empty for the system's.
	CAFile string
	// Snippet is a configuration, in TOML, that is laid over the rest: tables are merged, everything else replaced. It
	// decides the version of the format.
	Snippet []byte
}

// Legacy says that the version is 1.x, whose ctr and configuration differ.
func (c Config) Legacy() bool { return strings.HasPrefix(c.Version, "1.") }

// minor is the second number of a 2.x version.
func (c Config) minor() int {
	var major, minor int
	if n, err := fmt.Sscanf(c.Version, "%d.%d.", &major, &minor); n != 2 || err != nil || major < 2 {
		return 0
	}
	return minor
}

// ParallelUnpack says that the version has max_concurrent_unpacks.
func (c Config) ParallelUnpack() bool { return !c.Legacy() && c.minor() >= 2 }

func (c Config) socket() string     { return filepath.Join(c.Dir, "c.sock") }
func (c Config) root() string       { return filepath.Join(c.Dir, "root") }
func (c Config) state() string      { return filepath.Join(c.Dir, "state") }
func (c Config) certsDir() string   { return filepath.Join(c.Dir, "certs.d") }
func (c Config) cniDir() string     { return filepath.Join(c.Dir, "cni") }
func (c Config) cniBinDir() string  { return filepath.Join(c.Dir, "cni-bin") }
func (c Config) configTOML() string { return filepath.Join(c.Dir, "containerd.toml") }

// format is the newest version of the configuration file that the version of containerd knows.
func (c Config) format() int64 {
	switch {
	case c.Legacy():
		return 2
	case c.minor() <= 2:
		return 3
	}
	return 4
}

// text is the configuration file.
func (c Config) text() ([]byte, error) {
	var over, all map[string]any
	if err := toml.Unmarshal(c.Snippet, &over); err != nil {
		return nil, fmt.Errorf("decode snippet of configuration: %w", err)
	}
	format := c.format()
	if v, ok := over["version"].(int64); ok {
		format = v
	}
	own := c.own(format)
	if err := toml.Unmarshal([]byte(own), &all); err != nil {
		return nil, fmt.Errorf("decode configuration: %w\n%s", err, own)
	}
	merge(all, over)
	b, err := toml.Marshal(all)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	return b, nil
}

// merge lays tables over tables.
func merge(under, over map[string]any) {
	for key, value := range over {
		table, isTable := value.(map[string]any)
		below, wasTable := under[key].(map[string]any)
		if isTable && wasTable {
			merge(below, table)
			continue
		}
		under[key] = value
	}
}

// own is what the harness configures, in a format.
func (c Config) own(configVersion int64) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("version = %d", configVersion)
	line("root = %q", c.root())
	line("state = %q", c.state())
	// Files of the host's own containerd must not change what is tested.
	line("imports = []")
	c.writeServers(line, configVersion)
	line("[plugins.'io.containerd.internal.v1.opt']\n  path = %q", filepath.Join(c.Dir, "opt"))
	line("[plugins.'io.containerd.nri.v1.nri']\n  disable = true")
	c.writeTransfer(line)
	if c.Legacy() {
		c.writeLegacyCRI(line)
	} else {
		c.writeCRI(line)
	}
	for _, p := range c.Proxies {
		line("[proxy_plugins.%s]\n  type = 'snapshot'\n  address = %q", p.Name, p.Socket)
		line("  capabilities = [%s]", quoted(p.Capabilities))
		line("  [proxy_plugins.%s.exports]\n    root = %q", p.Name, p.Root)
	}
	return b.String()
}

func (c Config) writeServers(line func(string, ...any), configVersion int64) {
	if configVersion < 4 {
		line("[grpc]\n  address = %q", c.socket())
		line("[ttrpc]\n  address = %q", c.socket()+".ttrpc")
		return
	}
	line("[plugins.'io.containerd.server.v1.grpc']\n  address = %q", c.socket())
	line("[plugins.'io.containerd.server.v1.ttrpc']\n  address = %q", c.socket()+".ttrpc")
}

// writeTransfer lists every snapshotter that pulls may unpack for: listing any replaces the default, which is
// overlayfs.
func (c Config) writeTransfer(line func(string, ...any)) {
	line("[plugins.'io.containerd.transfer.v1.local']")
	if c.MaxConcurrentUnpacks > 0 && c.ParallelUnpack() {
		line("  max_concurrent_unpacks = %d", c.MaxConcurrentUnpacks)
	}
	names := []string{"overlayfs"}
	for _, p := range c.Proxies {
		names = append(names, p.Name)
	}
	for _, name := range names {
		line("  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]")
		line("    platform = %q\n    snapshotter = %q\n    differ = 'walking'", Platform, name)
	}
}

func (c Config) writeCRI(line func(string, ...any)) {
	line("[plugins.'io.containerd.cri.v1.images']")
	if c.CRISnapshotter != "" {
		line("  snapshotter = %q", c.CRISnapshotter)
	}
	if c.SandboxImage != "" {
		line("  [plugins.'io.containerd.cri.v1.images'.pinned_images]\n    sandbox = %q", c.SandboxImage)
	}
	line("  [plugins.'io.containerd.cri.v1.images'.registry]\n    config_path = %q", c.certsDir())
	// Machines without CAP_SYS_RESOURCE cannot lower oom_score_adj.
	line("[plugins.'io.containerd.cri.v1.runtime']\n  restrict_oom_score_adj = true")
	line("  [plugins.'io.containerd.cri.v1.runtime'.cni]\n    conf_dir = %q", c.cniDir())
	if c.minor() == 0 {
		line("    bin_dir = %q", c.cniBinDir())
	} else {
		line("    bin_dirs = [%q]", c.cniBinDir())
	}
}

func (c Config) writeLegacyCRI(line func(string, ...any)) {
	line("[plugins.'io.containerd.grpc.v1.cri']\n  restrict_oom_score_adj = true")
	if c.SandboxImage != "" {
		line("  sandbox_image = %q", c.SandboxImage)
	}
	if c.CRISnapshotter != "" {
		line("  [plugins.'io.containerd.grpc.v1.cri'.containerd]\n    snapshotter = %q", c.CRISnapshotter)
	}
	line("  [plugins.'io.containerd.grpc.v1.cri'.registry]\n    config_path = %q", c.certsDir())
	line("  [plugins.'io.containerd.grpc.v1.cri'.cni]\n    conf_dir = %q\n    bin_dir = %q", c.cniDir(), c.cniBinDir())
}

func quoted(words []string) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(q, ", ")
}
