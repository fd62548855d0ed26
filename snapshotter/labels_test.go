package snapshotter

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

func TestLayersAbove(t *testing.T) {
	a, b, c := digest.FromString("a"), digest.FromString("b"), digest.FromString("c")
	list := func(items ...string) string { return strings.Join(items, ",") }
	for name, x := range map[string]struct {
		list string
		blob digest.Digest
		want []digest.Digest
	}{
		"lowest":     {list(a.String(), b.String(), c.String()), a, []digest.Digest{b, c}},
		"highest":    {list(c.String()), c, nil},
		"not in it":  {list(b.String(), c.String()), a, nil},
		"cut short":  {list(a.String(), b.String(), c.String()[:20]), a, []digest.Digest{b}},
		"no list":    {"", a, nil},
		"no blob":    {list(a.String(), b.String()), "", nil},
		"no digests": {"x,y", a, nil},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, x.want, above(x.list, x.blob)) })
	}
}
