package containerdconfig

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// defaultHostsDirs is where hosts.toml files are if the configuration says nothing; it is containerd's own default.
const defaultHostsDirs = "/etc/containerd/certs.d:/etc/docker/certs.d"

// Registries is how containerd reaches registries when Kubernetes has it pull.
type Registries struct {
	hostsDirs []string
	auths     map[string]map[string]any
}

// Registries returns what the configuration says, in the place of containerd 2 or in that of 1.7.
func (c Config) Registries() Registries {
	r := Registries{auths: map[string]map[string]any{}}
	dirs := ""
	for _, plugin := range []string{"io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"} {
		registry := c.at(plugin, "registry")
		if path, _ := registry["config_path"].(string); path != "" && dirs == "" {
			dirs = path
		}
		for host := range c.at(plugin, "registry", "configs") {
			if auth := c.at(plugin, "registry", "configs", host, "auth"); auth != nil && r.auths[host] == nil {
				r.auths[host] = auth
			}
		}
	}
	if path, _ := c.at(transferPlugin)["config_path"].(string); path != "" && dirs == "" {
		dirs = path
	}
	if dirs == "" {
		dirs = defaultHostsDirs
	}
	r.hostsDirs = filepath.SplitList(dirs)
	return r
}

// HostsDir returns the directory whose hosts.toml says how to reach a registry, given as host or host:port. It is the
// first directory that has the registry or a default; the path is empty if none has.
func (r Registries) HostsDir(host string) string {
	names := []string{host, "_default"}
	if at := strings.LastIndexByte(host, ':'); at > 0 {
		names = append(names, host[:at]+"_"+host[at+1:]+"_") // a colon cannot be in every file system
	}
	for _, dir := range r.hostsDirs {
		for _, name := range names {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				return dir
			}
		}
	}
	return ""
}

// Credentials returns what the configuration has for a registry, given as host or host:port. An identity token comes
// without a user.
func (r Registries) Credentials(host string) (user, secret string, err error) {
	auth := r.auths[host]
	text := func(key string) string {
		s, _ := auth[key].(string)
		return s
	}
	if token := text("identitytoken"); token != "" {
		return "", token, nil
	}
	if user = text("username"); user != "" {
		return user, text("password"), nil
	}
	if text("auth") == "" {
		return "", "", nil
	}
	// Docker writes auth in this form, with zero bytes at the end in old files.
	raw, err := base64.StdEncoding.DecodeString(text("auth"))
	if err != nil {
		return "", "", fmt.Errorf("read containerd's credentials for %s: auth: %w", host, err)
	}
	user, secret, _ = strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
	return user, secret, nil
}

// RunningFile returns the configuration file that the containerd with this process ID was started with.
func RunningFile(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return DefaultPath
	}
	return fileOf(strings.Split(strings.TrimRight(string(raw), "\x00"), "\x00"))
}

func fileOf(args []string) string {
	for i, arg := range args {
		name, value, given := strings.Cut(arg, "=")
		switch name {
		case "--config", "-config", "-c", "--c":
			if given {
				return value
			}
			if i+1 < len(args) {
				return args[i+1]
			}
		}
	}
	return DefaultPath
}
