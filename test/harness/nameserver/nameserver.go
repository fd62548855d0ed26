// Package nameserver is a small DNS server of a test's own: it knows the names that it is told and no others.
package nameserver

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/dns/dnsmessage"
)

// ttl of answers in seconds; clients of tests keep nothing anyway.
const ttl = 60

// Server answers over UDP. It is safe for concurrent use.
type Server struct {
	conn *net.UDPConn
	done chan struct{}
	err  error

	mu    sync.Mutex
	names map[string]netip.Addr
	asked []string
}

// Start serves the names, written without a dot at the end, on an address with a port, which may be 0. The caller
// closes it.
func Start(address netip.AddrPort, names map[string]netip.Addr) (*Server, error) {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(address))
	if err != nil {
		return nil, err
	}
	s := &Server{conn: conn, done: make(chan struct{}), names: names}
	go s.serve()
	return s, nil
}

// Address that it serves on.
func (s *Server) Address() netip.AddrPort {
	return netip.MustParseAddrPort(s.conn.LocalAddr().String())
}

// Asked are the names that were asked for, sorted, each once.
func (s *Server) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(s.asked)))
}

// Close ends it and tells what went wrong.
func (s *Server) Close() error {
	err := s.conn.Close()
	<-s.done
	return errors.Join(err, s.err)
}

func (s *Server) serve() {
	defer close(s.done)
	buf := make([]byte, 512) // the most over UDP, RFC 1035, 2.3.4
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				s.err = err
			}
			return
		}
		answer, err := s.answer(buf[:n])
		if err == nil {
			_, err = s.conn.WriteToUDPAddrPort(answer, from)
		}
		if err != nil {
			s.err = err
		}
	}
}

func (s *Server) answer(query []byte) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil, err
	}
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	for _, q := range m.Questions {
		name := strings.TrimSuffix(q.Name.String(), ".")
		s.mu.Lock()
		s.asked = append(s.asked, name)
		address, known := s.names[name]
		s.mu.Unlock()
		switch {
		case !known:
			m.RCode = dnsmessage.RCodeNameError
		case q.Type == dnsmessage.TypeA && address.Is4():
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: ttl},
				Body:   &dnsmessage.AResource{A: address.As4()},
			})
		}
	}
	return m.Pack()
}
