package boltfile_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/internal/boltfile"
)

// database has nested buckets, small ones that lie within a page, values longer than a page, and free pages.
func database(t *testing.T, path string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	for range 3 {
		require.NoError(t, db.Update(func(tx *bolt.Tx) error {
			outer, err := tx.CreateBucketIfNotExists([]byte("outer"))
			if err != nil {
				return err
			}
			for i := range uint64(2000) {
				err = errors.Join(err, outer.Put(binary.BigEndian.AppendUint64(nil, i), make([]byte, i%300)))
			}
			small, smallErr := outer.CreateBucketIfNotExists([]byte("small"))
			if err = errors.Join(err, smallErr); err != nil {
				return err
			}
			return errors.Join(small.Put([]byte("k"), []byte("v")), outer.Put([]byte("long"), make([]byte, 3*os.Getpagesize())))
		}))
		require.NoError(t, db.Update(func(tx *bolt.Tx) error {
			return tx.Bucket([]byte("outer")).Delete(binary.BigEndian.AppendUint64(nil, 7))
		}))
	}
	require.NoError(t, db.Close())
}

func TestCheckSound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	require.NoError(t, boltfile.Check(path), "none is there yet")
	db, err := bolt.Open(path, 0o600, nil)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(path, 100))
	require.NoError(t, boltfile.Check(path), "another has it open")
	require.NoError(t, db.Close())
	require.NoError(t, os.Remove(path))
	database(t, path)
	require.NoError(t, boltfile.Check(path))
}

func TestCheckDamaged(t *testing.T) {
	page := os.Getpagesize()
	for name, damage := range map[string]func(data []byte) []byte{
		"empty":            func([]byte) []byte { return nil },
		"one byte":         func(data []byte) []byte { return data[:1] },
		"one page":         func(data []byte) []byte { return data[:page] },
		"cut":              func(data []byte) []byte { return data[:len(data)/3] },
		"no meta pages":    func(data []byte) []byte { clear(data[:2*page]); return data },
		"zeroes behind":    func(data []byte) []byte { clear(data[2*page:]); return data },
		"other file":       func([]byte) []byte { return []byte("this is a text of somebody else") },
		"garbage":          fill,
		"garbage in pages": func(data []byte) []byte { fill(data[2*page:]); return data },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			database(t, path)
			data, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, damage(data), 0o600))
			err = boltfile.Check(path)
			require.ErrorIs(t, err, errdefs.ErrDataLoss)
			require.ErrorContains(t, err, path+" is damaged")

			aside, err := boltfile.SetAside(path, time.Unix(1, 5e6))
			require.NoError(t, err)
			require.Equal(t, path+".damaged-19700101T000001.005Z", aside)
			require.FileExists(t, aside)
			require.NoError(t, boltfile.Check(path))
		})
	}
}

func fill(data []byte) []byte {
	for i := range data {
		data[i] = 0xa5
	}
	return data
}

// Whatever passes the check, bbolt reads and writes without a panic. Seeded walks over single bytes and whole pages.
func TestWhatPassesIsUsable(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	database(t, good)
	data, err := os.ReadFile(good)
	require.NoError(t, err)
	page := os.Getpagesize()
	refused := 0
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		bad := append([]byte(nil), data...)
		at := r.IntN(len(bad)/page) * page
		switch r.IntN(3) {
		case 0:
			bad[at+r.IntN(64)] ^= byte(1 + r.IntN(255))
		case 1:
			clear(bad[at : at+page])
		default:
			from := r.IntN(len(bad)/page) * page
			copy(bad[at:at+page], data[from:])
		}
		path := filepath.Join(dir, fmt.Sprint(seed))
		require.NoError(t, os.WriteFile(path, bad, 0o600))
		if err := boltfile.Check(path); err != nil {
			require.ErrorIs(t, err, errdefs.ErrDataLoss)
			refused++
		} else {
			require.NotPanics(t, func() { use(t, path) }, "seed %d", seed)
		}
		require.NoError(t, os.Remove(path))
	}
	require.Greater(t, refused, 50, "most damage is seen")
}

// use reads all, and writes.
func use(t *testing.T, path string) {
	t.Helper()
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	require.NoError(t, db.View(func(tx *bolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bolt.Bucket) error { return b.ForEach(func(_, _ []byte) error { return nil }) })
	}))
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte("new"))
		if err != nil {
			return err
		}
		return b.Put([]byte("k"), make([]byte, 10000))
	}))
	require.NoError(t, db.Close())
}

// FuzzCheck: whatever a file has, the check ends with an error of its class or without one.
func FuzzCheck(f *testing.F) {
	path := filepath.Join(f.TempDir(), "db")
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		f.Fatal(err)
	}
	if err := db.Close(); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "db")
		require.NoError(t, os.WriteFile(path, data, 0o600))
		if err := boltfile.Check(path); err != nil {
			require.ErrorIs(t, err, errdefs.ErrDataLoss)
		}
	})
}
