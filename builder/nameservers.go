package builder

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
)

// nameServerTimeout is for each name server, as in resolv.conf(5).
const nameServerTimeout = 5 * time.Second

// nameServers find registries by asking name servers of their own, not the machine's. Names in /etc/hosts come first
// and the search list of resolv.conf(5) holds, as ever.
type nameServers struct {
	addresses []netip.AddrPort
	resolvers []*net.Resolver
	// good is the server that answered last, to be asked first: a dead one is waited for once, not for each connection.
	good atomic.Uint32
}

func newNameServers(addresses []netip.AddrPort) *nameServers {
	n := &nameServers{addresses: addresses}
	for _, a := range addresses {
		n.resolvers = append(n.resolvers, &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, a.String())
		}})
	}
	return n
}

// lookup asks one server after another until one answers; that it knows no such name is an answer, class
// errdefs.ErrNotFound.
func (n *nameServers) lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	var failed []error
	first := int(n.good.Load())
	for i := range n.resolvers {
		turn := (first + i) % len(n.resolvers)
		server := n.addresses[turn].Addr()
		addresses, err := n.ask(ctx, n.resolvers[turn], host)
		if err == nil {
			n.good.Store(uint32(turn))
			return addresses, nil
		}
		var dns *net.DNSError
		if errors.As(err, &dns) {
			dns.Server = n.addresses[turn].String() // not the machine's, which the resolver believes it has asked
		}
		if dns != nil && dns.IsNotFound {
			n.good.Store(uint32(turn))
			return nil, fmt.Errorf("name server %s knows no host %s: %w: %w", server, host, err, errdefs.ErrNotFound)
		}
		failed = append(failed, fmt.Errorf("find host %s by name server %s: %w", host, server, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(failed...)
}

func (n *nameServers) ask(ctx context.Context, r *net.Resolver, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, nameServerTimeout)
	defer cancel()
	return r.LookupNetIP(ctx, "ip", host)
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// through dials hosts by name, one of their addresses after another.
func (n *nameServers) through(dial dialFunc) dialFunc {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		if _, err := netip.ParseAddr(host); err == nil {
			return dial(ctx, network, address)
		}
		addresses, err := n.lookup(ctx, host)
		if err != nil {
			return nil, err
		}
		var failed []error
		for _, a := range addresses {
			conn, err := dial(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
			if err == nil {
				return conn, nil
			}
			failed = append(failed, err)
		}
		return nil, errors.Join(failed...)
	}
}

// update makes a registry's client find hosts so.
func (n *nameServers) update(c *http.Client) error {
	t, ok := c.Transport.(*http.Transport)
	if !ok {
		return fmt.Errorf("use name servers with %T: %w", c.Transport, errdefs.ErrNotImplemented)
	}
	dial := t.DialContext
	if dial == nil {
		dial = new(net.Dialer).DialContext
	}
	t.DialContext = n.through(dial)
	return nil
}
