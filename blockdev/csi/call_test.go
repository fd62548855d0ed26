package csi

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/internal/durable"
)

func TestClassOfEveryCode(t *testing.T) {
	for code := codes.Canceled; code <= codes.Unauthenticated; code++ {
		for _, why := range []purpose{asking, making, attaching} {
			err := classOf(code, why)
			require.Equal(t, blockdev.Retryable(err), err == blockdev.ErrThrottled, "%s", code) //nolint:errorlint // the very value
		}
	}
	for code, class := range map[codes.Code]error{
		codes.Canceled: blockdev.ErrThrottled, codes.Unknown: blockdev.ErrFailed, codes.InvalidArgument: blockdev.ErrInvalid,
		codes.DeadlineExceeded: blockdev.ErrThrottled, codes.NotFound: blockdev.ErrNotFound, codes.AlreadyExists: blockdev.ErrExists,
		codes.PermissionDenied: blockdev.ErrDenied, codes.ResourceExhausted: blockdev.ErrThrottled,
		codes.FailedPrecondition: blockdev.ErrInUse, codes.Aborted: blockdev.ErrThrottled, codes.OutOfRange: blockdev.ErrInvalid,
		codes.Unimplemented: blockdev.ErrUnsupported, codes.Internal: blockdev.ErrFailed, codes.Unavailable: blockdev.ErrThrottled,
		codes.DataLoss: blockdev.ErrFailed, codes.Unauthenticated: blockdev.ErrDenied, codes.Code(999): blockdev.ErrFailed,
	} {
		require.Equal(t, class, classOf(code, asking), "%s", code)
	}
	require.Equal(t, blockdev.ErrAttachLimit, classOf(codes.ResourceExhausted, attaching))
	require.Equal(t, blockdev.ErrNoSpace, classOf(codes.ResourceExhausted, making))
}

func TestDescribeForeignText(t *testing.T) {
	require.Equal(t, "a b ? (Internal)", describe(status.Error(codes.Internal, "a\nb\x00\xff")))
	long := describe(status.Error(codes.Internal, strings.Repeat("é", maxText)))
	require.LessOrEqual(t, len(long), maxText+len("… (Internal)"))
	require.True(t, strings.HasSuffix(long, "é… (Internal)"), long)
	require.Equal(t, "plain (Unknown)", describe(errors.New("plain")))
}

func TestPages(t *testing.T) {
	var asked []string
	require.NoError(t, pages(func(token string) (string, error) {
		asked = append(asked, token)
		return map[string]string{"": "b", "b": "c"}[token], nil
	}))
	require.Equal(t, []string{"", "b", "c"}, asked)

	require.ErrorIs(t, pages(func(string) (string, error) { return "same", nil }), blockdev.ErrFailed)
	count := 0
	require.ErrorIs(t, pages(func(string) (string, error) { count++; return strconv.Itoa(count), nil }), blockdev.ErrFailed)
	require.Equal(t, maxPages, count)
	require.ErrorIs(t, pages(func(string) (string, error) { return "more", blockdev.ErrDenied }), blockdev.ErrDenied)
}

func TestReadSecrets(t *testing.T) {
	none, err := readSecrets("")
	require.NoError(t, err)
	require.Nil(t, none)

	dir := t.TempDir()
	_, err = readSecrets(dir)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	write("user", "me\n")
	// As Kubernetes mounts them: links into a generation.
	require.NoError(t, os.Mkdir(filepath.Join(dir, "..data"), 0o700))
	write("..data/key", "s3cret")
	require.NoError(t, os.Symlink("..data/key", filepath.Join(dir, "key")))
	secrets, err := readSecrets(dir)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"user": "me", "key": "s3cret"}, secrets)

	write("user", "bad \xff")
	_, err = readSecrets(dir)
	require.True(t, errdefs.IsInvalidArgument(err), "%v", err)
	require.NotContains(t, err.Error(), "bad")
	write("user", strings.Repeat("x", maxSecrets))
	_, err = readSecrets(dir)
	require.ErrorContains(t, err, "more than")
	require.NotContains(t, err.Error(), "xxx")
	require.NoError(t, os.Remove(filepath.Join(dir, "user")))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "user"), 0o700))
	_, err = readSecrets(dir)
	require.ErrorContains(t, err, "not a file")
	_, err = readSecrets(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestStore(t *testing.T) {
	s := store[volumeRecord]{t.TempDir()}
	_, found, err := s.get("a/../b")
	require.NoError(t, err)
	require.False(t, found)
	require.NoError(t, s.put("a/../b", volumeRecord{Name: "one"}))
	require.NoError(t, s.put("a/../b", volumeRecord{Name: "two"}))
	got, found, err := s.get("a/../b")
	require.NoError(t, err)
	require.True(t, found)
	require.Equal(t, "two", got.Name)

	// What a crash leaves of a write is not a record.
	require.NoError(t, os.WriteFile(s.path("x")+durable.TempSuffix, []byte("{"), 0o600))
	all, err := s.all()
	require.NoError(t, err)
	require.Equal(t, []volumeRecord{{Name: "two"}}, all)
	require.NoError(t, s.put("x", volumeRecord{Name: "x"}))
	require.NoError(t, os.WriteFile(s.path("x"), []byte("{"), 0o600))
	_, _, err = s.get("x")
	require.ErrorContains(t, err, s.path("x"))

	require.NoError(t, s.remove("x"))
	require.NoError(t, s.remove("x"))
	require.NoError(t, s.remove("a/../b"))
	entries, err := os.ReadDir(s.dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}
