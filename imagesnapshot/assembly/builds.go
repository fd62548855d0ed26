package assembly

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"berth.dev/berth/imagesnapshot/buildproc"
)

// Builds are builds in processes of their own on this machine.
type Builds struct {
	// Command is the berth program; empty for the one beside the program that runs.
	Command string
	// Directory takes credentials and the layers that wait for their turn.
	Directory string
	// Cgroup, version 2, is left to this process, which moves to a group in it; empty for that of its service.
	Cgroup string
	// CPUWeight, MemoryBytes and HostsDirectory are those of buildproc.Config.
	CPUWeight      int
	MemoryBytes    int64
	HostsDirectory string
	// SecretsDirectory holds the credentials that specs name. If it is empty, there are no credentials.
	SecretsDirectory string
}

// OpenBuilder makes a builder. It logs which limits builds have if they cannot have a cgroup.
func OpenBuilder(ctx context.Context, b Builds) (*buildproc.Builder, error) {
	if b.Command == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the program of builds: %w", err)
		}
		b.Command = filepath.Join(filepath.Dir(self), "berth")
	}
	cgroup, err := buildproc.MoveToSubgroup(b.Cgroup)
	if err != nil {
		entry := log.G(ctx).WithError(err)
		if errdefs.IsNotFound(err) {
			entry.Info("builds are limited by their priority and the size of their memory, not by a cgroup")
		} else {
			entry.Warn("builds have no cgroup: they are limited by their priority and the size of their memory")
		}
	}
	cfg := buildproc.Config{
		Command: []string{b.Command}, TempDir: b.Directory, Cgroup: cgroup, CPUWeight: b.CPUWeight, MemoryBytes: b.MemoryBytes,
		HostsDir: b.HostsDirectory,
	}
	if b.SecretsDirectory != "" {
		cfg.Secrets = buildproc.SecretDir(b.SecretsDirectory)
	}
	return buildproc.Open(cfg)
}
