package main

import (
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// pairsValue is a flag that takes one KEY=VALUE each time. Unlike pflag's own, a comma is a part of the value.
type pairsValue struct {
	pairs *map[string]string
	given bool
}

// pairsVar defines such a flag.
func pairsVar(f *pflag.FlagSet, pairs *map[string]string, name, short, usage string) {
	f.VarP(&pairsValue{pairs: pairs}, name, short, usage)
}

// Set adds a pair; the first one replaces what was there by default.
func (p *pairsValue) Set(text string) error {
	key, value, ok := strings.Cut(text, "=")
	if !ok || key == "" {
		return fmt.Errorf("%q is not of the form key=value", text)
	}
	if !p.given {
		*p.pairs, p.given = make(map[string]string), true
	}
	(*p.pairs)[key] = value
	return nil
}

// Type returns the type that help shows if a flag's text does not name one.
func (p *pairsValue) Type() string { return "key=value" }

// String returns the default, which is empty.
func (p *pairsValue) String() string { return "" }
