package config

import (
	"fmt"
	"strings"

	"berth.dev/berth/matcher/dialect"
)

// Matching is what holds for pods whose annotations do not speak of it.
type Matching struct {
	// AutoMatch asks for automatic matching.
	AutoMatch bool `toml:"auto_match"`
	// OptIn is a dialect that every pod counts as opted in to; empty is none.
	OptIn string `toml:"opt_in"`
	// StrictConflict refuses pods that name an image snapshot and ask for automatic matching, where their dialect
	// refuses those for which the two differ.
	StrictConflict bool `toml:"strict_conflict"`
}

// Annotations says how pods are read. The error is Validate's.
func (c *Config) Annotations() (dialect.Settings, error) {
	table, err := dialect.Builtin().With(c.Dialects...)
	if err != nil {
		return dialect.Settings{}, err
	}
	if in := c.Matching.OptIn; in != "" && !table.Has(in) {
		return dialect.Settings{}, fmt.Errorf("matching.opt_in: %.160q is not one of %s; \"\" is none", in, strings.Join(table.Names(), ", "))
	}
	m := c.Matching
	return dialect.Settings{Table: table, AutoMatch: m.AutoMatch, Assume: m.OptIn, StrictConflict: m.StrictConflict}, nil
}
