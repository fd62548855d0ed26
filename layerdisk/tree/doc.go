// Package tree turns the tar stream of one image layer into in-memory directory trees. Read keeps what the entries say,
// while the contents of files flow, once, to a writer in whole blocks; Layer.On makes the tree that the layer has on
// top of others.
//
// The tree is what containerd's archive.Apply (2.4) leaves in a directory when containerd unpacks an image with its
// overlay snapshotter, quirks included: at the bottom of a stack whiteouts remove what came before them, the root entry
// is ignored, trusted.* attributes of the archive are dropped, times before 1970 and after 2262 become 0, a hard link's
// header overwrites the attributes of its target, a change of owner drops security.capability, default ACLs are
// inherited. What containerd refuses is refused. One thing differs on purpose, so that the same layer always gives the
// same tree: times that containerd takes from the clock (whiteouts, implied directories, the root) are 0. Implied
// directories lie above something that the layer names, and were not named before it.
package tree
