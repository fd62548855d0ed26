package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestCommandsOfDocs: every command line of berth in the README, in docs/ and in the examples of the help texts has a
// verb, flags and a number of arguments that the program takes.
func TestCommandsOfDocs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	require.NoError(t, err)
	pages = append(pages, "../../README.md")
	line := regexp.MustCompile(`^ {4,}(?:sudo )?(?:bin/)?berth ([a-z].*)`)
	checked := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for l := range strings.Lines(string(text)) {
			if m := line.FindStringSubmatch(l); m != nil {
				requireCommand(t, m[1], filepath.Base(page))
				checked++
			}
		}
	}
	require.Greater(t, checked, 30)
}

func TestExamplesOfHelp(t *testing.T) {
	checked := 0
	for _, cmd := range commandsBelow(newRoot()) {
		for l := range strings.Lines(cmd.Example) {
			_, args, ok := strings.Cut(strings.TrimSpace(l), "berth ")
			require.True(t, ok, l)
			requireCommand(t, args, cmd.CommandPath())
			checked++
		}
	}
	require.Greater(t, checked, 20)
}

// requireCommand wants words, up to a comment, a pipe or the like, to be a command line.
func requireCommand(t *testing.T, line, where string) {
	t.Helper()
	line = regexp.MustCompile(`'[^']*'|"[^"]*"`).ReplaceAllString(line, "quoted")
	line, _, _ = strings.Cut(line, " #")
	line = regexp.MustCompile(` [|>&;].*`).ReplaceAllString(line, "")
	words := strings.Fields(line)
	cmd, rest, err := newRoot().Find(words)
	require.NoError(t, err, "%s: berth %s", where, line)
	require.NoError(t, cmd.ParseFlags(rest), "%s: berth %s", where, line)
	require.NoError(t, cmd.ValidateArgs(cmd.Flags().Args()), "%s: berth %s", where, line)
	require.True(t, cmd.Runnable(), "%s: berth %s", where, line)
}
