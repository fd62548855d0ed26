package stage

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"berth.dev/berth/layerdisk"
)

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stage.db")
	j, err := openJournal(path)
	require.NoError(t, err)
	want := record{
		Spec: Spec{Name: "one", Driver: "loop", VolumeSnapshotID: "s", Keep: true, Expect: layerdisk.Identity{UUID: "u"}},
		Goal: goalGone, Step: StateDetaching, Since: time.Unix(5, 6).UTC(), Number: 7, VolumeName: "n", VolumeID: "v",
		AttachBegun: true, Device: "/dev/x", DeviceNumber: 9, BootID: "b", Draining: true,
		Identity: layerdisk.Identity{UUID: "u", IndexDigest: digest.FromString("x")},
	}
	require.NoError(t, j.put(want))
	require.NoError(t, j.db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket(disksBucket())
		for name, data := range map[string]string{"cut": `{"spec":`, "other": `{"spec":{"name":"x"},"goal":"gone"}`, "goal": `{"spec":{"name":"goal"},"goal":"?"}`} {
			require.NoError(t, b.Put([]byte(name), []byte(data)))
		}
		return nil
	}))
	require.NoError(t, j.close())
	j, err = openJournal(path)
	require.NoError(t, err)
	records, bad, err := j.load()
	require.NoError(t, err)
	require.Len(t, bad, 3, "what cannot be read is reported and does not stop the rest")
	require.Equal(t, []record{want}, records)
	require.NoError(t, j.remove("one"))
	require.NoError(t, j.remove("one"))

	require.NoError(t, j.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(metaBucket()).Put(versionKey(), []byte("2")) }))
	require.NoError(t, j.close())
	_, err = openJournal(path)
	require.True(t, errdefs.IsNotImplemented(err), err)
	require.ErrorContains(t, err, "version 2")
}

func TestOpenRefuses(t *testing.T) {
	for _, root := range []string{"relative", "/no/such/directory"} {
		_, err := Open(Config{Root: root})
		require.Error(t, err)
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "0": true, "a-b_c.d": true, "": false, "-a": false, "a-": false, "A": false, "a/b": false, "a\x00b": false, "..": false,
		"a1234567890123456789012345678901234567890123456789012345678901234": false,
	} {
		require.Equal(t, want, validName(name), name)
	}
}

// A journal that is damaged is set aside, as it is, and a new one begins; a good one stays.
func TestDamagedJournalIsSetAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stage.db")
	j, err := openJournal(path)
	require.NoError(t, err)
	require.NoError(t, j.put(record{Spec: Spec{Name: "a"}, Goal: goalStaged}))
	require.NoError(t, j.close())
	aside, err := setDamagedAside(path)
	require.NoError(t, err)
	require.Empty(t, aside)

	require.NoError(t, os.Truncate(path, 5000))
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	aside, err = setDamagedAside(path)
	require.NoError(t, err)
	after, err := os.ReadFile(aside)
	require.NoError(t, err)
	require.Equal(t, before, after)
	j, err = openJournal(path)
	require.NoError(t, err)
	records, bad, err := j.load()
	require.NoError(t, err)
	require.Empty(t, records)
	require.Empty(t, bad)
	require.NoError(t, j.close())
}
