// Package dialect reads what a pod's annotations ask of image snapshots, in the project's own words (berth.dev/…) and
// in those of the clouds that sell image caches, and gives one neutral [Request].
//
// The dialects are data: a [Table] with a row per annotation and, per dialect, how it behaves where the vendors differ
// (what becomes of a pin that cannot be used, whether automatic matching is on by default and in which order it
// compares). A new vendor is a new entry of the table, in [Builtin] or by [Table.With] from
// berthd's configuration.
//
// docs/matching.md has the whole table and the rules by which dialects mix.
package dialect
