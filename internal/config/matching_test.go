package config_test

import (
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/internal/config"
	"berth.dev/berth/matcher"
	"berth.dev/berth/matcher/dialect"
)

// example is the vendor of docs/matching.md and of the default file.
func example() dialect.Dialect {
	return dialect.Dialect{
		Name: "example", Prefix: "cache.example.com/", Order: matcher.OrderDegree, Conflict: matcher.ConflictPinWins,
		AutoDefault: true, OptInLabel: "example.com/serverless", OptInByKey: true,
		Keys: []dialect.Key{
			{Name: "use-cache", Meaning: dialect.MeansPinID, Words: map[string]dialect.Word{
				"yes": {Meaning: dialect.MeansAutoMatch, Value: "true"}, "no": {Meaning: dialect.MeansAutoMatch, Value: "false"}}},
			{Name: "policy", Meaning: dialect.MeansStrategy, Values: map[string]string{"bytes": "size", "images": "quantity"}},
		},
	}
}

// TestExampleDialects: the example in the default file and the one in the documentation mean what they say.
func TestExampleDialects(t *testing.T) {
	_, text, ok := strings.Cut(string(config.DefaultTOML()), "# [[dialect]]\n")
	require.True(t, ok)
	text, _, ok = strings.Cut(text, "\n\n")
	require.True(t, ok)
	var lines []string
	for line := range strings.Lines("# [[dialect]]\n" + text) {
		lines = append(lines, strings.TrimPrefix(line, "# "))
	}
	page, err := os.ReadFile("../../docs/matching.md")
	require.NoError(t, err)
	_, inPage, ok := strings.Cut(string(page), "```toml\n")
	require.True(t, ok)
	inPage, _, ok = strings.Cut(inPage, "```")
	require.True(t, ok)

	for name, text := range map[string]string{"default file": strings.Join(lines, ""), "page": inPage} {
		t.Run(name, func(t *testing.T) {
			c, err := config.Parse([]byte(text))
			require.NoError(t, err)
			require.Equal(t, []dialect.Dialect{example()}, c.Dialects)
			s, err := c.Annotations()
			require.NoError(t, err)
			require.Equal(t, append(dialect.Builtin().Names(), "example"), s.Table.Names())
		})
	}
}

func TestAnnotations(t *testing.T) {
	c := config.Default()
	s, err := c.Annotations()
	require.NoError(t, err)
	require.Equal(t, dialect.Settings{Table: dialect.Builtin()}, s)

	c, err = config.Parse([]byte(`
[matching]
auto_match = true
opt_in = "mine"
strict_conflict = true
[[dialect]]
name = "mine"
prefix = "mine.example/"
[[dialect]]
name = "cci"
prefix = "cci.io/"
`))
	require.NoError(t, err)
	s, err = c.Annotations()
	require.NoError(t, err)
	require.True(t, s.AutoMatch)
	require.Equal(t, "mine", s.Assume)
	require.True(t, s.StrictConflict)
	require.Equal(t, append(dialect.Builtin().Names(), "mine"), s.Table.Names())
	require.Empty(t, s.Table[1].Keys, "in place of the built-in one")
}

func TestMatchingRefuses(t *testing.T) {
	vendor := func(lines string) string { return "[[dialect]]\nname = \"x\"\nprefix = \"x.example/\"\n" + lines }
	for name, c := range map[string]struct {
		toml string
		want []string
	}{
		"opt in":        {"[matching]\nopt_in = \"x\"", []string{`matching.opt_in: "x" is not one of berth, cci, cce, eci, tke, vci; "" is none`}},
		"matching key":  {"[matching]\noptin = \"x\"", []string{"line 2", `did you mean "opt_in"?`}},
		"key":           {vendor("ordr = \"size\""), []string{"line 4: unknown key dialect.ordr", `did you mean "order"?`}},
		"neutral":       {vendor("neutral = true"), []string{"unknown key dialect.neutral"}},
		"key of a key":  {vendor("[[dialect.keys]]\nmeanin = \"snapshot\""), []string{"unknown key dialect.keys.meanin", `did you mean "meaning"?`}},
		"key of a word": {vendor("[[dialect.keys]]\nname = \"k\"\n[dialect.keys.words.on]\nmeanin = \"x\""), []string{"unknown key dialect.keys.words.on.meanin", `did you mean "meaning"?`}},
		"order":         {vendor("order = \"best\""), []string{"line 4", "dialect.order", `"best" is none of saved, size, quantity, degree`}},
		"conflict":      {vendor("conflict = \"400\""), []string{"line 4", "dialect.conflict", "pin-wins, pin-wins-silently, reject, reject-both"}},
		"name":          {"[[dialect]]\nprefix = \"x.example/\"", []string{`dialect "": name: want 1 to 64 of a-z`}},
		"twice":         {vendor("") + vendor(""), []string{`dialect "x": name: it is given twice`}},
		"meaning":       {vendor("[[dialect.keys]]\nname = \"k\"\nmeaning = \"pin\""), []string{`dialect "x": keys[0].meaning: "pin" is not one of auto-match`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse([]byte(c.toml))
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			for _, w := range c.want {
				require.ErrorContains(t, err, w)
			}
		})
	}
}
