package buildproc_test

import (
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/buildproc"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/test/harness/nameserver"
)

// registryName is what the registry of these tests is called, in no other name server's words.
const registryName = "registry.berth.invalid"

// TestRegistryAccess is C-32 to C-36 and C-40: a build gets at a registry that only a name server of the spec knows,
// whose certificate only the spec accepts and whose password only the spec's secret has, and every one of them is
// needed.
func TestRegistryAccess(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: name servers answer on port 53")
	}
	const password = "correct-horse"
	h := newTLSHub(t, password)
	h.push(t, "team/app:1", layer(t, "base", 1<<20))
	_, port, err := net.SplitHostPort(h.host())
	require.NoError(t, err)
	host := registryName + ":" + port
	// Addresses of the machine's own loopback network that nobody else has: by process.
	address := func(n byte) netip.Addr {
		pid := os.Getpid()
		return netip.AddrFrom4([4]byte{127, 100 + n, byte(pid >> 8), byte(pid)})
	}
	serve := func(n byte, names map[string]netip.Addr) *nameserver.Server {
		s, err := nameserver.Start(netip.AddrPortFrom(address(n), 53), names)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		return s
	}
	knows := serve(1, map[string]netip.Addr{registryName: netip.MustParseAddr("127.0.0.1")})
	knowsNot := serve(2, nil)
	dead := address(3)

	secrets := t.TempDir()
	auth := base64.StdEncoding.EncodeToString([]byte("u:" + password))
	require.NoError(t, os.WriteFile(filepath.Join(secrets, "pull.json"), []byte(fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, auth)), 0o600))
	b, _ := open(t, func(c *buildproc.Config) { c.Secrets = buildproc.SecretDir(secrets) })
	build := func(t *testing.T, change func(*imagesnapshot.Spec)) (lifecycle.BuildResult, error) {
		sp := imagesnapshot.Spec{
			Images: []string{host + "/team/app:1"}, Platforms: []string{"linux/amd64"},
			Registries: []imagesnapshot.Registry{{Server: host, Secret: "pull", InsecureSkipVerify: true}},
			Build:      imagesnapshot.Build{DNSServers: []string{address(1).String()}},
		}
		change(&sp)
		return b.Build(t.Context(), lifecycle.BuildRequest{PlanRequest: lifecycle.PlanRequest{Spec: sp}, Device: disk(t, 0)})
	}

	t.Run("all", func(t *testing.T) {
		result, err := build(t, func(*imagesnapshot.Spec) {})
		require.NoError(t, err)
		ix, err := layerdisk.Parse(result.Index)
		require.NoError(t, err)
		require.Equal(t, host+"/team/app:1", ix.Images[0].Reference)
		require.Equal(t, []string{registryName}, knows.Asked())
	})
	t.Run("a dead name server before it", func(t *testing.T) {
		_, err := build(t, func(sp *imagesnapshot.Spec) {
			sp.Build.DNSServers = []string{dead.String(), address(1).String()}
		})
		require.NoError(t, err)
	})
	for _, c := range []struct {
		name   string
		change func(*imagesnapshot.Spec)
		class  func(error) bool
		says   string
	}{
		{"no name server", func(sp *imagesnapshot.Spec) { sp.Build.DNSServers = nil }, nil, "lookup " + registryName},
		{"another name server", func(sp *imagesnapshot.Spec) { sp.Build.DNSServers = []string{address(2).String()} }, errdefs.IsNotFound,
			"name server " + address(2).String() + " knows no host " + registryName},
		{"certificate checked", func(sp *imagesnapshot.Spec) { sp.Registries[0].InsecureSkipVerify = false }, nil, "certificate"},
		{"plain HTTP", func(sp *imagesnapshot.Spec) {
			sp.Registries[0].InsecureSkipVerify, sp.Registries[0].PlainHTTP = false, true
		}, nil, "400"},
		{"no secret", func(sp *imagesnapshot.Spec) { sp.Registries[0].Secret = "" }, errdefs.IsUnauthorized, "those of the secret that it names for this registry"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := build(t, c.change)
			require.ErrorContains(t, err, c.says)
			require.NotContains(t, err.Error(), password)
			if c.class != nil {
				require.True(t, c.class(err), "%v", err)
			}
		})
	}
	require.Contains(t, strings.Join(knowsNot.Asked(), " "), registryName)
}
