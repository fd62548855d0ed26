package image

import (
	"fmt"
	"os"
	"path/filepath"
)

// busyboxPath is where Debian's package busybox-static puts its program.
const busyboxPath = "/bin/busybox"

// busyboxCommands are those that tests use.
func busyboxCommands() []string {
	return []string{"sh", "cat", "dd", "echo", "find", "id", "ls", "md5sum", "mount", "rm", "sleep", "stat", "test", "touch", "true", "xargs"}
}

// Busybox is a layer with a static busybox and links for the commands that tests use, so that an image can run.
func Busybox() (Layer, error) {
	program, err := os.ReadFile(busyboxPath)
	if err != nil {
		return Layer{}, fmt.Errorf("read busybox (Debian package busybox-static): %w", err)
	}
	entries := []Entry{
		Dir("bin"), File("bin/busybox", string(program), Mode(0o755)),
		Dir("etc"), File("etc/passwd", "root:x:0:0:root:/:/bin/sh\n"), File("etc/group", "root:x:0:\n"),
		Dir("proc"), Dir("sys"), Dir("dev"), Dir("tmp", Mode(0o1777)),
	}
	for _, command := range busyboxCommands() {
		entries = append(entries, Symlink("bin/"+command, "busybox"))
	}
	return Layer{Entries: entries}, nil
}

// Pause is the command of a container that does nothing until it is told to end; as process 1 it gets no signal that
// it does not handle.
func Pause() []string {
	return []string{"/bin/sh", "-c", "trap 'exit 0' TERM INT; while :; do sleep 3600 & wait $!; done"}
}

// WriteBusybox writes program and links below dir, for layers that are made from directories.
func WriteBusybox(dir string) error {
	program, err := os.ReadFile(busyboxPath)
	if err != nil {
		return fmt.Errorf("read busybox (Debian package busybox-static): %w", err)
	}
	bin := filepath.Join(dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("write busybox: %w", err)
	}
	if err := os.WriteFile(filepath.Join(bin, "busybox"), program, 0o755); err != nil { //nolint:gosec // a program
		return fmt.Errorf("write busybox: %w", err)
	}
	for _, command := range busyboxCommands() {
		if err := os.Symlink("busybox", filepath.Join(bin, command)); err != nil {
			return fmt.Errorf("write busybox: %w", err)
		}
	}
	return nil
}
