package imagesnapshot_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
)

// The list is what metrics are labelled with: a reason that is not in it would be lost among the others.
func TestReasonsListsAll(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "phase.go", nil, 0)
	require.NoError(t, err)
	declared := 0
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(v.Names[0].Name, "Reason") {
			declared++
		}
		return true
	})
	all := map[imagesnapshot.Reason]bool{}
	for _, r := range imagesnapshot.Reasons() {
		all[r] = true
	}
	require.Len(t, all, declared)
}
