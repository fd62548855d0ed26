package boltstore_test

import (
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/imagesnapshot/store/boltstore"
	"berth.dev/berth/imagesnapshot/store/storetest"
)

func open(t *testing.T, path string) *boltstore.Store {
	t.Helper()
	s, err := boltstore.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

func TestSuite(t *testing.T) {
	paths := map[storetest.Full]string{}
	storetest.Suite(t, storetest.Config{
		New: func(t *testing.T) storetest.Full {
			path := filepath.Join(t.TempDir(), "sub", "store.db")
			s := open(t, path)
			paths[s] = path
			return s
		},
		Reopen: func(t *testing.T, old storetest.Full) storetest.Full {
			require.NoError(t, old.(*boltstore.Store).Close())
			return open(t, paths[old])
		},
	})
}

func TestInstallationStays(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := boltstore.Open(path)
	require.NoError(t, err)
	id := s.Installation()
	require.Len(t, id, 36)
	require.NoError(t, s.Close())
	require.Equal(t, id, open(t, path).Installation())
	require.NotEqual(t, id, open(t, filepath.Join(t.TempDir(), "other.db")).Installation())
}

func TestOpenRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	held := open(t, path)
	_, err := boltstore.Open(path)
	require.True(t, errdefs.IsUnavailable(err), "held by another: %v", err)
	require.NoError(t, held.Close())

	damage := func(bucket, key, value string) {
		db, err := bolt.Open(path, 0o600, nil)
		require.NoError(t, err)
		require.NoError(t, db.Update(func(tx *bolt.Tx) error { return tx.Bucket([]byte(bucket)).Put([]byte(key), []byte(value)) }))
		require.NoError(t, db.Close())
	}
	damage("objects", "x", "{")
	_, err = boltstore.Open(path)
	require.True(t, errdefs.IsDataLoss(err), "%v", err)
	require.ErrorContains(t, err, `"x"`)
	damage("meta", "format", "2")
	_, err = boltstore.Open(path)
	require.True(t, errdefs.IsFailedPrecondition(err), "%v", err)
}

func TestCloseEndsWatches(t *testing.T) {
	s := open(t, filepath.Join(t.TempDir(), "store.db"))
	changes, err := s.Watch(t.Context())
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, ok := <-changes
	require.False(t, ok)
	_, err = s.Watch(t.Context())
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
}
