package accesslists_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/accesslists"
	"berth.dev/berth/readahead"
	"berth.dev/berth/readahead/accesslist"
	"berth.dev/berth/readahead/liststore"
)

func sum(text string) digest.Digest { return digest.FromString(text) }

// Of the lists of an image that of the very disk counts, then the one recorded last.
func TestListOfTheDiskCounts(t *testing.T) {
	dir := t.TempDir()
	const app = "docker.io/library/app:1"
	for i, disk := range []string{"other", "this", "third"} {
		putList(t, dir, app, sum(disk), time.Unix(int64(1000+i), 0))
	}
	lists := accesslists.Places{Directory: liststore.Open(dir)}
	get := func(disk, image string) (*accesslist.List, error) {
		return lists.AccessList(context.Background(), readahead.Disk{Identity: layerdisk.Identity{IndexDigest: sum(disk)}}, image)
	}
	l, err := get("this", app)
	require.NoError(t, err)
	require.Equal(t, sum("this"), l.Disk)
	l, err = get("none of them", app)
	require.NoError(t, err)
	require.Equal(t, sum("third"), l.Disk)
	_, err = get("this", "docker.io/library/web:1")
	require.True(t, errdefs.IsNotFound(err), err)
}

func putList(t *testing.T, dir, image string, disk digest.Digest, recorded time.Time) {
	t.Helper()
	l := &accesslist.List{Image: image, Platform: "linux/amd64", Recorded: recorded, Disk: disk, Metadata: []accesslist.Range{{Length: 4096}}}
	data, err := l.Encode()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, disk.Encoded()), data, 0o600))
}
