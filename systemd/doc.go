// Package systemd has no code: it holds berthd's unit and containerd's drop-in, and the test that checks them.
package systemd
