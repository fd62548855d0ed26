// Command agent runs in a test's virtual machine and does there what the test says. It is no part of the product.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"berth.dev/berth/test/harness/vm/wire"
)

func main() {
	host, hello, err := settings()
	if err == nil {
		err = os.Setenv("PATH", wire.Programs+":/usr/sbin:/usr/bin:/sbin:/bin")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
	// One connection waits for a request at any time.
	for ctx := context.Background(); ; {
		if err := serve(ctx, host, hello); err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
			time.Sleep(redial)
		}
	}
}

// settings are where the test listens, from the kernel's command line, and what to tell it.
func settings() (host string, hello wire.Hello, err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", hello, err
	}
	hello.BootID = strings.TrimSpace(string(boot))
	line, err := os.ReadFile("/proc/cmdline")
	for _, word := range strings.Fields(string(line)) {
		if value, ok := strings.CutPrefix(word, wire.HostParameter+"="); ok {
			return value, hello, err
		}
	}
	return "", hello, errors.Join(err, fmt.Errorf("the kernel's command line has no %s", wire.HostParameter))
}

// redial is the pause before the next attempt to reach a test that cannot be reached, such as while the network comes
// up.
const redial = 200 * time.Millisecond

// serve waits for one request and leaves it to a goroutine.
func serve(ctx context.Context, host string, hello wire.Hello) error {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", host)
	if err != nil {
		return err
	}
	r := bufio.NewReader(conn)
	var req wire.Request
	if err := errors.Join(wire.Send(conn, hello), wire.Receive(r, &req)); err != nil {
		return errors.Join(err, conn.Close())
	}
	go func() {
		defer func() { _ = conn.Close() }() // whoever is at the other end knows by now
		if err := answer(ctx, conn, r, req); err != nil {
			fmt.Fprintln(os.Stderr, "agent:", err)
		}
	}()
	return nil
}

func answer(ctx context.Context, conn net.Conn, r *bufio.Reader, req wire.Request) error {
	switch {
	case req.Dial != "":
		return join(ctx, conn, r, req.Dial)
	case len(req.Args) == 0:
		return wire.Send(conn, wire.Answer{Error: "nothing to do"})
	case req.Log != "":
		return wire.Send(conn, start(ctx, req))
	}
	// The program ends with the connection: the test has given up on it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = r.ReadByte() // nothing more is sent, so this is the end
		cancel()
	}()
	return wire.Send(conn, run(ctx, req))
}

func run(ctx context.Context, req wire.Request) wire.Answer {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, req.Args[0], req.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(req.Stdin), &stdout, &stderr
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	a := wire.Answer{Stdout: stdout.Bytes(), Stderr: stderr.Bytes()}
	if cmd.ProcessState != nil {
		a.Status = cmd.ProcessState.ExitCode()
	} else if err != nil {
		a.Error = err.Error()
	}
	return a
}

// start a program that goes on when the connection ends.
func start(ctx context.Context, req wire.Request) wire.Answer {
	log, err := os.OpenFile(req.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return wire.Answer{Error: err.Error()}
	}
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), req.Args[0], req.Args[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return wire.Answer{Error: err.Error()}
	}
	go func() { _ = cmd.Wait() }() // so that it does not stay as a zombie
	return wire.Answer{PID: cmd.Process.Pid}
}

// join the connection with a unix socket until both ways have ended.
func join(ctx context.Context, conn net.Conn, r io.Reader, socket string) error {
	local, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return wire.Send(conn, wire.Answer{Error: err.Error()})
	}
	defer func() { _ = local.Close() }()
	if err := wire.Send(conn, wire.Answer{}); err != nil {
		return err
	}
	ended := make(chan struct{}, 2)
	go func() { _, _ = io.Copy(local, r); ended <- struct{}{} }()
	go func() { _, _ = io.Copy(conn, local); ended <- struct{}{} }()
	<-ended // with gRPC, the end of one way is the end
	return nil
}
