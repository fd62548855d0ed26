package main

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// runAsBerth makes the test binary the program, so that tests have a real process of the code under test.
const runAsBerth = "BERTH_TEST_RUN"

func TestMain(m *testing.M) {
	if os.Getenv(runAsBerth) == "1" {
		main()
		return
	}
	os.Exit(m.Run())
}

func berthProcess(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), runAsBerth+"=1")
	return cmd
}

func exitStatus(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil {
		require.ErrorAs(t, err, &exit)
		return exit.ExitCode()
	}
	return 0
}

func TestExitStatus(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for line, tc := range map[string]struct {
		status int
		says   string
	}{
		"--version":                          {0, "berth "},
		"version":                            {0, "layer disk format 1.1"},
		"image-snapshot":                     {0, "berth image-snapshot [command]"},
		"image-snapshot make":                {2, `unknown command "make" for "berth image-snapshot"`},
		"mend":                               {2, `unknown command "mend"`},
		"attach":                             {2, "accepts 1 arg(s), received 0"},
		"attach /x --expect latest":          {2, "--expect"},
		"status --colour":                    {2, "unknown flag: --colour"},
		"build alpine":                       {2, "is required"},
		"build -o " + none + " --size x a":   {2, "berth build --help"},
		"explain in:valid:name --socket /x":  {1, "not running"},
		"status --socket " + none:            {1, "berth: berthd is not running on " + none},
		"inspect " + none:                    {1, "no such file or directory"},
		"config containerd --version twelve": {2, "no version of containerd"},
	} {
		out, err := berthProcess(t, strings.Fields(line)...).CombinedOutput()
		require.Equal(t, tc.status, exitStatus(t, err), "%s: %s", line, out)
		require.Contains(t, string(out), tc.says, line)
	}
}

// TestInterrupted: a command that waits for berthd ends with 130 after SIGINT.
func TestInterrupted(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()
	cmd := berthProcess(t, "status", "--socket", socket)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	for range 2 { // one to see whether anybody listens, one for the request, which is never answered
		conn, err := l.Accept()
		require.NoError(t, err)
		defer conn.Close()
	}
	require.NoError(t, cmd.Process.Signal(unix.SIGINT))
	require.Equal(t, 130, exitStatus(t, cmd.Wait()), out.String())
}

// Every line of every help text fits into 100 columns, but for examples, which are there to be copied.
func TestHelpFits(t *testing.T) {
	out, err := berthProcess(t, "--help").Output()
	require.NoError(t, err)
	require.Contains(t, string(out), "Available Commands")
	every := commandsBelow(newRoot())
	require.Greater(t, len(every), 20)
	for _, cmd := range every {
		path := strings.Fields(cmd.CommandPath())[1:]
		out, err := berthProcess(t, append(path, "--help")...).Output()
		require.NoError(t, err)
		text := strings.Replace(string(out), cmd.Example, "", 1)
		for line := range strings.Lines(text) {
			require.LessOrEqual(t, utf8.RuneCountInString(line), 101, "%v: %s", path, line)
		}
	}
}

// TestDoctorWithoutRoot: a doctor who may look at nothing does not say that all is well.
func TestDoctorWithoutRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become somebody else")
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(filepath.Dir(dir), 0o755)) //nolint:gosec // for nobody to come in
	self, err := os.ReadFile(os.Args[0])
	require.NoError(t, err)
	binary := filepath.Join(dir, "berth")
	require.NoError(t, os.WriteFile(binary, self, 0o755)) //nolint:gosec // a program
	const nobody = 65534
	cmd := exec.CommandContext(t.Context(), binary, "doctor")
	cmd.Env, cmd.Dir = append(os.Environ(), runAsBerth+"=1"), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := cmd.Output()
	require.Equal(t, 1, exitStatus(t, err), string(out))
	require.True(t, strings.HasPrefix(string(out), "FAIL  privileges: "), string(out))
}
