// Package loop finds and detaches the loop devices whose files lie in a directory of the test's own.
package loop

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Below are the loop devices with a backing file below dir: device to file.
func Below(dir string) (map[string]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, fmt.Errorf("list loop devices: %w", err)
	}
	found := map[string]string{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read backing file: %w", err)
		}
		if backing := strings.TrimSpace(string(b)); strings.HasPrefix(backing, dir+"/") {
			found["/dev/"+strings.Split(f, "/")[3]] = backing
		}
	}
	return found, nil
}

// DetachBelow detaches them. What is mounted stays until it is unmounted.
// Detach a device; one that is not attached is no error.
func DetachBelow(dir string) error {
	devices, err := Below(dir)
	if err != nil {
		return err
	}
	var errs []error
	for device := range devices {
		errs = append(errs, Detach(device))
	}
	return errors.Join(errs...)
}

// Detach a device; one that is not attached is no error.
func Detach(device string) error {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", device, err)
	}
	err = unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) {
		err = nil // detached meanwhile
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		return fmt.Errorf("detach %s: %w", device, err)
	}
	return nil
}
