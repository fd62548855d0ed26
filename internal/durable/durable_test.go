package durable_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/internal/durable"
)

func TestDurable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "r.json")
	_, found, err := durable.Read[string](path)
	require.NoError(t, err)
	require.False(t, found)
	// What a crash left of another write is no obstacle.
	require.NoError(t, os.WriteFile(path+durable.TempSuffix, []byte("half of something longer"), 0o600))
	for _, value := range []string{"first", "second"} {
		require.NoError(t, durable.Write(path, value))
		got, found, err := durable.Read[string](path)
		require.NoError(t, err)
		require.True(t, found)
		require.Equal(t, value, got)
		require.NoFileExists(t, path+durable.TempSuffix)
	}
	require.NoError(t, os.WriteFile(path, []byte(`"cut`), 0o600))
	_, _, err = durable.Read[string](path)
	require.ErrorContains(t, err, path)
	require.NoError(t, durable.Remove(path))
	require.NoError(t, durable.Remove(path))
	require.NoFileExists(t, path)
	require.Error(t, durable.Write(filepath.Join(path, "below", "nothing"), "x"))
}
