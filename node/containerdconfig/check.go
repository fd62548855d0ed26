package containerdconfig

import (
	"fmt"
	"slices"
	"strings"
)

// Problem is something that a configuration lacks or has wrong.
type Problem struct {
	// Fatal means that pulls with berthd fail; otherwise something works less well.
	Fatal bool
	// What is wrong, and what to change.
	What, Advice string
}

// Check returns what is wrong with a containerd's configuration for the settings. Without problems all is well.
func Check(c Config, s Settings) []Problem {
	advice := fmt.Sprintf("put what \"berth config containerd --version %s\" prints into containerd's configuration and restart containerd", s.Version)
	plugin, ok := c.ProxyPlugins[s.Snapshotter]
	if !ok {
		what := fmt.Sprintf("containerd has no proxy plugin %q", s.Snapshotter)
		for name, p := range c.ProxyPlugins {
			if p.Address == s.Socket {
				what += fmt.Sprintf(", but %q uses the socket: try --snapshotter %s", name, name)
			}
		}
		return []Problem{{true, what, advice}}
	}
	problems := checkPlugin(plugin, s)
	problems = append(problems, checkTransfer(c, s)...)
	return append(problems, checkCRI(c, s)...)
}

func checkPlugin(p ProxyPlugin, s Settings) []Problem {
	var problems []Problem
	section := "proxy_plugins." + s.Snapshotter
	if p.Type != "snapshot" {
		problems = append(problems, Problem{true, fmt.Sprintf("%s.type is %q", section, p.Type), `set type = "snapshot"`})
	}
	if p.Address != s.Socket {
		problems = append(problems, Problem{true, fmt.Sprintf("%s.address is %q, berthd serves on %q", section, p.Address, s.Socket),
			fmt.Sprintf("set address = %q, or socket in berthd's configuration", s.Socket)})
	}
	if root := p.Exports["root"]; root != s.Root {
		problems = append(problems, Problem{false, fmt.Sprintf("%s.exports.root is %q, berthd's root is %q: CRI measures the wrong file system of images", section, root, s.Root),
			fmt.Sprintf("set root = %q in [%s.exports]", s.Root, section)})
	}
	return append(problems, checkCapabilities(section, p, s)...)
}

func checkCapabilities(section string, p ProxyPlugin, s Settings) (problems []Problem) {
	for _, c := range []struct{ name, without, with string }{
		{capaRemapIDs, "each pod in a user namespace copies its image",
			"pods in a user namespace cannot start from layers on several file systems"},
		{capaRebase, "", "layers on disks are pulled nonetheless when containerd unpacks in parallel"},
	} {
		has, wants := slices.Contains(p.Capabilities, c.name), slices.Contains(s.Version.Capabilities(), c.name)
		switch {
		case wants && !has && c.without != "":
			problems = append(problems, Problem{false, fmt.Sprintf("%s.capabilities lacks %s: %s", section, c.name, c.without),
				fmt.Sprintf("add %q to capabilities", c.name)})
		case has && !wants:
			problems = append(problems, Problem{false, fmt.Sprintf("%s.capabilities has %s, with which in containerd %s %s", section, c.name, s.Version, c.with),
				fmt.Sprintf("remove %q from capabilities", c.name)})
		}
	}
	return problems
}

func checkTransfer(c Config, s Settings) []Problem {
	var listed []string
	for _, u := range c.Unpack() {
		if u.Snapshotter == s.Snapshotter {
			return nil
		}
		listed = append(listed, u.Snapshotter)
	}
	what := fmt.Sprintf("the transfer plugin has no unpack_config for %s", s.Snapshotter)
	if len(listed) > 0 {
		what += " (only for " + strings.Join(listed, ", ") + ")"
	}
	pulls := "pulls with ctr fail"
	if s.Version.pullsByTransfer() {
		pulls = "pulls with ctr and by Kubernetes fail"
	}
	return []Problem{{true, what + `: ` + pulls + ` with "no unpack platforms defined"`,
		fmt.Sprintf("add an unpack_config for it, and repeat the one for overlayfs, which it replaces; \"berth config containerd --version %s\" prints both", s.Version)}}
}

func checkCRI(c Config, s Settings) []Problem {
	if !s.CRI {
		return nil
	}
	table := criTable(s.Version)
	if got := c.CRISnapshotter(); got != s.Snapshotter {
		if got == "" {
			got = "overlayfs"
		}
		return []Problem{{false, fmt.Sprintf("Kubernetes uses the snapshotter %q: only pulls that name %s find layers on disks", got, s.Snapshotter),
			fmt.Sprintf("set snapshotter = %q in [%s], unless that is what you want", s.Snapshotter, table)}}
	}
	return nil
}
