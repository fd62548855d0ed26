package daemon

import (
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot/imagesnapshottest"
	"berth.dev/berth/internal/config"
)

func TestReferenceOfAccessList(t *testing.T) {
	for ref, want := range map[string]string{
		"":                                 "",
		"nginx":                            "docker.io/library/nginx:latest",
		"docker.io/library/nginx:1.27":     "docker.io/library/nginx:1.27",
		"registry.example:5000/team/app:7": "registry.example:5000/team/app:7",
		"Not A Reference":                  "",
		"sha256:" + "e3b0c44298fc1c149afb": "docker.io/library/sha256:e3b0c44298fc1c149afb",
		"nginx@sha256:" + digest.FromString("x").Encoded(): "docker.io/library/nginx@sha256:" + digest.FromString("x").Encoded(),
	} {
		require.Equal(t, want, normalised(ref), ref)
	}
}

// TestShippedLimits is, C-39 and Q10: what the shipped configuration allows, and what tests take for it.
func TestShippedLimits(t *testing.T) {
	shipped := config.Default()
	got := limitsOf(&shipped)
	require.NoError(t, got.Check())
	require.Equal(t, imagesnapshottest.Limits(), got)
	require.Equal(t, 50, got.MaxPerOwner, "A-3")
	require.Equal(t, []int{20, 400, 20}, []int{got.MinSizeGiB, got.MaxSizeGiB, got.DefaultSizeGiB}, "A-6")
	require.Equal(t, 1440, got.DefaultTimeoutMinutes, "C-39")
	require.Equal(t, 10, got.MaxImages, "Q10")
}
