package main

import (
	"fmt"
	"io"
	"os"

	"berth.dev/berth/readahead/accesslist"
)

// readAccessList reads an access list from a file.
func readAccessList(path string) (*accesslist.List, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, accesslist.MaxEncodedBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	list, err := accesslist.Decode(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}
