package attrs_test

import (
	"bytes"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk/attrs"
)

// sample has one entry of every kind, with bytes that need escaping wherever bytes are free.
func sample() []attrs.Entry {
	return []attrs.Entry{
		{Path: "-dash", Type: attrs.Regular, Mode: 0o644, Content: [32]byte{1}},
		{Path: ".", Type: attrs.Directory, Mode: 0o755, MtimeSec: -1, MtimeNsec: 500000000},
		{Path: "a b=c\\\n\xff", Type: attrs.Regular, Mode: 0o4755, UID: 3e9, GID: 1<<32 - 1, Size: 5, MtimeSec: 1700000000, MtimeNsec: 1, Content: [32]byte{0xab, 31: 0xcd},
			Xattrs: map[string][]byte{"user.a=b": {0, 1, 2}, "security.capability": []byte("x y"), "user.empty": {}}},
		{Path: "block", Type: attrs.BlockDev, Mode: 0o660, DevMajor: 259, DevMinor: 1000},
		{Path: "char", Type: attrs.CharDev},
		{Path: "d", Type: attrs.Directory, Mode: 0o1777, Xattrs: map[string][]byte{"trusted.overlay.opaque": []byte("y")}},
		{Path: "d/fifo", Type: attrs.FIFO, Mode: 0o600},
		{Path: "d/link", Type: attrs.Regular, Mode: 0o4755, UID: 3e9, GID: 1<<32 - 1, Size: 5, MtimeSec: 1700000000, MtimeNsec: 1, HardLink: "a b=c\\\n\xff",
			Xattrs: map[string][]byte{"user.a=b": {0, 1, 2}, "security.capability": []byte("x y"), "user.empty": {}}},
		{Path: "d/sym", Type: attrs.Symlink, Mode: 0o777, Size: 8, Target: "../a b\xfe="},
		{Path: "socket", Type: attrs.Socket, Mode: 0o755},
	}
}

func TestStoreLoad(t *testing.T) {
	entries := sample()
	stored, digest, err := attrs.Store(slices.Values(entries))
	require.NoError(t, err)
	again, digestAgain, err := attrs.Store(slices.Values(entries))
	require.NoError(t, err)
	require.Equal(t, stored, again)
	require.Equal(t, digest, digestAgain)
	plain, err := attrs.Digest(slices.Values(entries))
	require.NoError(t, err)
	require.Equal(t, plain, digest)
	require.Regexp(t, `^blake3:[0-9a-f]{64}$`, digest)

	got, digestGot, err := attrs.Load(bytes.NewReader(stored), 1<<20)
	require.NoError(t, err)
	require.Equal(t, digest, digestGot)
	require.Equal(t, entries, got)
}
