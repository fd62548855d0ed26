// Package tools finds the programs that tests run: those of the module itself, built on demand, and the pinned foreign
// ones that scripts/tools builds and caches.
package tools

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Versions of containerd that berth is tested with; the last is the default.
func Versions() []string {
	return []string{"1.7.35", "2.0.14", "2.1.9", "2.2.9", "2.3.7", DefaultContainerd}
}

// DefaultContainerd is the version that everything is tested with first.
const DefaultContainerd = "2.4.2"

// Root is the module's directory: the nearest one above the working directory with a go.mod of this module. Tests run
// in the directory of their package, commands in the directory they were started in.
func Root() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the module's directory: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod")) //nolint:gosec // a parent of the working directory
		if err == nil && bytes.HasPrefix(mod, []byte("module berth.dev/berth\n")) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find the module's directory: no go.mod of berth.dev/berth in %s or above it", start)
		}
	}
}

// Dir of a foreign tool, such as "registry" or "containerd@2.4.2". It is built if it is not in the cache yet.
func Dir(ctx context.Context, tool string) (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	out, err := output(exec.CommandContext(ctx, filepath.Join(root, "scripts", "tools"), tool))
	if err != nil {
		return "", fmt.Errorf("get tool %s: %w", tool, err)
	}
	return strings.TrimSpace(out), nil
}

// CacheDir is a directory that outlives a run, for what is costly to make; name is created below it. It is
// $BERTH_CACHE, or berth in the user's cache directory.
func CacheDir(name string) (string, error) {
	base := os.Getenv("BERTH_CACHE")
	if base == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			user = "/root/.cache"
		}
		base = filepath.Join(user, "berth")
	}
	dir := filepath.Join(base, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cache directory: %w", err)
	}
	return dir, nil
}

// BuildBerth builds berth and berthd into dir, unless $BERTH_BIN names a directory that has them; it returns the
// directory to use.
func BuildBerth(ctx context.Context, dir string) (string, error) {
	if bin := os.Getenv("BERTH_BIN"); bin != "" {
		return bin, nil
	}
	root, err := Root()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+string(filepath.Separator), "./cmd/...")
	cmd.Dir = root
	if _, err := output(cmd); err != nil {
		return "", fmt.Errorf("build berth: %w", err)
	}
	return dir, nil
}

// Build one program of the module into a file.
func Build(ctx context.Context, file, pkg string) error {
	root, err := Root()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-o", file, pkg)
	cmd.Dir = root
	if _, err := output(cmd); err != nil {
		return fmt.Errorf("build %s: %w", pkg, err)
	}
	return nil
}

func output(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return string(out), nil
}
