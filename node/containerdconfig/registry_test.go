package containerdconfig

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Where hosts.toml files and credentials are is read from the place of each version.
func TestRegistries(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(two, "registry.example"), 0o700))
	for plugin, version := range map[string]string{"io.containerd.cri.v1.images": "3", "io.containerd.grpc.v1.cri": "2"} {
		c, err := Parse([]byte("version = " + version + "\n[plugins.'" + plugin + "'.registry]\nconfig_path = '" + one + ":" + two + "'\n" +
			"[plugins.'" + plugin + "'.registry.configs.'registry.example'.auth]\nusername = 'u'\npassword = 'p'\n" +
			"[plugins.'" + plugin + "'.registry.configs.'encoded:5000'.auth]\nauth = 'dTpwOnE='\n" +
			"[plugins.'" + plugin + "'.registry.configs.'token'.auth]\nidentitytoken = 't'\n" +
			"[plugins.'" + plugin + "'.registry.configs.'broken'.auth]\nauth = '!'\n"))
		require.NoError(t, err)
		r := c.Registries()
		require.Equal(t, two, r.HostsDir("registry.example"))
		require.Empty(t, r.HostsDir("other.example"))
		for host, want := range map[string][2]string{
			"registry.example": {"u", "p"}, "encoded:5000": {"u", "p:q"}, "token": {"", "t"}, "other": {"", ""},
		} {
			user, secret, err := r.Credentials(host)
			require.NoError(t, err)
			require.Equal(t, want, [2]string{user, secret}, host)
		}
		_, _, err = r.Credentials("broken")
		require.ErrorContains(t, err, "broken")
	}
	c, err := Parse([]byte("version = 3\n[plugins.'io.containerd.transfer.v1.local']\nconfig_path = '" + two + "'\n"))
	require.NoError(t, err)
	require.Equal(t, two, c.Registries().HostsDir("registry.example"))
}

func TestFileOf(t *testing.T) {
	for want, args := range map[string][]string{
		"/a": {"containerd", "--config", "/a"}, "/b": {"containerd", "--log-level=info", "--config=/b"}, "/c": {"containerd", "-c", "/c"},
		DefaultPath: {"containerd", "--config"},
	} {
		require.Equal(t, want, fileOf(args))
	}
}
