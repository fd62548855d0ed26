package csi

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"berth.dev/berth/blockdev"
)

// Secrets of the requests that can have some, as directories with a file for each key, the form in which Kubernetes
// mounts secrets. They are read at each request, so that they can be changed. An empty name is no secrets.
type Secrets struct {
	// Provision is for making and deleting volumes, VolumeSnapshot for volume snapshots.
	Provision, VolumeSnapshot string
	// ControllerPublish, NodeStage and NodePublish are for the steps of attaching.
	ControllerPublish, NodeStage, NodePublish string
}

// maxSecrets bounds all of a directory's files.
const maxSecrets = 1 << 20

// readSecrets never has a secret in an error.
func readSecrets(dir string) (map[string]string, error) {
	if dir == "" {
		return nil, nil //nolint:nilnil // no secrets
	}
	secrets, err := readSecretsDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read secrets: %w", err)
	}
	return secrets, nil
}

func readSecretsDir(dir string) (map[string]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	secrets := make(map[string]string)
	left := int64(maxSecrets)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") {
			continue // Kubernetes keeps its generations in "..data" and the like
		}
		data, err := readRegular(path, left)
		if err != nil {
			return nil, err
		}
		if left -= int64(len(data)); left < 0 {
			return nil, fmt.Errorf("%s: more than %d bytes in all: %w", dir, maxSecrets, blockdev.ErrInvalid)
		}
		if !utf8.Valid(data) {
			return nil, fmt.Errorf("%s is not UTF-8, which CSI wants: %w", path, blockdev.ErrInvalid)
		}
		secrets[e.Name()] = strings.TrimSuffix(string(data), "\n")
	}
	if len(secrets) == 0 {
		return nil, fmt.Errorf("%s: no files: %w", dir, blockdev.ErrInvalid)
	}
	return secrets, nil
}

// readRegular reads one byte more than most at the most.
func readRegular(path string, most int64) (data []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file: %w", path, blockdev.ErrInvalid)
	}
	return io.ReadAll(io.LimitReader(f, most+1))
}
