package lost

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/node/users"
)

// A container runs from a disk if an overlay that it sees has a lower directory there, however containerd has named it.
func TestMountsFrom(t *testing.T) {
	const before = "622 541 0:72 / / rw,relatime - overlay overlay rw,"
	for name, c := range map[string]struct {
		line string
		want bool
	}{
		"absolute":                    {before + "lowerdir=/var/lib/berth/1/l/2:/var/lib/berth/snapshots/3/fs,upperdir=/u,workdir=/w", true},
		"second of several":           {before + "lowerdir=/var/lib/berth/snapshots/3/fs:/var/lib/berth/1/l/2", true},
		"relative to the common root": {before + "lowerdir=snapshots/3/fs:1/l/2,upperdir=/u", true},
		"relative to a folder above":  {before + "lowerdir=berth/snapshots/3/fs:berth/1/l/2,upperdir=/u", true},
		"of a newer kernel":           {before + "lowerdir+=/var/lib/berth/1/l/2", true},
		"another disk":                {before + "lowerdir=/var/lib/berth/11/l/2:/var/lib/berth/2/l/2,upperdir=/u", false},
		"another disk, relative":      {before + "lowerdir=11/l/2:2/l/2,upperdir=/u", false},
		"upper directory":             {before + "lowerdir=/x,upperdir=/var/lib/berth/1/l/2", false},
		"no overlay":                  {"1 2 7:1 / /var/lib/berth/1 ro - erofs /dev/loop1 ro,lowerdir=/var/lib/berth/1/l/2", false},
		"nothing":                     {"", false},
	} {
		t.Run(name, func(t *testing.T) {
			info := "1 2 0:1 / /proc rw - proc proc rw\n" + c.line + "\n"
			require.Equal(t, c.want, mountsFrom(strings.NewReader(info), "/var/lib/berth/1"))
		})
	}
}

// An image takes those of its namespace with it that share its lost layers, and no others.
func TestChoose(t *testing.T) {
	base, top, other := digest.FromString("base"), digest.FromString("top"), digest.FromString("other")
	user := func(kind users.Kind, namespace, name string, chains ...digest.Digest) users.User {
		return users.User{Kind: kind, Namespace: namespace, Name: name, Chains: chains}
	}
	all := []users.User{
		user(users.Image, "a", "one", base, top), user(users.Image, "a", "shares", base), user(users.Image, "a", "stranger", other),
		user(users.Image, "b", "shares", base), user(users.Container, "a", "c", base), user(users.Container, "b", "c", base),
	}
	require.Equal(t, []users.User{all[0], all[1], all[4]}, Selection{Image: "one"}.choose(all))
	require.Equal(t, []users.User{all[0], all[1], all[3], all[4], all[5]}, Selection{Image: "shares"}.choose(all))
	require.Empty(t, Selection{Image: "none"}.choose(all))
	require.Equal(t, all, Selection{Disk: "d"}.choose(all))
}
