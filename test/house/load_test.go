package house_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/tools/go/packages"
)

const module = "berth.dev/berth"

// load has all packages of the module without their tests, by their folder below the module's directory.
func load(t *testing.T, mode packages.LoadMode) map[string]*packages.Package {
	t.Helper()
	list, err := packages.Load(&packages.Config{
		Context: t.Context(), Dir: "../..", Mode: mode | packages.NeedName | packages.NeedFiles,
	}, "./...")
	require.NoError(t, err)
	all := make(map[string]*packages.Package)
	for _, p := range list {
		require.Empty(t, p.Errors)
		all[strings.TrimPrefix(strings.TrimPrefix(p.PkgPath, module), "/")] = p
	}
	require.Greater(t, len(all), 50, "packages of the module")
	return all
}

// checked imports packages that check has returned, by their paths.
type checked map[string]*types.Package

func (c checked) Import(path string) (*types.Package, error) {
	if p, ok := c[path]; ok {
		return p, nil
	}
	return nil, fmt.Errorf("no package %s", path)
}

// check has the types of one source file.
func check(t *testing.T, path, source string, imports ...*types.Package) *types.Package {
	t.Helper()
	files, known := token.NewFileSet(), make(checked)
	for _, p := range imports {
		known[p.Path()] = p
	}
	file, err := parser.ParseFile(files, "source.go", source, 0)
	require.NoError(t, err)
	pkg, err := (&types.Config{Importer: known}).Check(path, files, []*ast.File{file}, nil)
	require.NoError(t, err)
	return pkg
}
