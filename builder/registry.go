package builder

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/google/go-containerregistry/pkg/authn"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// RegistryOptions say how registries are spoken to. Credentials come from the docker configuration file and its
// credential helpers.
type RegistryOptions struct {
	// PlainHTTP and InsecureSkipVerify name registries as references do ("registry.example:5000"); "*" is all.
	PlainHTTP          []string
	InsecureSkipVerify []string
	// HostsDir is a directory of containerd's hosts.toml files with mirrors and certificates; empty means no such
	// directory.
	HostsDir string
	// NameServers resolve registries' names instead of the machine's own; if one does not answer, the next is asked. If
	// empty, the machine's are used.
	NameServers []netip.AddrPort
	// Keychain gives credentials; nil is the docker configuration.
	Keychain authn.Keychain
	// StallTimeout ends a connection on which no byte came for so long; the blob is then resumed on another one.
	// 0 is a minute.
	StallTimeout time.Duration
}

const defaultStallTimeout = time.Minute

// errStalled is the cause of a connection's end by StallTimeout.
var errStalled = fmt.Errorf("no data from the registry: %w", errdefs.ErrUnavailable)

// registryClient is containerd's own registry client, so that a build sees what a node's pull would see: the same
// mirrors, authorisation flows and media types.
type registryClient struct {
	opts  RegistryOptions
	retry retryPolicy
	// configure finds the servers of a registry: its mirrors and itself.
	configure func(options config.HostOptions) docker.RegistryHosts

	// mu guards hosts, which keeps connections and tokens of each registry for the whole build.
	mu    sync.Mutex
	hosts map[string][]docker.RegistryHost
}

// newRegistryClient makes a client for the time of ctx.
func newRegistryClient(ctx context.Context, opts RegistryOptions, retry retryPolicy) *registryClient {
	if opts.Keychain == nil {
		opts.Keychain = authn.DefaultKeychain
	}
	if opts.StallTimeout <= 0 {
		opts.StallTimeout = defaultStallTimeout
	}
	keychain, names := opts.Keychain, newNameServers(opts.NameServers)
	return &registryClient{
		opts: opts, retry: retry, hosts: make(map[string][]docker.RegistryHost),
		configure: func(options config.HostOptions) docker.RegistryHosts {
			options.Credentials = func(host string) (string, string, error) { return credentials(ctx, keychain, host) }
			options.UpdateClient = func(c *http.Client) error {
				if _, done := c.Transport.(listener); done {
					return nil // a host of hosts.toml has a copy of the registry's client
				}
				if len(opts.NameServers) > 0 {
					if err := names.update(c); err != nil {
						return err
					}
				}
				if retry.asked != nil && c.Transport != nil {
					c.Transport = listener{c.Transport, retry.asked}
				}
				return nil
			}
			return config.ConfigureHosts(ctx, options)
		},
	}
}

// RegistryHosts says where registries are and how they are spoken to, as builds do, for the time of ctx.
func RegistryHosts(ctx context.Context, opts RegistryOptions) docker.RegistryHosts {
	return newRegistryClient(ctx, opts, defaultRetryPolicy()).registryHosts
}

// image is the source of one normalised reference.
func (c *registryClient) image(ref string) source {
	return &registryImage{client: c, ref: ref}
}

// registryHosts is a docker.RegistryHosts.
func (c *registryClient) registryHosts(host string) ([]docker.RegistryHost, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if known, ok := c.hosts[host]; ok {
		return known, nil
	}
	var options config.HostOptions
	if c.opts.HostsDir != "" {
		options.HostDir = config.HostDirFromRoot(c.opts.HostsDir)
	}
	switch {
	case matchHost(c.opts.PlainHTTP, host):
		options.DefaultScheme = "http"
	case matchHost(c.opts.InsecureSkipVerify, host):
		options.DefaultScheme = "https"
		options.DefaultTLS = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // asked for by name
	}
	hosts, err := c.configure(options)(host)
	if err != nil {
		return nil, fmt.Errorf("configure registry %s: %w", host, err)
	}
	c.hosts[host] = hosts
	return hosts, nil
}

func matchHost(list []string, host string) bool {
	for _, h := range list {
		if h == "*" || h == host {
			return true
		}
	}
	return false
}

// credentials for one host. The docker configuration files Docker Hub under another name than its API server's.
func credentials(ctx context.Context, keychain authn.Keychain, host string) (username, secret string, err error) {
	if host == "registry-1.docker.io" || host == "docker.io" {
		host = "index.docker.io"
	}
	auth, err := authn.Resolve(ctx, keychain, registryName(host))
	if err != nil {
		return "", "", fmt.Errorf("look up credentials for %s: %w", host, err)
	}
	cfg, err := authn.Authorization(ctx, auth)
	if err != nil {
		return "", "", fmt.Errorf("look up credentials for %s: %w", host, err)
	}
	if cfg.IdentityToken != "" {
		return "", cfg.IdentityToken, nil
	}
	if cfg.RegistryToken != "" && cfg.Username == "" {
		return "", "", fmt.Errorf("credentials for %s are a registry token, which is not supported; use a user name and password or a credential helper: %w",
			host, errdefs.ErrNotImplemented)
	}
	return cfg.Username, cfg.Password, nil
}

// registryName is a host as the keychain wants it.
type registryName string

func (r registryName) String() string { return string(r) }

// RegistryStr is the host, the only thing that credentials depend on here.
func (r registryName) RegistryStr() string { return string(r) }

// registryImage is one reference in a registry.
type registryImage struct {
	client *registryClient
	ref    string
}

var _ source = (*registryImage)(nil)

func (r *registryImage) resolver() remotes.Resolver {
	return docker.NewResolver(docker.ResolverOptions{Hosts: r.client.registryHosts})
}

func (r *registryImage) root(ctx context.Context) (desc ocispec.Descriptor, err error) {
	err = r.client.retry.do(ctx, func() error {
		_, desc, err = r.resolver().Resolve(ctx, r.ref)
		return err
	})
	if err != nil {
		return desc, explainRegistryError(err)
	}
	return desc, nil
}

func (r *registryImage) open(ctx context.Context, desc ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	// The URLs of a descriptor are left out: they are the manifest author's, and following them would let an image
	// make the builder ask servers that its user never named.
	desc.URLs = nil
	fetcher, err := r.resolver().Fetcher(ctx, r.ref)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	body, err := fetcher.Fetch(ctx, desc)
	if err != nil {
		cancel(nil)
		return nil, explainRegistryError(err)
	}
	if offset > 0 {
		seeker, ok := body.(io.Seeker)
		if !ok {
			err = fmt.Errorf("resume blob: %w", errdefs.ErrNotImplemented)
		} else {
			_, err = seeker.Seek(offset, io.SeekStart)
		}
		if err != nil {
			cancel(nil)
			return nil, errors.Join(err, body.Close())
		}
	}
	timeout := r.client.opts.StallTimeout
	return &stallReader{
		body: body, timeout: timeout, cancel: cancel,
		timer: time.AfterFunc(timeout, func() { cancel(errStalled) }),
		cause: func() error { return context.Cause(ctx) },
	}, nil
}

// stallReader ends a connection that gives no byte for too long.
type stallReader struct {
	body    io.ReadCloser
	timeout time.Duration
	timer   *time.Timer
	cancel  context.CancelCauseFunc
	cause   func() error
}

func (s *stallReader) Read(p []byte) (int, error) {
	s.timer.Reset(s.timeout)
	n, err := s.body.Read(p)
	s.timer.Stop() // the consumer may take its time
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(s.cause(), errStalled) {
		err = errStalled
	}
	return n, err
}

// Close ends the connection.
func (s *stallReader) Close() error {
	s.timer.Stop()
	err := s.body.Close()
	s.cancel(nil)
	return err
}

// explainRegistryError adds what a user can do about the usual refusals, and the class of those that credentials would
// change: errdefs.ErrUnauthenticated or errdefs.ErrPermissionDenied.
func explainRegistryError(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	const logIn = "\"berth build\" uses the credentials of \"docker login\" or of a config.json in the directory DOCKER_CONFIG; " +
		"an image snapshot uses those of the secret that it names for this registry (--registry-secret), and no others"
	switch {
	case errors.As(err, &status) && status.StatusCode == http.StatusForbidden:
		return fmt.Errorf("%w (%s): %w", err, logIn, errdefs.ErrPermissionDenied)
	case errors.Is(err, docker.ErrInvalidAuthorization), errors.As(err, &status) && status.StatusCode == http.StatusUnauthorized:
		return fmt.Errorf("%w (%s): %w", err, logIn, errdefs.ErrUnauthenticated)
	case errors.As(err, new(*tls.CertificateVerificationError)):
		return fmt.Errorf("%w (--insecure-skip-verify HOST accepts any certificate)", err)
	case strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return fmt.Errorf("%w (--plain-http HOST speaks HTTP)", err)
	}
	return err
}

// transient says that an error may be gone at the next attempt.
func transient(err error) bool {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) {
		switch status.StatusCode {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	if errors.Is(err, errStalled) {
		return true
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	for _, target := range []error{io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EPIPE, os.ErrDeadlineExceeded} {
		if errors.Is(err, target) {
			return true
		}
	}
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.IsTemporary || dns.IsTimeout
	}
	var netErr net.Error
	return errors.As(err, &netErr) && netErr.Timeout()
}
