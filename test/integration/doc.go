// Package integration tests the main path with real programs: containerd, ctr, runc, a registry that counts, berth and
// berthd, loop devices and mounts. The tests need root and the build tag "integration"; BERTH_CONTAINERD names the
// version of containerd. Each test has a node of its own and leaves nothing behind.
package integration
