package house_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A run of tests in which nothing ran fails, so that a misspelt RUN is noticed.
func TestNothingRan(t *testing.T) {
	script, err := filepath.Abs("../../scripts/gotest")
	require.NoError(t, err)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod":             "module example.org/m\n\ngo 1.24\n",
		"none/none.go":       "package none\n",
		"one/one_test.go":    "package one\n\nimport \"testing\"\n\nfunc TestOne(*testing.T) {}\n",
		"bad/failed_test.go": "package bad\n\nimport \"testing\"\n\nfunc TestBad(t *testing.T) { t.Fail() }\n",
	} {
		require.NoError(t, os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	for _, tc := range []struct {
		args []string
		fine bool
		says string
	}{
		{[]string{"-run", "TestOne", "./none", "./one"}, true, "ok"},
		{[]string{"-run", "TestTwo", "./none", "./one"}, false, "gotest: no test ran"},
		{[]string{"./none"}, false, "gotest: no test ran"},
		{[]string{"./one", "./bad"}, false, "--- FAIL: TestBad"},
	} {
		cmd := exec.CommandContext(t.Context(), script, tc.args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.Equal(t, tc.fine, err == nil, "%v: %s", tc.args, out)
		require.Contains(t, string(out), tc.says)
	}
}

// RUN reaches go test as it was given: make would take "$|" for a variable of its own.
func TestRunIsPassedOn(t *testing.T) {
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip(err)
	}
	for _, target := range []string{"test-vm", "test-integration"} {
		cmd := exec.CommandContext(t.Context(), "make", "--dry-run", target, "RUN=TestA$|TestB$")
		cmd.Dir = "../.."
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		require.Regexp(t, `scripts/gotest .* -run 'TestA\$\|TestB\$' \./test/`, string(out))
	}
}
