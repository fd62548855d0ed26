package containerdconfig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// DefaultPath is containerd's own.
const DefaultPath = "/etc/containerd/config.toml"

const (
	maxConfig = 4 << 20
	// maxFiles bounds the imports that are followed.
	maxFiles = 100
)

// Config is the part of containerd's configuration that matters to berthd.
type Config struct {
	Version      int                    `toml:"version"`
	Imports      []string               `toml:"imports"`
	ProxyPlugins map[string]ProxyPlugin `toml:"proxy_plugins"`
	Plugins      map[string]any         `toml:"plugins"`
}

// ProxyPlugin is a plugin behind a socket.
type ProxyPlugin struct {
	Type         string            `toml:"type"`
	Address      string            `toml:"address"`
	Capabilities []string          `toml:"capabilities"`
	Exports      map[string]string `toml:"exports"`
}

// Unpack is an entry of the transfer plugin.
type Unpack struct {
	Platform, Snapshotter string
}

// Unpack returns the entries that are listed; an empty list means containerd's default.
func (c Config) Unpack() []Unpack {
	var all []Unpack
	entries, ok := c.at(transferPlugin)["unpack_config"].([]any)
	if !ok {
		return nil
	}
	for _, e := range entries {
		if t, ok := e.(map[string]any); ok {
			platform, _ := t["platform"].(string)
			snapshotter, _ := t["snapshotter"].(string)
			all = append(all, Unpack{platform, snapshotter})
		}
	}
	return all
}

// CRISnapshotter returns the snapshotter that CRI uses, empty if the configuration names none. Newer versions of
// containerd migrate the older place of the setting.
func (c Config) CRISnapshotter() string {
	for _, path := range [][]string{
		{"io.containerd.cri.v1.images"},
		{"io.containerd.grpc.v1.cri", "containerd"},
	} {
		if s, _ := c.at(path...)["snapshotter"].(string); s != "" {
			return s
		}
	}
	return ""
}

// at returns the table with this path below plugins, nil if there is none.
func (c Config) at(path ...string) map[string]any {
	table := c.Plugins
	for _, key := range path {
		next, ok := table[key].(map[string]any)
		if !ok {
			return nil
		}
		table = next
	}
	return table
}

// Parse reads a configuration file or what "containerd config dump" prints.
func Parse(data []byte) (Config, error) {
	var c Config
	if err := toml.Unmarshal(data, &c); err != nil {
		return Config{}, fmt.Errorf("parse containerd's configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// Dump asks the containerd binary for its configuration, which merges all files as containerd does.
func Dump(ctx context.Context, binary, path string) (Config, error) {
	out, err := output(ctx, binary, "--config", path, "config", "dump")
	if err != nil {
		return Config{}, err
	}
	return Parse(out)
}

// BinaryVersion asks the containerd binary for its version.
func BinaryVersion(ctx context.Context, binary string) (Version, string, error) {
	out, err := output(ctx, binary, "--version")
	if err != nil {
		return Version{}, "", err
	}
	text := strings.TrimSpace(string(out))
	v, err := ParseVersion(text)
	return v, text, err
}

func output(ctx context.Context, name string, args ...string) ([]byte, error) {
	out, err := exec.CommandContext(ctx, name, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && len(exit.Stderr) > 0 {
			return nil, fmt.Errorf("run %s: %w: %s", name, err, strings.TrimSpace(string(exit.Stderr)))
		}
		return nil, fmt.Errorf("run %s: %w", name, err)
	}
	return out, nil
}

// ReadFiles reads the file and what it imports, for when there is no binary to ask. A later file's plugin replaces an
// earlier one's, as in containerd 1.7; later versions merge below that.
func ReadFiles(path string) (Config, error) {
	all := Config{ProxyPlugins: map[string]ProxyPlugin{}, Plugins: map[string]any{}}
	err := visit(path, func(_ string, c Config) {
		all.Version = max(all.Version, c.Version)
		maps.Copy(all.ProxyPlugins, c.ProxyPlugins)
		maps.Copy(all.Plugins, c.Plugins)
	})
	if err != nil {
		return Config{}, err
	}
	return all, nil
}

// Files returns the paths of the file and of those that it imports.
func Files(path string) ([]string, error) {
	var files []string
	err := visit(path, func(file string, _ Config) { files = append(files, file) })
	return files, err
}

// visit reads a file and what it imports, each once.
func visit(path string, use func(file string, c Config)) error {
	seen, pending := map[string]bool{}, []string{path}
	for ; len(pending) > 0; pending = pending[1:] {
		p := pending[0]
		if seen[p] {
			continue
		}
		if seen[p] = true; len(seen) > maxFiles {
			return fmt.Errorf("read containerd's configuration %s: more than %d imports", path, maxFiles)
		}
		c, err := readFile(p)
		if err != nil {
			return err
		}
		use(p, c)
		for _, pattern := range c.Imports {
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(p), pattern)
			}
			matches, err := filepath.Glob(pattern)
			if err != nil {
				return fmt.Errorf("containerd's configuration %s imports %q: %w", p, pattern, err)
			}
			pending = append(pending, matches...)
		}
	}
	return nil
}

func readFile(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("read containerd's configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err != nil {
		return Config{}, fmt.Errorf("read containerd's configuration %s: %w", path, err)
	}
	c, err := Parse(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}
