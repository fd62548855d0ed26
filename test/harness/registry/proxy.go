package registry

import (
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Fault is what the proxy does to requests for one blob, or for all.
type Fault int

// Faults of the proxy.
const (
	// NoFault answers as the registry does.
	NoFault Fault = iota
	// Off breaks the connection, as a registry that is down.
	Off
	// Corrupt flips a bit in the first byte of a blob and leaves its length.
	Corrupt
	// Truncate breaks the connection in the middle of a blob.
	Truncate
)

// Proxy counts what passes through it. All methods are safe for concurrent use.
type Proxy struct {
	server *httptest.Server
	caFile string

	mu sync.Mutex
	// fault of all requests; blobFaults of single blobs.
	fault      Fault
	blobFaults map[digest.Digest]Fault
	// held requests for blobs wait until the channel is closed: for those in only, or all if that is empty.
	hold chan struct{}
	only map[digest.Digest]bool
	// user and password that requests have to bring; empty for none.
	user, password string
	blobs          map[digest.Digest]Fetches
	total          int
}

// Fetches of one blob.
type Fetches struct {
	// Requests by GET, and the Bytes of bodies that were sent in answer.
	Requests int
	Bytes    int64
}

// blobPath is of the distribution API.
var blobPath = regexp.MustCompile(`^/v2/.+/blobs/(sha256:[0-9a-f]{64})$`)

func newProxy(backend http.RoundTripper, cfg Config) (*Proxy, error) {
	p := &Proxy{blobFaults: map[digest.Digest]Fault{}, blobs: map[digest.Digest]Fetches{}}
	reverse := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "registry"})
	reverse.Transport = backend
	reverse.ModifyResponse = p.alter
	// Broken connections are what some tests are about; the log of them is noise.
	reverse.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusBadGateway)
	}
	p.server = httptest.NewUnstartedServer(p.guard(reverse))
	if !cfg.TLS {
		p.server.Start()
		return p, nil
	}
	p.server.StartTLS()
	p.caFile = filepath.Join(cfg.Dir, "ca.pem")
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.server.Certificate().Raw})
	if err := os.WriteFile(p.caFile, cert, 0o600); err != nil {
		p.server.Close()
		return nil, fmt.Errorf("write certificate: %w", err)
	}
	return p, nil
}

func (p *Proxy) close() {
	p.Resume()
	p.server.CloseClientConnections()
	p.server.Close()
}

// guard applies the faults that need no answer of the registry.
func (p *Proxy) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d, isBlob := blobOf(r)
		p.mu.Lock()
		fault, hold := p.faultOf(d), p.hold
		if len(p.only) > 0 && !p.only[d] {
			hold = nil
		}
		p.total++
		wantUser, wantPassword := p.user, p.password
		p.mu.Unlock()
		if user, password, _ := r.BasicAuth(); user != wantUser || password != wantPassword {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if isBlob && hold != nil {
			select {
			case <-hold:
			case <-r.Context().Done():
			}
		}
		if fault == Off {
			panic(http.ErrAbortHandler) // the way to break a connection in net/http
		}
		next.ServeHTTP(w, r)
	})
}

func blobOf(r *http.Request) (digest.Digest, bool) {
	if r.Method != http.MethodGet {
		return "", false
	}
	m := blobPath.FindStringSubmatch(r.URL.Path)
	if m == nil {
		return "", false
	}
	return digest.Digest(m[1]), true
}

// faultOf needs mu.
func (p *Proxy) faultOf(d digest.Digest) Fault {
	if f, ok := p.blobFaults[d]; ok {
		return f
	}
	return p.fault
}

// alter counts the body of a blob and spoils it if so told.
func (p *Proxy) alter(resp *http.Response) error {
	d, isBlob := blobOf(resp.Request)
	if !isBlob || resp.StatusCode >= http.StatusMultipleChoices {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f := p.blobs[d]
	f.Requests++
	p.blobs[d] = f
	resp.Body = &countedBody{ReadCloser: resp.Body, proxy: p, blob: d, fault: p.faultOf(d), size: resp.ContentLength}
	return nil
}

// countedBody adds what is read to the blob's bytes.
type countedBody struct {
	io.ReadCloser
	proxy      *Proxy
	blob       digest.Digest
	fault      Fault
	read, size int64
}

func (b *countedBody) Read(buf []byte) (int, error) {
	if b.fault == Truncate && b.read >= b.size/2 {
		return 0, io.ErrUnexpectedEOF
	}
	n, err := b.ReadCloser.Read(buf)
	if b.fault == Corrupt && b.read == 0 && n > 0 {
		buf[0] ^= 1
	}
	b.read += int64(n)
	b.proxy.mu.Lock()
	defer b.proxy.mu.Unlock()
	f := b.proxy.blobs[b.blob]
	f.Bytes += int64(n)
	b.proxy.blobs[b.blob] = f
	return n, err
}
