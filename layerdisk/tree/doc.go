// Package tree turns the tar stream of one image layer into an in-memory directory tree, while the contents of its
// files flow, once, to a writer in whole blocks.
//
// The tree is what containerd's archive.Apply (2.4) with overlay whiteouts leaves in a directory, quirks included: the
// root entry is ignored, trusted.* attributes of the archive are dropped, times before 1970 and after 2262 become 0, a
// hard link's header overwrites the attributes of its target, a change of owner drops security.capability, default ACLs
// are inherited. What containerd refuses is refused. One thing differs on purpose, so that the same layer always gives
// the same tree: times that containerd takes from the clock (whiteouts, implied directories, the root) are 0. Implied
// directories, which lie above something that the layer names without being named themselves, are 0755 root:root until
// Tree.On puts the layer on a stack.
package tree
