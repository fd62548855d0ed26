package builder

import (
	"errors"
	"net"
	"net/http"
	"net/netip"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/test/harness/nameserver"
)

// Registries are found by the name servers that are given, in turn and from the one that answered last (C-40).
func TestNameServers(t *testing.T) {
	r := newTestRegistry(t)
	ref := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, gzipLayer(t, makeTar(t, tarContent{"file": "x"}))))
	_, port, err := net.SplitHostPort(ref[:len(ref)-len("/team/app:1")])
	require.NoError(t, err)
	named := "registry.berth.invalid:" + port

	start := func(names map[string]netip.Addr) *nameserver.Server {
		s, err := nameserver.Start(netip.MustParseAddrPort("127.0.0.1:0"), names)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, s.Close()) })
		return s
	}
	good := start(map[string]netip.Addr{"registry.berth.invalid": netip.MustParseAddr("127.0.0.1")})
	ignorant, unused := start(nil), start(nil)
	closed, err := nameserver.Start(netip.MustParseAddrPort("127.0.0.1:0"), nil)
	require.NoError(t, err)
	dead := closed.Address()
	require.NoError(t, closed.Close())

	build := func(servers ...netip.AddrPort) error {
		o := buildOptions(t, named+"/team/app:1")
		o.Registry.PlainHTTP, o.Registry.NameServers = []string{named}, servers
		_, err := Build(t.Context(), o)
		return err
	}
	require.NoError(t, build(good.Address(), unused.Address()))
	require.Empty(t, unused.Asked(), "the first one has answered")
	require.NoError(t, build(dead, dead, good.Address()))
	err = build(ignorant.Address(), good.Address())
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.ErrorContains(t, err, "name server 127.0.0.1 knows no host registry.berth.invalid")
	require.NotEmpty(t, ignorant.Asked())

	n := newNameServers([]netip.AddrPort{dead, good.Address()})
	_, err = n.lookup(t.Context(), "registry.berth.invalid")
	require.NoError(t, err)
	require.EqualValues(t, 1, n.good.Load(), "the dead one is not asked first again")
	_, err = newNameServers([]netip.AddrPort{dead}).lookup(t.Context(), "registry.berth.invalid")
	require.ErrorContains(t, err, "find host registry.berth.invalid by name server 127.0.0.1")
	require.ErrorContains(t, err, " on "+dead.String()+": ", "the server that was asked, not the machine's")
	require.True(t, transient(err), "it may be back")
	require.NotErrorIs(t, err, errdefs.ErrNotFound)

	require.ErrorIs(t, n.update(&http.Client{Transport: roundTripper{}}), errdefs.ErrNotImplemented)
}

// roundTripper is not net/http's.
type roundTripper struct{}

func (roundTripper) RoundTrip(*http.Request) (*http.Response, error) { return nil, errors.New("never") }
