package config_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/containerd/errdefs"

	"berth.dev/berth/internal/config"
)

// What a disk says goes before what is said of all.
func TestImportsFrom(t *testing.T) {
	for _, all := range []string{"true", "false"} {
		c, err := config.Parse([]byte("[import]\nenabled = " + all + `
[[disk]]
name = "yes"
path = "/y"
import = true
[[disk]]
name = "no"
path = "/n"
import = false
[[disk]]
name = "silent"
path = "/s"
`))
		require.NoError(t, err)
		require.True(t, c.ImportsFrom("yes"))
		require.False(t, c.ImportsFrom("no"))
		for _, other := range []string{"silent", "found-1234"} {
			require.Equal(t, all == "true", c.ImportsFrom(other), other)
		}
	}
}

func TestImportRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"namespaces = []":                 "import.namespaces: at least one",
		"namespaces = [\"a/b\"]":          "import.namespaces: \"a/b\" is no namespace",
		"images = [\"\"]":                 "import.images",
		"containerd = \"c.sock\"":         "import.containerd",
		"snapshotter = \"\"":              "import.snapshotter",
		"enable = true":                   "did you mean \"enabled\"?",
		"images = [\"" + long + "\"]":     "1 to 512 bytes",
		"namespaces = [\"" + long + "\"]": "1 to 76",
	} {
		_, err := config.Parse([]byte("[import]\n" + line))
		require.ErrorIs(t, err, errdefs.ErrInvalidArgument, line)
		require.ErrorContains(t, err, want, line)
	}
}

var long = strings.Repeat("a", 513)
