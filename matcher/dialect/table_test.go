package dialect_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/matcher"
	"berth.dev/berth/matcher/dialect"
)

// samples are a good and a bad value for each meaning.
var samples = map[dialect.Meaning][2]string{
	dialect.MeansAutoMatch:    {"true", "TRUE"},
	dialect.MeansStrategy:     {"size", "best"},
	dialect.MeansPin:          {"web", ""},
	dialect.MeansPinName:      {"web", ""},
	dialect.MeansPinID:        {"imc-1", ""},
	dialect.MeansConflict:     {"reject", "never"},
	dialect.MeansReject:       {"true", "on"},
	dialect.MeansPerfectMatch: {"false", "0"},
	dialect.MeansMatchCount:   {"3", "-3"},
	dialect.MeansCreate:       {"true", "1"},
	dialect.MeansKeepDisk:     {"10", "10m"},
	dialect.MeansPlainHTTP:    {"a.example:80", "http://a.example"},
	dialect.MeansInsecure:     {"a.example", "a.example/team"},
}

// TestBuiltin shows that every row of the table does something and that each checks its values (C-14).
func TestBuiltin(t *testing.T) {
	table := dialect.Builtin()
	require.NoError(t, table.Validate())
	rows := 0
	for _, d := range table {
		for _, k := range d.Keys {
			name := d.Prefix + k.Name
			if k.Meaning == dialect.MeansResultName || k.Meaning == dialect.MeansResultID {
				continue
			}
			rows++
			good, bad := samples[k.Meaning][0], samples[k.Meaning][1]
			r, _, err := dialect.Parse(annotations{name: good})
			require.NoError(t, err, name)
			require.Equal(t, []string{d.Name}, r.Dialects, name)
			_, _, err = dialect.Parse(annotations{name: bad})
			require.ErrorContains(t, err, name)
		}
	}
	require.Equal(t, 11+5+1+8+4+1, rows)
}

// TestNewVendor shows that a vendor is data: it comes from a file, brings its own behaviour and needs no code.
func TestNewVendor(t *testing.T) {
	const file = `
name = "bci"
prefix = "bci.example/"
order = "quantity"
conflict = "reject"
auto_default = true
opt_in_by_key = true

[[keys]]
name = "cache"
meaning = "snapshot-id"
words = { on = { meaning = "auto-match", value = "true" }, off = { meaning = "auto-match", value = "false" } }

[[keys]]
name = "exact"
meaning = "perfect-match"
values = { yes = "true", no = "false" }
`
	var d dialect.Dialect
	require.NoError(t, toml.Unmarshal([]byte(file), &d))
	table, err := dialect.Builtin().With(d)
	require.NoError(t, err)

	r, warnings, err := table.Parse(dialect.Input{Annotations: annotations{"bci.example/exact": "yes"}})
	require.NoError(t, err)
	require.Empty(t, warnings)
	require.Equal(t, matcher.Rules{AutoMatch: true, Order: matcher.OrderQuantity, PerfectMatch: true}, r.Rules)

	r, _, err = table.Parse(dialect.Input{Annotations: annotations{"bci.example/cache": "off", "bci.example/exact": "no"}})
	require.NoError(t, err)
	require.Equal(t, matcher.Rules{}, r.Rules)

	r, _, err = table.Parse(dialect.Input{Annotations: annotations{"bci.example/cache": "c-1"}})
	require.NoError(t, err)
	require.Equal(t, matcher.Rules{Pin: matcher.Pin{ID: "c-1"}, Conflict: matcher.ConflictRejectIfDifferent}, r.Rules)

	_, _, err = table.Parse(dialect.Input{Annotations: annotations{"bci.example/exact": "true"}})
	require.ErrorContains(t, err, "want one of no, yes")

	// Replacing one of the built-in dialects by name.
	cci := dialect.Builtin()[1]
	cci.Conflict = matcher.ConflictPinWins
	table, err = table.With(cci)
	require.NoError(t, err)
	r, _, err = table.Parse(dialect.Input{Annotations: annotations{"cci.io/image-snapshot-specified-name": "n"}})
	require.NoError(t, err)
	require.Equal(t, matcher.ConflictPinWins, r.Rules.Conflict)
	require.Equal(t, matcher.ConflictRejectIfDifferent, dialect.Builtin()[1].Conflict, "the built-in table is as before")
}

func TestTableInJSON(t *testing.T) {
	text, err := json.Marshal(dialect.Builtin())
	require.NoError(t, err)
	var back dialect.Table
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, dialect.Builtin(), back)
}

func TestBadTables(t *testing.T) {
	key := func(name string, m dialect.Meaning) []dialect.Key { return []dialect.Key{{Name: name, Meaning: m}} }
	for _, tc := range []struct {
		name string
		more dialect.Dialect
		says string
	}{
		{"no name", dialect.Dialect{Prefix: "x/"}, "has no name"},
		{"no slash", dialect.Dialect{Name: "x", Prefix: "x"}, "does not end in a slash"},
		{"two neutral", dialect.Dialect{Name: "x", Prefix: "x/", Neutral: true}, "both neutral"},
		{"key of another", dialect.Dialect{Name: "x", Prefix: "cci.io/", Keys: key("image-snapshot-auto-match", dialect.MeansAutoMatch)}, `in dialects "cci" and "x"`},
		{"no key name", dialect.Dialect{Name: "x", Prefix: "x/", Keys: key("", dialect.MeansAutoMatch)}, "no name"},
		{"long key name", dialect.Dialect{Name: "x", Prefix: "x/", Keys: key(strings.Repeat("k", 400), dialect.MeansAutoMatch)}, "317 bytes"},
		{"unknown meaning", dialect.Dialect{Name: "x", Prefix: "x/", Keys: key("k", "magic")}, `"magic" is unknown`},
		{"word with unknown meaning", dialect.Dialect{Name: "x", Prefix: "x/", Keys: []dialect.Key{
			{Name: "k", Meaning: dialect.MeansPinID, Words: map[string]dialect.Word{"w": {Meaning: "magic"}}}}}, `word "w"`},
		{"word with a bad value", dialect.Dialect{Name: "x", Prefix: "x/", Keys: []dialect.Key{
			{Name: "k", Meaning: dialect.MeansPinID, Words: map[string]dialect.Word{"w": {Meaning: dialect.MeansAutoMatch, Value: "yes"}}}}}, `want "true" or "false"`},
		{"value that stands for nothing", dialect.Dialect{Name: "x", Prefix: "x/", Keys: []dialect.Key{
			{Name: "k", Meaning: dialect.MeansStrategy, Values: map[string]string{"s": "best"}}}}, `value "s"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := dialect.Builtin().With(tc.more)
			require.ErrorContains(t, err, tc.says)
		})
	}
}

func TestResults(t *testing.T) {
	table := dialect.Builtin()
	for _, tc := range []struct {
		name string
		in   dialect.Input
		want annotations
	}{
		{"always the neutral one", dialect.Input{}, annotations{"berth.dev/matched-snapshot": "web"}},
		{"CCI has none", dialect.Input{Annotations: annotations{cci + "auto-match": "true"}}, annotations{"berth.dev/matched-snapshot": "web"}},
		{"ECI by ID", dialect.Input{Annotations: annotations{eci + "eci-auto-imc": "true"}},
			annotations{"berth.dev/matched-snapshot": "web", eci + "eci-matched-image-cache": "imc-1"}},
		{"ECI by label", dialect.Input{Labels: annotations{"alibabacloud.com/eci": "true"}},
			annotations{"berth.dev/matched-snapshot": "web", eci + "eci-matched-image-cache": "imc-1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, _, err := table.Parse(tc.in)
			require.NoError(t, err)
			require.Equal(t, tc.want, table.Results(r, "web", "imc-1"))
		})
	}
}
