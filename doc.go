// Package berth is the root of the berth module: image snapshots for containerd. See README.md for where to start
// reading.
package berth
