package docs_test

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	linkRE    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	pageRE    = regexp.MustCompile(`\b((?:docs/)?[a-z][a-z-]*\.md)(?:,? section (\d+(?:\.\d+)?))?`)
	nowhereRE = regexp.MustCompile(`\b(?:requirements?|design) \d+\.\d+`)
	sourceRE  = regexp.MustCompile("`([a-z0-9_]+(?:/[a-z0-9_]+)+/?(?:\\.go)?)`")
	gapRE     = regexp.MustCompile(`\s+(?://|#)?\s*`)
)

// Pages and comments refer to what is there: links lead to files and headings, "page.md, section 3" is a section of
// that page, and a path in a page is one of the repository.
func TestReferences(t *testing.T) {
	pages := pagesOf(t)
	var wrong []string
	seen := 0
	require.NoError(t, filepath.WalkDir("..", func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && file != ".." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" || entry.Name() == "bin"):
			return filepath.SkipDir
		case entry.Name() == "references_test.go", entry.Name() == "width_test.go", strings.HasSuffix(file, ".pb.go"):
			return nil
		}
		switch filepath.Ext(file) {
		case ".go", ".md", ".proto", ".toml":
		default:
			return nil
		}
		text, err := os.ReadFile(file) //nolint:gosec // of the module
		if err != nil {
			return err
		}
		seen++
		wrong = append(wrong, deadReferences(strings.TrimPrefix(filepath.ToSlash(file), "../"), string(text), pages)...)
		return nil
	}))
	require.Greater(t, seen, 500, "files")
	require.Empty(t, strings.Join(wrong, "\n"))
}

// pagesOf are the pages by their name without a folder, which no two have in common, with their headings.
func pagesOf(t *testing.T) map[string][]string {
	t.Helper()
	pages := make(map[string][]string)
	for _, pattern := range []string{"../*.md", "*.md"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		for _, file := range files {
			text, err := os.ReadFile(file) //nolint:gosec // of the module
			require.NoError(t, err)
			headings := []string{""}
			for line := range strings.Lines(string(text)) {
				if strings.HasPrefix(line, "#") {
					headings = append(headings, strings.TrimSpace(strings.TrimLeft(line, "#")))
				}
			}
			pages[filepath.Base(file)] = headings
		}
	}
	require.Contains(t, pages, "architecture.md")
	return pages
}

func deadReferences(file, text string, pages map[string][]string) (wrong []string) {
	complain := func(format string, args ...any) {
		wrong = append(wrong, file+": "+fmt.Sprintf(format, args...))
	}
	joined := gapRE.ReplaceAllString(text, " ") // a reference may be wrapped
	for _, m := range nowhereRE.FindAllString(joined, -1) {
		complain("%q is a section that no page has", m)
	}
	for _, m := range pageRE.FindAllStringSubmatch(joined, -1) {
		headings, ok := pages[path.Base(m[1])]
		if !ok {
			complain("there is no page %s", m[1])
		} else if m[2] != "" && !hasSection(headings, m[2]) {
			complain("%s has no section %s", m[1], m[2])
		}
	}
	if path.Ext(file) != ".md" {
		return wrong
	}
	for _, m := range linkRE.FindAllStringSubmatch(text, -1) {
		if strings.Contains(m[1], "://") {
			continue
		}
		target, anchor, _ := strings.Cut(m[1], "#")
		if target == "" {
			target = path.Base(file)
		}
		if _, err := os.Stat(filepath.Join("..", path.Dir(file), target)); err != nil {
			complain("link to %s: there is no such file", m[1])
		} else if anchor != "" && !hasAnchor(pages[path.Base(target)], anchor) {
			complain("link to %s: the page has no such heading", m[1])
		}
	}
	for _, m := range sourceRE.FindAllStringSubmatch(text, -1) {
		top, _, _ := strings.Cut(m[1], "/")
		if info, err := os.Stat(filepath.Join("..", top)); err != nil || !info.IsDir() {
			continue // a path of something else
		}
		if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
			complain("there is no %s in the repository", m[1])
		}
	}
	return wrong
}

func hasSection(headings []string, number string) bool {
	for _, h := range headings {
		if strings.HasPrefix(h, number+".") || strings.HasPrefix(h, number+" ") {
			return true
		}
	}
	return false
}

// hasAnchor knows how headings become anchors: lower case, hyphens for spaces, without punctuation.
func hasAnchor(headings []string, anchor string) bool {
	for _, h := range headings {
		var b strings.Builder
		for _, r := range strings.ToLower(h) {
			switch {
			case r == ' ':
				b.WriteByte('-')
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r > 127:
				b.WriteRune(r)
			}
		}
		if b.String() == anchor {
			return true
		}
	}
	return false
}

func TestDeadReferences(t *testing.T) {
	pages := map[string][]string{"architecture.md": {"", "1. Words", "2.3 Depth"}}
	for name, c := range map[string]struct {
		file, text string
		want       int
	}{
		"page":                 {"a.go", "// See docs/architecture.md, section 1.", 0},
		"wrapped":              {"a.go", "// See docs/architecture.md,\n\t// section 4.", 1},
		"depth":                {"a.go", "// architecture.md section 2.3", 0},
		"no page":              {"a.go", "// docs/nowhere.md says so", 1},
		"paper of nobody":      {"a.go", "// The table of requirements\n// 3.2.", 1},
		"link":                 {"docs/a.md", "[x](architecture.md#1-words)", 0},
		"dead link":            {"docs/a.md", "[x](nowhere)", 1},
		"dead anchor":          {"docs/a.md", "[x](architecture.md#2-words)", 1},
		"path":                 {"docs/a.md", "`docs/references_test.go`", 0},
		"dead path":            {"docs/a.md", "`docs/nothing.go`", 1},
		"path of another tree": {"docs/a.md", "`l/1/usr`", 0},
	} {
		require.Len(t, deadReferences(c.file, c.text, pages), c.want, name)
	}
}
