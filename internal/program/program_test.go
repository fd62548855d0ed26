package program

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tool has a command that fails as it is told, and a command that only has others.
func tool(fails error) (*cobra.Command, *bytes.Buffer) {
	var out bytes.Buffer
	root := &cobra.Command{Use: "tool", SilenceUsage: true, SilenceErrors: true}
	do := &cobra.Command{
		Use: "do THING", Args: cobra.ExactArgs(1), Long: "do does\na thing.\n\n  a list\n",
		RunE: func(*cobra.Command, []string) error { return fails },
	}
	do.Flags().Int("count", 0, "how often, "+strings.Repeat("again and ", 20)+"again")
	do.Flags().String("needed", "", "has to be given")
	cobra.CheckErr(do.MarkFlagRequired("needed"))
	group := &cobra.Command{Use: "group", Short: "Has others"}
	group.AddCommand(&cobra.Command{Use: "one", RunE: func(*cobra.Command, []string) error { return nil }})
	root.AddCommand(do, group)
	AddVersion(root, "v1, for tests")
	root.SetOut(&out)
	root.SetErr(&out)
	return root, &out
}

func TestStatus(t *testing.T) {
	failed := errors.New("it broke")
	for name, tc := range map[string]struct {
		args   string
		fails  error
		signal unix.Signal
		status int
		says   string
	}{
		"good":               {args: "do x --needed=a"},
		"fails":              {args: "do x --needed=a", fails: failed, status: 1, says: "tool: it broke\n"},
		"interrupted":        {args: "do x --needed=a", fails: failed, signal: unix.SIGINT, status: 130, says: "tool: it broke\n"},
		"terminated":         {args: "do x --needed=a", fails: failed, signal: unix.SIGTERM, status: 143, says: "tool: it broke\n"},
		"ends by itself":     {args: "do x --needed=a", signal: unix.SIGTERM},
		"own status":         {args: "do x --needed=a", fails: fmt.Errorf("x: %w", WithStatus(3, failed)), status: 3, says: "tool: x: it broke\n"},
		"bad value":          {args: "do x --needed=a", fails: Usage(failed), status: 2, says: "tool do --help says"},
		"no argument":        {args: "do --needed=a", status: 2, says: "accepts 1 arg(s)"},
		"unknown flag":       {args: "do --what", status: 2, says: "unknown flag: --what"},
		"no number":          {args: "do x --needed=a --count=some", status: 2, says: "--count"},
		"flag missing":       {args: "do x", status: 2, says: "tool do --help says how it is used\n"},
		"unknown command":    {args: "make", status: 2, says: `unknown command "make" for "tool"`},
		"unknown subcommand": {args: "group two", status: 2, says: `unknown command "two" for "tool group"`},
		"group":              {args: "group", says: ""},
		"version":            {args: "version"},
		"version flag":       {args: "--version"},
	} {
		t.Run(name, func(t *testing.T) {
			root, _ := tool(tc.fails)
			root.SetArgs(strings.Fields(tc.args))
			var stderr bytes.Buffer
			require.Equal(t, tc.status, run(t.Context(), root, func() unix.Signal { return tc.signal }, &stderr))
			require.Contains(t, stderr.String(), tc.says)
			require.Equal(t, tc.status == 0, stderr.Len() == 0)
		})
	}
}

func TestVersion(t *testing.T) {
	for _, arg := range []string{"version", "--version"} {
		root, out := tool(nil)
		root.SetArgs([]string{arg})
		require.NoError(t, root.Execute())
		require.Equal(t, "tool v1, for tests\n", out.String())
	}
}

func TestUntilSignal(t *testing.T) {
	ctx, ended, stop := untilSignal()
	defer stop()
	require.Zero(t, ended())
	require.NoError(t, syscall.Kill(os.Getpid(), unix.SIGTERM))
	<-ctx.Done()
	require.ErrorIs(t, ctx.Err(), context.Canceled)
	require.Equal(t, unix.SIGTERM, ended())
}

func TestHelpFits(t *testing.T) {
	for _, columns := range []int{60, 80, 100} {
		root, out := tool(nil)
		wrapHelp(root, columns)
		root.SetArgs([]string{"do", "--help"})
		require.NoError(t, root.Execute())
		require.Contains(t, out.String(), "do does a thing.\n\n  a list\n")
		for line := range strings.Lines(out.String()) {
			require.LessOrEqual(t, utf8.RuneCountInString(line), columns+1, line)
		}
	}
}

func TestOneLine(t *testing.T) {
	for want, err := range map[string]error{
		"pull a: no such host": errors.New("pull a: no such host"),
		"disk a: not found; disk b: unavailable": errors.Join(fmt.Errorf("disk a: %w", errdefs.ErrNotFound), errdefs.ErrNotFound,
			fmt.Errorf("disk b: %w", errdefs.ErrUnavailable)),
		"disk a: not found":      fmt.Errorf("disk a: %w: %w", errdefs.ErrNotFound, errdefs.ErrNotFound),
		"not found":              errors.Join(errdefs.ErrNotFound, errdefs.ErrNotFound),
		"not found; unavailable": errors.Join(errdefs.ErrNotFound, errdefs.ErrUnavailable),
	} {
		require.Equal(t, want, OneLine(err))
	}
}
