package config

import (
	"fmt"
	"regexp"
)

// Import is about registering the images of attached disks in containerd.
type Import struct {
	// Enabled registers the images of all disks that do not say otherwise. Off, because a disk's names for its images
	// then stand on this node for what the registries of those names have.
	Enabled bool `toml:"enabled"`
	// Namespaces of containerd to register them in.
	Namespaces []string `toml:"namespaces"`
	// Pinned keeps the kubelet from removing them when disk space is short.
	Pinned bool `toml:"pinned"`
	// Images, if not empty, are patterns of the only normalised references that are registered.
	Images []string `toml:"images"`
	// Containerd is the unix socket of its services.
	Containerd string `toml:"containerd"`
	// Snapshotter is the name of the proxy plugin that containerd knows this berthd by.
	Snapshotter string `toml:"snapshotter"`
}

func defaultImport() Import {
	return Import{
		Namespaces: []string{"k8s.io"}, Images: []string{},
		Containerd: "/run/containerd/containerd.sock", Snapshotter: "berth",
	}
}

// ImportsFrom says whether the images of a disk of this name are registered in containerd.
func (c *Config) ImportsFrom(disk string) bool {
	for _, d := range c.Disks {
		if d.Name == disk && d.Import != nil {
			return *d.Import
		}
	}
	return c.Import.Enabled
}

const (
	// maxImportPatterns and maxPatternBytes are more than anybody writes by hand.
	maxImportPatterns = 1000
	maxPatternBytes   = 512
)

// containerdName is what containerd takes as a namespace or the name of a plugin (containerd/pkg/identifiers).
var containerdName = regexp.MustCompile(`^[A-Za-z0-9]+(?:[-._][A-Za-z0-9]+)*$`)

func (i Import) check() []error {
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(i.Namespaces) == 0 {
		refuse("import.namespaces: at least one is required, Kubernetes uses \"k8s.io\"")
	}
	for _, ns := range i.Namespaces {
		if !containerdName.MatchString(ns) || len(ns) > 76 {
			refuse("import.namespaces: %q is no namespace of containerd: 1 to 76 letters and digits, with single '-', '_' or '.' between them", ns)
		}
	}
	if len(i.Images) > maxImportPatterns {
		refuse("import.images: %d patterns, at most %d are allowed", len(i.Images), maxImportPatterns)
	}
	for _, p := range i.Images {
		if p == "" || len(p) > maxPatternBytes {
			refuse("import.images: %.80q: a pattern has 1 to %d bytes, such as \"registry.example.com/team/*\"", p, maxPatternBytes)
		}
	}
	if !cleanAbs(i.Containerd) || len(i.Containerd) > maxSocket {
		refuse("import.containerd: %q is not a clean absolute path of at most %d bytes", i.Containerd, maxSocket)
	}
	if !containerdName.MatchString(i.Snapshotter) {
		refuse("import.snapshotter: %q is no name of a plugin; \"berth config containerd\" calls it berth", i.Snapshotter)
	}
	return errs
}
