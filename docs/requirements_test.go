package docs_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var (
	numberRE = regexp.MustCompile(`\b(?:[MCAE]-\d+|Q\d+)\b`)
	rangeRE  = regexp.MustCompile(`\b([MCAE]-|Q)(\d+) to ([MCAE]-|Q)(\d+)\b`)
	testRE   = regexp.MustCompile("`([a-z0-9/]+)\\.(Test\\w+)`")
)

// numbers are all that there are.
func numbers() (all []string) {
	for _, r := range []struct {
		prefix   string
		from, to int
	}{{"M-", 1, 4}, {"C-", 1, 14}, {"C-", 20, 27}, {"C-", 30, 53}, {"A-", 1, 13}, {"E-", 1, 14}, {"E-", 20, 31}, {"Q", 1, 18}} {
		all = append(all, between(r.prefix, r.from, r.to)...)
	}
	return all
}

func between(prefix string, from, to int) (list []string) {
	for n := from; n <= to; n++ {
		list = append(list, fmt.Sprint(prefix, n))
	}
	return list
}

// cited are the numbers in a text, those between "E-4 to E-7" too.
func cited(t *testing.T, text string) []string {
	t.Helper()
	list := numberRE.FindAllString(text, -1)
	for _, m := range rangeRE.FindAllStringSubmatch(text, -1) {
		require.Equal(t, m[1], m[3], m[0])
		from, err := strconv.Atoi(m[2])
		require.NoError(t, err)
		to, err := strconv.Atoi(m[4])
		require.NoError(t, err)
		require.Less(t, from, to, m[0])
		list = append(list, between(m[1], from, to)...)
	}
	return list
}

// row of a requirement: the tests that show it, as package.Test, and what is to come.
type row struct {
	tests  []string
	toCome string
}

func requirements(t *testing.T) map[string]row {
	t.Helper()
	page, err := os.ReadFile("requirements.md")
	require.NoError(t, err)
	rows := make(map[string]row)
	var order []string
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		no := strings.TrimSpace(cells[0])
		if numberRE.FindString(no) != no || no == "" {
			continue
		}
		require.Len(t, cells, 4, line)
		r := row{toCome: strings.TrimSpace(cells[3])}
		for _, m := range testRE.FindAllStringSubmatch(cells[2], -1) {
			r.tests = append(r.tests, m[1]+"."+m[2])
		}
		require.Equal(t, len(r.tests), strings.Count(cells[2], "`")/2, "not all of it is tests: %s", cells[2])
		require.NotEmpty(t, strings.TrimSpace(cells[1]), "%s says nothing", no)
		order = append(order, no)
		rows[no] = r
	}
	require.Equal(t, numbers(), order, "all numbers, each once and in order")
	return rows
}

// testsOfModule has the numbers that each test of the module cites in its comment or its body, by package.Test.
func testsOfModule(t *testing.T) map[string][]string {
	t.Helper()
	tests := make(map[string][]string)
	require.NoError(t, filepath.WalkDir("..", func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && file != ".." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(file, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		files := token.NewFileSet()
		parsed, err := parser.ParseFile(files, file, source, parser.ParseComments)
		if err != nil {
			return err
		}
		dir := path.Dir(strings.TrimPrefix(filepath.ToSlash(file), "../"))
		for _, decl := range parsed.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") {
				continue
			}
			from := f.Pos()
			if f.Doc != nil {
				from = f.Doc.Pos()
			}
			text := source[files.Position(from).Offset:files.Position(f.End()).Offset]
			tests[dir+"."+f.Name.Name] = cited(t, string(text))
		}
		return nil
	}))
	return tests
}

// The table is true: a test that is named exists and cites the number. A test may cite one that others show better.
func TestRequirements(t *testing.T) {
	rows, tests := requirements(t), testsOfModule(t)
	var wrong []string
	complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	for no, r := range rows {
		if len(r.tests) == 0 && r.toCome == "" {
			complain("%s is neither shown nor to come", no)
		}
		for _, name := range r.tests {
			if cites, ok := tests[name]; !ok {
				complain("%s: there is no test %s", no, name)
			} else if !slices.Contains(cites, no) {
				complain("%s: test %s does not cite it", no, name)
			}
		}
		part, _, _ := strings.Cut(strings.ReplaceAll(r.toCome, ",", ":"), ":")
		if !slices.Contains([]string{"", "Kubernetes", "vendor APIs", "console"}, part) {
			complain("%s: to come is %q, which is no part", no, part)
		}
	}
	for name, cites := range tests {
		for _, no := range cites {
			if _, ok := rows[no]; !ok {
				complain("%s cites %s, which is no requirement", name, no)
			}
		}
	}
	slices.Sort(wrong)
	require.Empty(t, strings.Join(slices.Compact(wrong), "\n"))
}
