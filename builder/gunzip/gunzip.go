// Package gunzip decompresses gzip streams with igzip of ISA-L if it is installed, and in Go if it is not. igzip needs
// about half the processor time.
package gunzip

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

const (
	// pipeBytes is the largest pipe that needs no privilege (/proc/sys/fs/pipe-max-size). With the usual 64 KiB the
	// two processes wake each other far more often.
	pipeBytes = 1 << 20
	// copyBytes are written to the pipe at once.
	copyBytes = 256 << 10
	// stderrBytes of a failed igzip go into the error.
	stderrBytes = 1 << 10
)

// Program is the external decompressor that NewReader uses: a path, or "" for none.
func Program() string {
	path, err := exec.LookPath("igzip")
	if err != nil {
		return ""
	}
	return path
}

// NewReader decompresses the gzip members in src. With program empty it does that in this process. Damaged input is an
// error of Read; bytes that follow the last member are ignored, as gzip(1) and igzip do, so that a layer does not
// unpack on one machine and fail on another. Close ends the work and waits for its end, whatever is left of src; src
// must give an error when ctx ends.
func NewReader(ctx context.Context, program string, src io.Reader) (io.ReadCloser, error) {
	if program == "" {
		in := bufio.NewReader(src)
		r, err := gzip.NewReader(in)
		if err != nil {
			return nil, fmt.Errorf("decompress gzip: %w", err)
		}
		r.Multistream(false)
		return &inProcess{in: in, gzip: r}, nil
	}
	return start(ctx, program, src)
}

// inProcess is the decompressor in Go, member by member.
type inProcess struct {
	in   *bufio.Reader
	gzip *gzip.Reader
}

func (r *inProcess) Read(b []byte) (int, error) {
	for {
		n, err := r.gzip.Read(b)
		if errors.Is(err, io.EOF) {
			err = r.next()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			err = fmt.Errorf("decompress gzip: %w", err)
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// next goes to the following member, if there is one.
func (r *inProcess) next() error {
	magic, err := r.in.Peek(2)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(magic, []byte{0x1f, 0x8b}) { // RFC 1952
		return io.EOF
	}
	if err := r.gzip.Reset(r.in); err != nil {
		return err
	}
	r.gzip.Multistream(false)
	return nil
}

// Close has nothing to do; what was wrong Read has said.
func (r *inProcess) Close() error { return nil }

// process is a running igzip.
type process struct {
	cmd    *exec.Cmd
	out    *os.File
	in     *os.File
	cancel context.CancelFunc
	stderr *limitedBuffer
	// fed gets the result of feeding src into the program.
	fed chan error
	// once guards the wait for the program; err is how it went.
	once sync.Once
	err  error
}

func start(ctx context.Context, program string, src io.Reader) (_ *process, err error) {
	inR, inW, err := pipe()
	if err != nil {
		return nil, err
	}
	outR, outW, err := pipe()
	if err != nil {
		return nil, errors.Join(err, inR.Close(), inW.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &process{
		cmd: exec.CommandContext(ctx, program, "-d", "-c"), out: outR, in: inW, cancel: cancel,
		stderr: &limitedBuffer{}, fed: make(chan error, 1),
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = inR, outW, p.stderr
	err = p.cmd.Start()
	// The program has its own copies of its ends.
	err = errors.Join(err, inR.Close(), outW.Close())
	if err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("start %s: %w", program, err), inW.Close(), outR.Close())
	}
	go func() { p.fed <- p.feed(src) }()
	return p, nil
}

func pipe() (r, w *os.File, err error) {
	r, w, err = os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("make pipe: %w", err)
	}
	conn, err := w.SyscallConn() // not Fd, which would make the pipe block
	if err == nil {
		err = conn.Control(func(fd uintptr) {
			// Smaller pipes work too, when the user's share of pipe memory is used up.
			_, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, pipeBytes) // an optimisation
		})
	}
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("make pipe: %w", err), r.Close(), w.Close())
	}
	return r, w, nil
}

func (p *process) feed(src io.Reader) error {
	// The bare Writer keeps io.CopyBuffer from choosing its own, smaller buffer.
	_, err := io.CopyBuffer(struct{ io.Writer }{p.in}, struct{ io.Reader }{src}, make([]byte, copyBytes))
	if errors.Is(err, unix.EPIPE) {
		err = nil // the program has seen enough, or failed and says so itself
	}
	return errors.Join(err, p.in.Close())
}

// Read gives decompressed bytes.
func (p *process) Read(b []byte) (int, error) {
	n, err := p.out.Read(b)
	if errors.Is(err, io.EOF) {
		if waitErr := p.wait(); waitErr != nil {
			return n, waitErr
		}
	}
	return n, err
}

// wait collects the program and the feeding goroutine.
func (p *process) wait() error {
	p.once.Do(func() {
		err := p.cmd.Wait()
		feedErr := <-p.fed
		switch {
		case feedErr != nil: // the program's complaint about a short stream only follows from this
			p.err = fmt.Errorf("decompress gzip: %w", feedErr)
		case err != nil:
			p.err = fmt.Errorf("decompress gzip: %s: %w: %s", p.cmd.Path, err, strings.TrimSpace(p.stderr.String()))
		}
	})
	return p.err
}

// Close stops the program, if it still runs, and waits for the feeding goroutine, which ends with the next byte or the
// end of src.
func (p *process) Close() error {
	p.cancel()
	err := p.out.Close()
	_ = p.wait() // killed on purpose, or Read has told all before
	return err
}

// limitedBuffer keeps the beginning of what is written.
type limitedBuffer struct{ bytes.Buffer }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), max(0, stderrBytes-l.Len()))])
	return len(p), nil
}
