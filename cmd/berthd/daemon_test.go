package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"berth.dev/berth/internal/config"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

func TestStartAndStop(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.start()
	info, err := os.Stat(p.socket())
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	p.healthy()
	st, err := p.control().Status(t.Context(), &controlv1.StatusRequest{})
	require.NoError(t, err)
	require.EqualValues(t, p.cmd.Process.Pid, st.GetPid())
	require.Equal(t, p.root(), st.GetRoot())
	require.Empty(t, st.GetDisks())

	// A client that watches does not keep the daemon from stopping.
	stream, err := p.control().WatchEvents(t.Context(), &controlv1.WatchEventsRequest{})
	require.NoError(t, err)
	require.NoError(t, p.cmd.Process.Signal(unix.SIGTERM))
	p.notified("STOPPING=1")
	require.NoError(t, p.wait())
	_, err = stream.Recv()
	require.Error(t, err)
	require.NoFileExists(t, p.socket())

	p.start()
	p.healthy()
	p.stop()
}

func TestOneDaemonPerRootAndSocket(t *testing.T) {
	t.Parallel()
	first := newProcess(t, "")
	first.start()

	second := newProcess(t, "")
	write := func(root, socket string) {
		text := "root = " + strconv.Quote(root) + "\nsocket = " + strconv.Quote(socket) + "\n[metrics]\naddress = \"\"\n"
		require.NoError(t, os.WriteFile(second.path("config.toml"), []byte(text), 0o600))
	}
	write(first.root(), second.socket())
	second.begin()
	require.Error(t, second.wait())
	require.Contains(t, second.log.String(), "another berthd (process "+strconv.Itoa(first.cmd.Process.Pid)+")")
	require.NoFileExists(t, second.socket())

	write(second.root(), first.socket())
	second.begin()
	require.Error(t, second.wait())
	require.Contains(t, second.log.String(), "somebody listens on it")
	first.healthy()

	// With the first one gone its root can be had.
	first.stop()
	write(first.root(), second.socket())
	second.start()
	second.stop()
}

func TestSocketLeftBehind(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.start()
	p.kill()
	require.FileExists(t, p.socket())
	p.start()
	p.healthy()
	p.stop()

	require.NoError(t, os.WriteFile(p.socket(), []byte("precious"), 0o600))
	p.begin()
	require.Error(t, p.wait())
	require.Contains(t, p.log.String(), "no socket: remove it, or name another")
	data, err := os.ReadFile(p.socket())
	require.NoError(t, err)
	require.Equal(t, "precious", string(data))
}

func TestWatchdog(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "")
	p.begin("WATCHDOG_USEC=200000") // no WATCHDOG_PID: for whichever process reads it
	p.notified("WATCHDOG=1")
	p.notified("WATCHDOG=1")
	p.stop()
}

func TestConfigCommands(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	run := func(args ...string) (string, error) {
		var out bytes.Buffer
		cmd := newCommand()
		cmd.SetOut(&out)
		cmd.SetErr(&out)
		cmd.SetArgs(args)
		err := cmd.ExecuteContext(t.Context())
		return out.String(), err
	}
	out, err := run("config", "default")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, []byte(out), 0o600))
	c, err := config.Load(file)
	require.NoError(t, err)
	require.Equal(t, config.Default(), c)

	out, err = run("config", "check", "--config", file)
	require.NoError(t, err)
	require.Contains(t, out, "is fine: root /var/lib/berth")

	out, err = run("config", "check", "--config", file, "--root", "/b", "--socket", "/b.sock")
	require.NoError(t, err)
	require.Contains(t, out, "root /b, socket /b.sock")

	_, err = run("config", "check", "--config", file, "--log-level", "loud")
	require.ErrorContains(t, err, "log.level")

	_, err = run("config", "check", "--config", filepath.Join(dir, "none"))
	require.ErrorContains(t, err, "no such file")

	require.NoError(t, os.WriteFile(file, []byte("roto = \"/b\"\n"), 0o600))
	for _, args := range [][]string{{"config", "check", "--config", file}, {"--config", file}} {
		_, err = run(args...)
		require.ErrorContains(t, err, `line 1: unknown key roto, did you mean "root"?`)
	}
}

func TestLogFormat(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "[log]\nformat = \"json\"\nlevel = \"info\"\n")
	p.start()
	p.stop()
	for line := range bytes.Lines([]byte(p.log.String())) {
		require.True(t, bytes.HasPrefix(line, []byte("{")), string(line))
	}
	require.Contains(t, p.log.String(), `"msg":"berthd serves"`)
}

// TestMetricsAddressTaken: no metrics, but a daemon.
func TestMetricsAddressTaken(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	p := newProcess(t, "[metrics]\naddress = \""+l.Addr().String()+"\"\n")
	p.start()
	p.healthy()
	p.eventually("the complaint", func() bool { return bytes.Contains([]byte(p.log.String()), []byte("no metrics: cannot listen")) })
	p.stop()
}

// TestIdleMemory measures the program as it is installed: the test binary carries more, and perhaps the race detector.
func TestIdleMemory(t *testing.T) {
	t.Parallel()
	p := newProcess(t, "[metrics]\naddress = \"127.0.0.1:0\"\n")
	binary := p.path("berthd")
	out, err := exec.CommandContext(t.Context(), "go", "build", "-o", binary, ".").CombinedOutput()
	require.NoError(t, err, string(out))
	p.binary = binary
	p.start()
	p.healthy()
	kib := residentKiB(t, p.cmd.Process.Pid)
	t.Logf("%d KiB resident", kib)
	require.Less(t, kib, 40<<10)
	p.stop()
}

func residentKiB(t *testing.T, pid int) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	require.NoError(t, err)
	for line := range bytes.Lines(data) {
		if fields := bytes.Fields(line); len(fields) == 3 && string(fields[0]) == "VmRSS:" {
			kib, err := strconv.Atoi(string(fields[1]))
			require.NoError(t, err)
			return kib
		}
	}
	require.Fail(t, "no VmRSS")
	return 0
}
