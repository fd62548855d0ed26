// Package durable keeps what a driver has to know after a crash: one value in one file, whole or not there, and on the
// disk when a function returns. Two at once for one path have to be kept apart by the caller.
package durable

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// TempSuffix ends the name of a file that is being written. One that a crash left may be removed.
const TempSuffix = ".new"

// Read gives the value at path; found is false if there is none.
func Read[T any](path string) (value T, found bool, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return value, false, nil
	}
	if err != nil {
		return value, false, err
	}
	if err := json.Unmarshal(data, &value); err != nil {
		return value, false, fmt.Errorf("read %s: %w", path, err)
	}
	return value, true, nil
}

// Write puts the value there, in place of any other.
func Write[T any](path string, value T) error {
	data, err := json.Marshal(value)
	if err != nil {
		return err
	}
	temp := path + TempSuffix
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return syncDir(filepath.Dir(path))
}

// Remove takes the value away; none is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
