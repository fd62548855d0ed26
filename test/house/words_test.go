package house_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// word is one that the project does not use.
type word struct {
	pattern *regexp.Regexp
	instead string
	// example is a line that has it.
	example string
}

func words() []word {
	return []word{
		{regexp.MustCompile(`(?i)hydrat`), "read ahead", "the Hydrator"},
		{regexp.MustCompile(`\bberth trace\b`), "berth record", "see berth trace"},
		{regexp.MustCompile(`// \w+ (?:is|are) of [a-z]+\.[A-Z]`), "implements", "// Run is of lifecycle.Runner."},
		{regexp.MustCompile(`Errorf\("failed to|errors\.New\("failed to`), "the verb alone: \"attach volume x: cause\"", `fmt.Errorf("failed to attach: %w", err)`},
		{regexp.MustCompile(`\bnone is none\b`), "what happens to an empty list", "none is none"},
	}
}

// One thing has one name, in code, flags, logs, errors and pages (docs/architecture.md, section 1).
func TestWords(t *testing.T) {
	var wrong []string
	seen := 0
	require.NoError(t, filepath.WalkDir("../..", func(file string, entry fs.DirEntry, err error) error {
		name := entry.Name()
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (name == "testdata" || name == "bin" || name != ".." && strings.HasPrefix(name, ".")):
			if file == "../.." {
				return nil
			}
			return filepath.SkipDir
		case entry.IsDir(), name == "words_test.go", strings.HasSuffix(name, ".pb.go"):
			return nil
		}
		switch filepath.Ext(name) {
		case ".go", ".md", ".proto", ".toml", ".mk", ".service", ".tmpl":
		default:
			return nil
		}
		text, err := os.ReadFile(file) //nolint:gosec // of the module
		if err != nil {
			return err
		}
		seen++
		for i, line := range strings.Split(string(text), "\n") {
			for _, w := range words() {
				if found := w.pattern.FindString(line); found != "" {
					wrong = append(wrong, fmt.Sprintf("%s:%d: %q: write %s", strings.TrimPrefix(file, "../../"), i+1, found, w.instead))
				}
			}
		}
		return nil
	}))
	require.Greater(t, seen, 500, "files")
	require.Empty(t, strings.Join(wrong, "\n"))
}

func TestWordsAreSeen(t *testing.T) {
	for _, w := range words() {
		require.Regexp(t, w.pattern, w.example)
	}
}
