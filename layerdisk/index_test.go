package layerdisk_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/layerdisk/layerdisktest"
)

// testImages share layers and stacks in every way that images do.
func testImages() []layerdisktest.Image {
	return []layerdisktest.Image{
		{Reference: "docker.io/library/app:1.0", Layers: []string{"base", "lib", "app"}, WithIndex: true},
		{Reference: "docker.io/library/tool:1.0", Layers: []string{"base", "tool", "tool"}},
		{Reference: "registry.example:5000/a/b@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", Layers: []string{"base", "lib"}},
		{Reference: "docker.io/library/nothing:latest"},
	}
}

func TestSealParse(t *testing.T) {
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, testImages()...)
	encoded, err := layerdisk.Seal(ix)
	require.NoError(t, err)
	require.NotEmpty(t, ix.UUID)
	got, err := layerdisk.Parse(encoded)
	require.NoError(t, err)
	require.Equal(t, ix, got)

	again := layerdisktest.Index(layerdisk.FileSystemEROFS, testImages()...)
	again.UUID = "someone else's"
	encodedAgain, err := layerdisk.Seal(again)
	require.NoError(t, err)
	require.True(t, bytes.Equal(encoded, encodedAgain), "same content, other bytes")
}

func TestHeaderRoundTrip(t *testing.T) {
	ix := layerdisktest.Index(layerdisk.FileSystemEROFS, testImages()...)
	encoded, err := layerdisk.Seal(ix)
	require.NoError(t, err)
	h := layerdisk.NewHeader(ix, encoded, 8192, 1<<20)
	b, err := h.MarshalBinary()
	require.NoError(t, err)
	require.Len(t, b, layerdisk.HeaderBytes)
	got, err := layerdisk.ParseHeader(b)
	require.NoError(t, err)
	require.Equal(t, h, got)
}
