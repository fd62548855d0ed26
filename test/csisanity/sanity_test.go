package csisanity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
)

// The variants of the driver that the suite is run against. Ginkgo runs one suite per process, so each is a process.
var variants = map[string][]string{
	"everything":      {"--max-volumes=4"},
	"no publish":      {"--without=publish"},
	"no stage":        {"--without=stage"},
	"nothing at node": {"--without=publish,stage"},
	"no snapshots":    {"--without=snapshots"},
	"bare":            {"--without=publish,stage,readonly,snapshots,list,get"},
}

const socketVariable = "BERTH_CSISANITY_SOCKET"

// TestSuite is the suite itself, for a driver that runs already; TestDriver starts it as a child.
func TestSuite(t *testing.T) {
	socket := os.Getenv(socketVariable)
	if socket == "" {
		t.Skip("TestDriver runs it")
	}
	dir := t.TempDir()
	config := sanity.NewTestConfig()
	config.Address = "unix://" + socket
	config.TargetPath = filepath.Join(dir, "target")
	config.StagingPath = filepath.Join(dir, "staging")
	config.TestVolumeAccessType = "block"
	config.TestVolumeSize = 16 << 20
	config.TestNodeVolumeAttachLimit = true
	sanity.Test(t, config)
}

// TestDriver builds berth and runs the suite against each variant, and looks at what is left afterwards.
func TestDriver(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if os.Getenv(socketVariable) != "" {
		t.Skip("is itself a child")
	}
	berth := filepath.Join(t.TempDir(), "berth")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", berth, "./cmd/berth")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build berth: %v\n%s", err, out)
	}
	for name, args := range variants {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "berth-csisanity-")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.RemoveAll(dir) })
			storage, socket := filepath.Join(dir, "storage"), filepath.Join(dir, "csi.sock")
			startDriver(t, append([]string{berth, "csi-loop", "--directory=" + storage, "--socket=" + socket, "--node-id=sanity"}, args...), socket)
			report := filepath.Join(dir, "report.json")
			runSuite(t, socket, report)
			checkReport(t, report)
			for _, kind := range []string{"volumes", "snapshots", "attachments"} {
				left, err := os.ReadDir(filepath.Join(storage, kind))
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range left {
					t.Errorf("%s of %s is left", kind, e.Name())
				}
			}
			expectNoMounts(t, dir)
		})
	}
}

func startDriver(t *testing.T, args []string, socket string) {
	t.Helper()
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), args[0], args[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("driver: %v\n%s", err, out.String())
		}
	})
	deadline := time.NewTimer(30 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := os.Stat(socket); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("driver does not listen on %s", socket)
		}
	}
}

func runSuite(t *testing.T, socket, report string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, "-test.run=^TestSuite$", "-ginkgo.json-report="+report)
	cmd.Env = append(os.Environ(), socketVariable+"="+socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("csi-sanity: %v\n%s", err, out)
	}
}

// leastPassed is below what the smallest variant passes: fewer mean that the suite did not really run.
const leastPassed = 25

func checkReport(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var reports []struct {
		SpecReports []struct{ LeafNodeText, LeafNodeType, State string }
	}
	if err := json.Unmarshal(data, &reports); err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, r := range reports {
		for _, s := range r.SpecReports {
			if s.LeafNodeType == "It" {
				count[s.State]++
			}
		}
	}
	t.Logf("csi-sanity: %v", count)
	if count["failed"] > 0 || count["passed"] < leastPassed {
		t.Errorf("csi-sanity: %v", count)
	}
}

func expectNoMounts(t *testing.T, dir string) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var left error
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir) {
			left = errors.Join(left, fmt.Errorf("mount is left: %s", line))
		}
	}
	if left != nil {
		t.Error(left)
	}
}
