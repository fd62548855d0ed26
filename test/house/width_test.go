package house_test

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

const (
	mostColumns = 120
	tabColumns  = 4
	// mostLines of a file without tests (rule 7).
	mostLines = 400
)

// Comments, pages and the API's description are wrapped at one width, and no file has two ideas.
func TestWidthAndLength(t *testing.T) {
	var wrong []string
	seen := 0
	require.NoError(t, filepath.WalkDir("../..", func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := entry.Name()
		if entry.IsDir() {
			if name == "testdata" || name == "bin" || name == "node_modules" || strings.HasPrefix(name, ".") && !strings.HasPrefix(name, "..") {
				return filepath.SkipDir
			}
			return nil
		}
		isProse, ok := proseOf(name)
		if !ok {
			return nil
		}
		seen++
		text, err := os.ReadFile(file) //nolint:gosec // of the module
		if err != nil {
			return err
		}
		wrong = append(wrong, complaints(strings.TrimPrefix(file, "../../"), string(text), isProse)...)
		return nil
	}))
	require.Greater(t, seen, 500, "files")
	require.Empty(t, strings.Join(wrong, "\n"))
}

// proseOf says how to tell prose from code in a file of this name; ok is false where nothing is looked at.
func proseOf(name string) (isProse func(line string) bool, ok bool) {
	comment := func(line string) bool { return strings.HasPrefix(strings.TrimSpace(line), "//") }
	switch {
	case strings.HasSuffix(name, ".pb.go"):
		return nil, false
	case strings.HasSuffix(name, ".go"), strings.HasSuffix(name, ".proto"):
		return func(line string) bool {
			return comment(line) && !strings.HasPrefix(strings.TrimSpace(line), "//go:")
		}, true
	case strings.HasSuffix(name, ".md"):
		// Tables cannot be wrapped, addresses neither, and examples are as wide as what they show.
		return func(line string) bool {
			return !strings.HasPrefix(strings.TrimSpace(line), "|") && !strings.HasPrefix(line, "    ") && strings.Contains(strings.TrimSpace(line), " ")
		}, true
	case strings.HasSuffix(name, ".toml"):
		return func(line string) bool { return strings.HasPrefix(strings.TrimSpace(line), "#") }, true
	}
	return nil, false
}

func complaints(file, text string, isProse func(string) bool) (wrong []string) {
	example := false
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	for i, line := range lines {
		if strings.HasSuffix(file, ".md") && strings.HasPrefix(line, "```") {
			example = !example
		}
		columns := utf8.RuneCountInString(strings.ReplaceAll(line, "\t", strings.Repeat(" ", tabColumns)))
		if columns > mostColumns && !example && isProse(line) {
			wrong = append(wrong, fmt.Sprintf("%s:%d is %d columns wide, at most %d", file, i+1, columns, mostColumns))
		}
	}
	if strings.HasSuffix(file, ".go") && !strings.HasSuffix(file, "_test.go") && len(lines) > mostLines {
		wrong = append(wrong, fmt.Sprintf("%s has %d lines, at most %d", file, len(lines), mostLines))
	}
	return wrong
}

func TestComplaints(t *testing.T) {
	wide := strings.Repeat("x", mostColumns-4) + " y"
	for name, c := range map[string]struct {
		file, text string
		want       int
	}{
		"comment":             {"a.go", "\t// " + wide + "\n", 1},
		"code":                {"a.go", "\t" + wide + wide + "\n", 0},
		"narrow comment":      {"a.go", "// " + wide[:100] + "\n", 0},
		"long file":           {"a.go", strings.Repeat("\n", mostLines+1), 1},
		"long test":           {"a_test.go", strings.Repeat("\n", mostLines+1), 0},
		"paragraph":           {"a.md", "wide " + wide + "\n", 1},
		"table":               {"a.md", "| " + wide + " |\n", 0},
		"example":             {"a.md", "```\nwide " + wide + "\n```\nwide " + wide + "\n", 1},
		"configuration":       {"a.toml", "# wide " + wide + "\n", 1},
		"generated":           {"a.pb.go", "// wide " + wide + "\n", 0},
		"letters, not bytes":  {"a.go", "// " + strings.Repeat("ü", mostColumns-3) + "\n", 0},
		"directive of a tool": {"a.go", "//go:" + wide + "\n", 0},
	} {
		isProse, ok := proseOf(c.file)
		var got []string
		if ok {
			got = complaints(c.file, c.text, isProse)
		}
		require.Len(t, got, c.want, name)
	}
}
