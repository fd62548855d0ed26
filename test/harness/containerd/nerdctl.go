package containerd

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"berth.dev/berth/test/harness/tools"
)

// Nerdctl runs nerdctl in the daemon's namespace and returns what it printed; an error has its complaint. Its state
// lies in the daemon's directory. Containers need "--net none": nothing is set up on the host.
func (d *Daemon) Nerdctl(ctx context.Context, snapshotter string, args ...string) (string, error) {
	bin, err := tools.Dir(ctx, "nerdctl")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, CtrTimeout)
	defer cancel()
	below := func(name string) string { return filepath.Join(d.cfg.Dir, "nerdctl", name) }
	all := []string{
		"--address", d.cfg.socket(), "--namespace", cmp.Or(d.cfg.Namespace, "default"), "--snapshotter", snapshotter,
		"--data-root", below("data"), "--cni-path", below("cni-bin"), "--cni-netconfpath", below("cni"),
		"--cgroup-manager", "cgroupfs", "--hosts-dir", d.cfg.certsDir(),
	}
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "nerdctl"), append(all, args...)...) //nolint:gosec // the tool of the tests
	if d.cfg.CAFile != "" {
		cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+d.cfg.CAFile)
	}
	cmd.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("nerdctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
