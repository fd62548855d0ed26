// Package matcher chooses which image snapshots a node should attach for the images it is about to run.
//
// It is pure: an [Index] keeps what is known about the image snapshots of the fleet in memory, [Index.Match] takes the
// requested images and the rules and answers with a [Decision] that says what was chosen and, candidate by candidate,
// why. Nothing here reads a clock, a disk or a network, so the same input gives the same choice on every node.
//
// Matching is by content: by the manifest digest where both sides know it and by layer digests (chain ID, diff ID,
// compressed digest). Names count only where digests are not known. A choice decides which disk is attached, never
// which bytes are served; those are found by digest afterwards.
//
// docs/matching.md describes the rules, the orders and the explanation.
package matcher
