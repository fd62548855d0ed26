package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"berth.dev/berth/test/harness/vm/wire"
)

// agentConn is a connection of the agent that waits for a request.
type agentConn struct {
	net.Conn
	r     *bufio.Reader
	hello wire.Hello
}

// helloTimeout is for a guest that is very busy.
const helloTimeout = 30 * time.Second

func (g *Guest) acceptAgents() {
	for {
		conn, err := g.listener.Accept()
		if err != nil {
			return // closed
		}
		c := agentConn{Conn: conn, r: bufio.NewReader(conn)}
		err = errors.Join(conn.SetDeadline(time.Now().Add(helloTimeout)), wire.Receive(c.r, &c.hello), conn.SetDeadline(time.Time{}))
		if err != nil {
			_ = conn.Close() // whoever it was
			continue
		}
		for sent := false; !sent; {
			select {
			case g.waiting <- c:
				sent = true
			case old := <-g.waiting:
				_ = old.Close() // the agent has one at a time, so the older one is dead
			}
		}
	}
}

// request asks the agent. The connection is open afterwards if the answer says that something was done.
func (g *Guest) request(ctx context.Context, req wire.Request) (agentConn, wire.Answer, error) {
	var (
		c agentConn
		a wire.Answer
	)
	select {
	case c = <-g.waiting:
	case <-g.proc.Done():
		return c, a, g.proc.Err()
	case <-ctx.Done():
		return c, a, fmt.Errorf("wait for the guest's agent: %w", ctx.Err())
	}
	// The end of the connection ends what the agent does.
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	err := errors.Join(wire.Send(c, req), wire.Receive(c.r, &a))
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	if err != nil {
		return c, a, errors.Join(ctx.Err(), err, c.Close())
	}
	return c, a, nil
}

// Run a program in the guest and return what it wrote; its complaint is in the error if it did not end with status 0.
func (g *Guest) Run(ctx context.Context, args ...string) (string, error) {
	return g.run(ctx, wire.Request{Args: args})
}

// Shell runs a script with sh -eu.
func (g *Guest) Shell(ctx context.Context, script string) (string, error) {
	return g.Run(ctx, "sh", "-euc", script)
}

// WriteFile makes a file of the guest and the directories above it.
func (g *Guest) WriteFile(ctx context.Context, path, text string) error {
	_, err := g.run(ctx, wire.Request{Args: []string{"sh", "-euc", `mkdir -p "${1%/*}"; cat > "$1"`, "sh", path}, Stdin: []byte(text)})
	return err
}

// runTimeout is many times what the slowest program of a test needs: one that hangs shall be seen, and the guest asked
// why.
const runTimeout = 5 * time.Minute

func (g *Guest) run(ctx context.Context, req wire.Request) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, runTimeout)
	defer cancel()
	c, a, err := g.request(ctx, req)
	if err != nil {
		return "", fmt.Errorf("run %s in guest: %w", strings.Join(req.Args, " "), err)
	}
	if err := c.Close(); err != nil {
		return "", err
	}
	if a.Status != 0 {
		return string(a.Stdout), fmt.Errorf("run %s in guest: status %d: %s", strings.Join(req.Args, " "), a.Status,
			strings.TrimSpace(string(a.Stderr)))
	}
	return string(a.Stdout), nil
}

// Begin starts a program that goes on, with its output in a file of the guest, and returns its process ID.
func (g *Guest) Begin(ctx context.Context, log string, args ...string) (int, error) {
	c, a, err := g.request(ctx, wire.Request{Args: args, Log: log})
	if err != nil {
		return 0, fmt.Errorf("begin %s in guest: %w", strings.Join(args, " "), err)
	}
	return a.PID, c.Close()
}

// Dial a unix socket of the guest.
func (g *Guest) Dial(ctx context.Context, socket string) (net.Conn, error) {
	c, _, err := g.request(ctx, wire.Request{Dial: socket})
	if err != nil {
		return nil, fmt.Errorf("dial %s of guest: %w", socket, err)
	}
	return buffered{c.Conn, c.r}, nil
}

// buffered is a connection of which something has been read ahead.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

// Read what was read ahead first.
func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

func tail(file string, n int) string {
	b, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\r\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
