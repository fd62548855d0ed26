package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// database is one of berthd's, and what to do without it.
type database struct{ file, has, recipe string }

func databases() []database {
	return []database{
		{"metadata.db", "which layers of images are where", "move it away, start berthd, and run berth doctor again: it names the images to be removed and pulled again"},
		{"stage.db", "which disks were attached", "move it away and start berthd: disks of its configuration and disks that pulls want are attached again; attach others with berth attach"},
		{"imagesnapshots.db", "the image snapshots that berthd keeps", "put back a copy of it, or move it away and start berthd: image snapshots are then to be made again, and their volumes and volume snapshots in the storage are nobody's"},
	}
}

// checkDatabases reads berthd's databases through when berthd does not run. While it does, it has them open.
func checkDatabases(n Node) []Result {
	var results []Result
	for _, d := range databases() {
		path := filepath.Join(n.Root, d.file)
		err := readThrough(path)
		switch {
		case err == nil, errors.Is(err, os.ErrNotExist), errors.Is(err, berrors.ErrTimeout):
		case errors.Is(err, os.ErrPermission):
			results = append(results, Result{"database " + d.file, Warn, err.Error(), "run berth doctor as root"})
		default:
			results = append(results, Result{"database " + d.file, Fail, fmt.Sprintf("%s, which says %s, is damaged: %v", path, d.has, err), d.recipe})
		}
	}
	return results
}

// readThrough reads every value of a database. What a damaged page leads to is an error too.
func readThrough(path string) (err error) {
	if info, err := os.Stat(path); err != nil {
		return err
	} else if info.Size() == 0 {
		return errors.New("the file is empty")
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("read %s: %v", path, r)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return readBucket(b) })
	})
}

func readBucket(b *bolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		if v == nil {
			return readBucket(b.Bucket(k))
		}
		_, err := io.Discard.Write(bytes.Clone(v)) // touches all its pages
		return err
	})
}
