package house_test

import (
	"fmt"
	"go/types"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/tools/go/packages"
)

// mostMethods of a type, those that it gets by embedding other types of the module among them.
const mostMethods = 15

// A type with more methods has a second idea hiding in it (rule 7).
func TestMethods(t *testing.T) {
	all := load(t, packages.NeedTypes|packages.NeedSyntax|packages.NeedTypesInfo|packages.NeedImports)
	var fat []string
	counted := 0
	for dir, p := range all {
		// Generated code is not ours to shape, and a fake has the methods of all that it plays.
		if strings.HasPrefix(dir, "proto/") || strings.HasPrefix(dir, "test/") || strings.HasSuffix(dir, "test") {
			continue
		}
		for _, name := range p.Types.Scope().Names() {
			named, ok := p.Types.Scope().Lookup(name).(*types.TypeName)
			if !ok || named.IsAlias() {
				continue
			}
			n := methodsOf(named.Type())
			counted += n
			if n > mostMethods {
				fat = append(fat, fmt.Sprintf("%s.%s has %d methods", dir, name, n))
			}
		}
	}
	require.Greater(t, counted, 1000, "methods seen at all")
	slices.Sort(fat)
	require.Empty(t, strings.Join(fat, "\n"), "at most %d methods for a type", mostMethods)
}

// methodsOf counts the methods of a type and of a pointer to it that code of the module has.
func methodsOf(typ types.Type) (n int) {
	if !types.IsInterface(typ) {
		typ = types.NewPointer(typ)
	}
	set := types.NewMethodSet(typ)
	for i := range set.Len() {
		pkg := set.At(i).Obj().Pkg()
		if pkg != nil && (pkg.Path() == module || strings.HasPrefix(pkg.Path(), module+"/")) &&
			!strings.HasPrefix(pkg.Path(), module+"/proto/") {
			n++
		}
	}
	return n
}

// The counter sees methods of both receivers and those of embedded types, but no foreign ones.
func TestMethodsOf(t *testing.T) {
	foreign := check(t, "example.org/foreign", `package foreign
		type Mutex struct{}
		func (Mutex) Lock() {}`)
	own := check(t, module+"/own", `package own
		import "example.org/foreign"
		type Base struct{}
		func (Base) A() {}
		func (*Base) b() {}
		type Embeds struct { *Base; foreign.Mutex }
		func (Embeds) C() {}
		type Interface interface { D(); E() }`, foreign)
	for name, want := range map[string]int{"Base": 2, "Embeds": 3, "Interface": 2} {
		require.Equal(t, want, methodsOf(own.Scope().Lookup(name).Type()), name)
	}
}
