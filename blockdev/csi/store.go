package csi

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// store keeps records as files of a directory, each whole or not there, and on the disk when put returns.
type store[T any] struct {
	dir string
}

const (
	recordSuffix = ".json"
	newSuffix    = ".new"
)

// hash is the name of files for what may be called anything.
func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}

func (s store[T]) path(key string) string { return filepath.Join(s.dir, hash(key)+recordSuffix) }

func (s store[T]) get(key string) (record T, found bool, err error) {
	record, err = s.read(s.path(key))
	if errors.Is(err, os.ErrNotExist) {
		return record, false, nil
	}
	return record, err == nil, err
}

func (s store[T]) read(path string) (record T, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return record, err
	}
	if err := json.Unmarshal(data, &record); err != nil {
		return record, fmt.Errorf("read %s: %w", path, err)
	}
	return record, nil
}

func (s store[T]) all() ([]T, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var records []T
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), recordSuffix) {
			continue
		}
		record, err := s.read(filepath.Join(s.dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed since the listing
		}
		if err != nil {
			return nil, err
		}
		records = append(records, record)
	}
	return records, nil
}

// put is not for two at once with one key: callers hold the key's lock.
func (s store[T]) put(key string, record T) error {
	data, err := json.Marshal(record)
	if err != nil {
		return err
	}
	path := s.path(key)
	temp := path + newSuffix
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
	return s.sync()
}

func (s store[T]) remove(key string) error {
	err := os.Remove(s.path(key))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.sync()
}

func (s store[T]) sync() error {
	f, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
