// Package house has the tests that keep those rules of CONTRIBUTING.md that no linter knows: which package may import
// which, how many methods a type has, and how wide prose is.
package house
