package registry

import (
	"maps"
	"net/url"

	"github.com/opencontainers/go-digest"
)

// Host is host:port of the proxy, the first part of every image reference.
func (p *Proxy) Host() string {
	u, err := url.Parse(p.server.URL)
	if err != nil {
		return p.server.Listener.Addr().String()
	}
	return u.Host
}

// CAFile is the certificate to trust in PEM form, empty without TLS.
func (p *Proxy) CAFile() string { return p.caFile }

// PlainHTTP says that the proxy speaks HTTP without TLS.
func (p *Proxy) PlainHTTP() bool { return p.caFile == "" }

// SetFault applies to all requests that have no fault of their own.
func (p *Proxy) SetFault(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault = f
}

// SetBlobFault applies to GETs of one blob.
func (p *Proxy) SetBlobFault(d digest.Digest, f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.blobFaults[d] = f
}

// Hold makes GETs of the blobs wait until Resume, or those of all blobs if none is given: a slow registry without a
// clock.
func (p *Proxy) Hold(only ...digest.Digest) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.only = make(map[digest.Digest]bool)
	for _, d := range only {
		p.only[d] = true
	}
	if p.hold == nil {
		p.hold = make(chan struct{})
	}
}

// Resume ends Hold.
func (p *Proxy) Resume() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.hold != nil {
		close(p.hold)
		p.hold = nil
	}
}

// RequireLogin refuses requests without these credentials from now on.
func (p *Proxy) RequireLogin(user, password string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.user, p.password = user, password
}

// Reset forgets what has been counted.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.blobs, p.total = map[digest.Digest]Fetches{}, 0
}

// Blobs are the fetches of each blob since the last Reset, configs included.
func (p *Proxy) Blobs() map[digest.Digest]Fetches {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.blobs)
}

// Requests of any kind since the last Reset.
func (p *Proxy) Requests() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.total
}

// Bytes of all blobs among those given, or of all blobs if none is given.
func (p *Proxy) Bytes(of ...digest.Digest) int64 {
	blobs := p.Blobs()
	var sum int64
	if len(of) == 0 {
		for _, f := range blobs {
			sum += f.Bytes
		}
	}
	for _, d := range of {
		sum += blobs[d].Bytes
	}
	return sum
}
