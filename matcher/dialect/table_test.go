package dialect_test

import (
	"encoding/json"
	"fmt"
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
			r, _, err := parse(annotations{name: good})
			require.NoError(t, err, name)
			require.Equal(t, []string{d.Name}, r.Dialects, name)
			_, _, err = parse(annotations{name: bad})
			require.ErrorContains(t, err, name)
		}
	}
	require.Equal(t, 11+6+1+8+4+1, rows)
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

// TestBadTables: the error names the dialect, the key and what is allowed, all that is wrong at once.
func TestBadTables(t *testing.T) {
	type d = dialect.Dialect
	keys := func(k ...dialect.Key) d { return d{Name: "x", Prefix: "x.example/", Keys: k} }
	for _, tc := range []struct {
		name string
		more []d
		says []string
	}{
		{"no name", []d{{Prefix: "x/"}}, []string{`dialect "": name: want 1 to 64 of a-z`}},
		{"no slash", []d{{Name: "x", Prefix: "x"}}, []string{`dialect "x": prefix: "x" is not a DNS name`, `such as "cache.example.com/"`}},
		{"slash alone", []d{{Name: "x", Prefix: "/"}}, []string{`dialect "x": prefix: "/"`}},
		{"capitals", []d{{Name: "x", Prefix: "X.example/"}}, []string{`dialect "x": prefix: "X.example/"`}},
		{"long prefix", []d{{Name: "x", Prefix: strings.Repeat("x", 254) + "/"}}, []string{`dialect "x": prefix`}},
		{"label", []d{{Name: "x", Prefix: "x/", OptInLabel: "a b"}}, []string{`dialect "x": opt_in_label: "a b"`, `such as "example.com/serverless"`}},
		{"label of no host", []d{{Name: "x", Prefix: "x/", OptInLabel: "A/b"}}, []string{`opt_in_label: "A/b"`}},
		{"two neutral", []d{{Name: "x", Prefix: "x/", Neutral: true}}, []string{`dialect "x": neutral: dialect "berth" is neutral already`}},
		{"our prefix", []d{{Name: "x", Prefix: "berth.dev/"}}, []string{`dialect "x": prefix: "berth.dev/" is that of dialect "berth"`}},
		{"our name", []d{{Name: "berth", Prefix: "x/"}}, []string{`dialect "berth": name: the project's own dialect cannot be replaced`}},
		{"twice", []d{keys(), keys()}, []string{`dialect "x": name: it is given twice`}},
		{"key of another", []d{{Name: "x", Prefix: "cci.io/", Keys: []dialect.Key{{Name: "image-snapshot-auto-match", Meaning: dialect.MeansAutoMatch}}}},
			[]string{`dialect "x": keys[0].name: annotation "cci.io/image-snapshot-auto-match" is in dialect "cci" already`}},
		{"no key name", []d{keys(dialect.Key{Meaning: dialect.MeansAutoMatch})}, []string{`keys[0].name: "" is not 1 to 63 of letters`}},
		{"long key name", []d{keys(dialect.Key{Name: strings.Repeat("k", 64), Meaning: dialect.MeansAutoMatch})}, []string{`keys[0].name`}},
		{"unknown meaning", []d{keys(dialect.Key{Name: "k", Meaning: "magic"})}, []string{`keys[0].meaning: "magic" is not one of auto-match, strategy, snapshot,`}},
		{"word with unknown meaning", []d{keys(dialect.Key{Name: "k", Meaning: dialect.MeansPinID, Words: map[string]dialect.Word{"w": {Meaning: "magic"}}})},
			[]string{`keys[0].words.w.meaning: "magic" is not one of auto-match, `}},
		{"word that is a result", []d{keys(dialect.Key{Name: "k", Meaning: dialect.MeansPinID, Words: map[string]dialect.Word{"w": {Meaning: dialect.MeansResultID}}})},
			[]string{`keys[0].words.w.meaning: "matched-snapshot-id" is not one of`}},
		{"word with a bad value", []d{keys(dialect.Key{Name: "k", Meaning: dialect.MeansPinID, Words: map[string]dialect.Word{"w": {Meaning: dialect.MeansAutoMatch, Value: "yes"}}})},
			[]string{`keys[0].words.w.value: "yes": want "true" or "false"`}},
		{"value that stands for nothing", []d{keys(dialect.Key{Name: "k", Meaning: dialect.MeansStrategy, Values: map[string]string{"s": "best"}})},
			[]string{`keys[0].values.s: "best": want one of saved, size, quantity, degree`}},
		{"value and word", []d{keys(dialect.Key{Name: "k", Meaning: dialect.MeansAutoMatch, Values: map[string]string{"s": "true"},
			Words: map[string]dialect.Word{"s": {Meaning: dialect.MeansAutoMatch, Value: "true"}}})}, []string{`keys[0].words.s: the same value is among values`}},
		{"all at once", []d{{Name: "x", Prefix: "x", Keys: []dialect.Key{{Name: "a b", Meaning: "c"}}}, {Name: "Y", Prefix: "y/"}},
			[]string{`dialect "x": prefix`, `dialect "x": keys[0].name`, `dialect "x": keys[0].meaning`, `dialect "Y": name`}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := dialect.Builtin().With(tc.more...)
			for _, s := range tc.says {
				require.ErrorContains(t, err, s)
			}
		})
	}
	many := keys()
	for i := range 1001 {
		many.Keys = append(many.Keys, dialect.Key{Name: fmt.Sprint("k", i), Meaning: dialect.MeansCreate})
	}
	_, err := dialect.Builtin().With(many)
	require.ErrorContains(t, err, "at most 1000 are allowed")
}

// TestSettings: what a node is told holds for every pod, and a pod's own words go before.
func TestSettings(t *testing.T) {
	both := annotations{cci + "auto-match": "true", cci + "specified-name": "n"}
	for _, tc := range []struct {
		name string
		s    dialect.Settings
		in   dialect.Input
		want matcher.Rules
	}{
		{"nothing", dialect.Settings{}, dialect.Input{}, matcher.Rules{}},
		{"automatic matching", dialect.Settings{AutoMatch: true}, dialect.Input{}, matcher.Rules{AutoMatch: true}},
		{"the pod says no", dialect.Settings{AutoMatch: true}, dialect.Input{Annotations: annotations{berth + "auto-match": "false"}}, matcher.Rules{}},
		{"the caller asks", dialect.Settings{}, dialect.Input{AutoMatch: true}, matcher.Rules{AutoMatch: true}},
		{"Q4 by class", dialect.Settings{Assume: "eci"}, dialect.Input{}, matcher.Rules{AutoMatch: true, Order: matcher.OrderDegree}},
		{"the caller's class goes before", dialect.Settings{Assume: "eci"}, dialect.Input{Assume: "vci"}, matcher.Rules{AutoMatch: true}},
		{"Q1 (b)", dialect.Settings{}, dialect.Input{Annotations: both},
			matcher.Rules{AutoMatch: true, Order: matcher.OrderSize, Pin: matcher.Pin{Name: "n"}, Conflict: matcher.ConflictRejectIfDifferent}},
		{"Q1 (a)", dialect.Settings{StrictConflict: true}, dialect.Input{Annotations: both},
			matcher.Rules{AutoMatch: true, Order: matcher.OrderSize, Pin: matcher.Pin{Name: "n"}, Conflict: matcher.ConflictRejectBoth}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.s.Table = dialect.Builtin()
			got, _, err := tc.s.Parse(tc.in)
			require.NoError(t, err)
			require.Equal(t, tc.want, got.Rules)
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
