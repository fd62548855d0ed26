package csi

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"

	"berth.dev/berth/internal/durable"
)

// store keeps records as files of a directory, each whole or not there, and on the disk when put returns.
type store[T any] struct {
	dir string
}

const recordSuffix = ".json"

// hash is the name of files for what may be called anything.
func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:16])
}

func (s store[T]) path(key string) string { return filepath.Join(s.dir, hash(key)+recordSuffix) }

func (s store[T]) get(key string) (record T, found bool, err error) {
	return durable.Read[T](s.path(key))
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
		record, found, err := durable.Read[T](filepath.Join(s.dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if found { // not removed since the listing
			records = append(records, record)
		}
	}
	return records, nil
}

// put is not for two at once with one key: callers hold the key's lock.
func (s store[T]) put(key string, record T) error { return durable.Write(s.path(key), record) }

func (s store[T]) remove(key string) error { return durable.Remove(s.path(key)) }
