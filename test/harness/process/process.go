// Package process runs the daemons that tests are about as child processes: with their output in a file, stopped in
// the polite or the rude way, and never left behind.
package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Spec of a process to start.
type Spec struct {
	// Name is used in errors and is the name of the log file.
	Name string
	// Args starts with the path of the program.
	Args []string
	// Env is added to this process's environment; later values win.
	Env []string
	// Dir is the working directory; empty for LogDir.
	Dir string
	// LogDir gets NAME.log, to which every start appends.
	LogDir string
}

// Process is a started child. All methods may be used from several goroutines.
type Process struct {
	spec Spec
	cmd  *exec.Cmd
	// done is closed once the process has ended and waitErr is set.
	done    chan struct{}
	waitErr error
}

// Start runs the process. It lives until Stop, Kill or its own end; the end of ctx does not end it, but the death of
// this process does (parent death signal), so that a killed test leaves no daemon behind.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	logFile, err := os.OpenFile(spec.logPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", spec.Name, err)
	}
	defer logFile.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), spec.Args[0], spec.Args[1:]...)
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.Env = append(os.Environ(), spec.Env...)
	cmd.Dir = spec.Dir
	if cmd.Dir == "" {
		cmd.Dir = spec.LogDir
	}
	// Its own process group: an interrupt typed at the terminal goes to us alone, and we stop the daemons in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p := &Process{spec: spec, cmd: cmd, done: make(chan struct{})}
	if err := startWithDeathSignal(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	go func() {
		p.waitErr = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

func (s Spec) logPath() string { return filepath.Join(s.LogDir, s.Name+".log") }

// PID of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended, for whatever reason.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is nil while the process runs, and says with its last output how it ended once it has.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s has ended (%s):\n%s", p.spec.Name, p.cmd.ProcessState, p.LogTail(20))
	default:
		return nil
	}
}

// Stop asks the process to end with SIGTERM, waits up to grace and then kills it. A process that had to be killed or
// ended with an error is an error; one that had ended before is none.
func (p *Process) Stop(grace time.Duration) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := p.Signal(unix.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-p.done:
		var exit *exec.ExitError
		if errors.As(p.waitErr, &exit) && exit.Sys().(syscall.WaitStatus).Signal() != unix.SIGTERM { //nolint:errcheck,forcetypeassert // Linux
			return fmt.Errorf("stop %s: %w\n%s", p.spec.Name, p.waitErr, p.LogTail(20))
		}
		return nil
	case <-timer.C:
		return errors.Join(fmt.Errorf("stop %s: still running %v after SIGTERM", p.spec.Name, grace), p.Kill())
	}
}

// Kill ends the process with SIGKILL and waits for that.
func (p *Process) Kill() error {
	if err := p.Signal(unix.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Signal is sent to the process; one that has ended is no error.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to %s: %w", sig, p.spec.Name, err)
	}
	return nil
}

// LogPath is the file with everything the process has written.
func (p *Process) LogPath() string { return p.spec.logPath() }

// LogTail is the last lines of the log, at most n.
func (p *Process) LogTail(n int) string {
	b, err := os.ReadFile(p.LogPath())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
