package builder

import (
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/stretchr/testify/require"
)

// A busy registry is asked again for two minutes, as late as it asks for; what it refuses is not asked again.
func TestRetryPolicy(t *testing.T) {
	for name, c := range map[string]struct {
		status     int
		retryAfter string
		asked      int
		took       time.Duration
	}{
		"busy":              {http.StatusServiceUnavailable, "", 10, 121*time.Second + 500*time.Millisecond},
		"busy, says when":   {http.StatusTooManyRequests, "60", 10, 9 * time.Minute},
		"busy for too long": {http.StatusServiceUnavailable, "86400", 10, 45 * time.Minute},
		"broken":            {http.StatusInternalServerError, "60", 5, 7500 * time.Millisecond},
		"refused":           {http.StatusForbidden, "60", 1, 0},
		"not there":         {http.StatusNotFound, "", 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p, began, asked := defaultRetryPolicy(), time.Now(), 0
				err := p.do(t.Context(), func() error {
					asked++
					r := &http.Response{StatusCode: c.status, Header: http.Header{"Retry-After": {c.retryAfter}}}
					p.asked.hear(r)
					return remoteerrors.ErrUnexpectedStatus{StatusCode: c.status}
				})
				require.Error(t, err)
				require.Equal(t, c.asked, asked)
				require.Equal(t, c.took, time.Since(began))
			})
		})
	}
	var a askedWait
	a.hear(&http.Response{StatusCode: http.StatusServiceUnavailable, Header: http.Header{"Retry-After": {time.Now().Add(time.Minute).UTC().Format(http.TimeFormat)}}})
	require.Positive(t, a.left())
}

// The header of a real answer is heard, whatever containerd's client makes of the answer.
func TestRegistryAsksForAWait(t *testing.T) {
	r := newTestRegistry(t)
	layer := gzipLayer(t, makeTar(t, tarContent{"file": "x"}))
	ref := r.putImage(t, "team/app", "1", forgeImage(t, amd64, created, layer))
	var refused atomic.Int64
	r.wrap = func(w http.ResponseWriter, req *http.Request, next http.Handler) {
		if strings.Contains(req.URL.Path, "/blobs/") && refused.Add(1) <= 12 {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, req)
	}
	o := buildOptions(t, ref)
	o.retry = &retryPolicy{attempts: 2, busy: 10, first: time.Millisecond, asked: new(askedWait)}
	_, err := Build(t.Context(), o)
	require.NoError(t, err)
	require.False(t, o.retry.asked.until.IsZero(), "Retry-After was heard")
}

// Hosts of hosts.toml share the registry's client, which is made to listen and to use name servers once.
func TestListenerWithHostsDirAndNameServers(t *testing.T) {
	dir := t.TempDir()
	host := filepath.Join(dir, "registry.example")
	require.NoError(t, os.Mkdir(host, 0o700))
	toml := "server = \"http://registry.example\"\n[host.\"http://mirror.example\"]\n[host.\"http://mirror.example\".header]\nx = \"y\"\n"
	require.NoError(t, os.WriteFile(filepath.Join(host, "hosts.toml"), []byte(toml), 0o600))
	c := newRegistryClient(t.Context(), RegistryOptions{
		HostsDir: dir, NameServers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:53")},
	}, defaultRetryPolicy())
	hosts, err := c.registryHosts("registry.example")
	require.NoError(t, err)
	require.Len(t, hosts, 2)
	for _, h := range hosts {
		require.IsType(t, listener{}, h.Client.Transport)
	}
}
