// Package version says which berth this is.
package version

import "runtime/debug"

// String is the module version the binary was built from, or the commit of its work tree, as the Go toolchain recorded
// them (go help buildvcs).
func String() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}
