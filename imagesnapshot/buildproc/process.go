package buildproc

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"berth.dev/berth/builder"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle"
)

// outcome is what a build process reports.
type outcome struct {
	progress func(int)
	result   *builder.Result
	contents *builder.Contents
	failed   *line

	total   int64
	fetched map[int]int64
}

// line is one line of "berth build --json".
type line struct {
	builder.Event
	Result      *builder.Result   `json:"result"`
	Contents    *builder.Contents `json:"contents"`
	Error       string            `json:"error"`
	Code        string            `json:"code"`
	NeededBytes int64             `json:"needed_bytes"`
}

const (
	maxLineBytes = 16 << 20
	// fetchedPart of the progress is fetching and unpacking, the rest is metadata.
	fetchedPart = 95
)

// take reads one line.
func (o *outcome) take(b []byte) error {
	var l line
	if err := json.Unmarshal(b, &l); err != nil {
		return fmt.Errorf("read output of the build process: %w", err)
	}
	switch l.Kind { //nolint:exhaustive // the others say nothing that is kept
	case "result":
		o.result = l.Result
	case "contents":
		o.contents = l.Contents
	case "error":
		o.failed = &l
	case builder.EventPlanned:
		if l.Plan != nil {
			o.total, o.fetched = l.Plan.BlobBytes, make(map[int]int64)
		}
	case builder.EventLayerProgress, builder.EventLayerDone:
		if l.Layer != nil && o.fetched != nil {
			o.fetched[l.Layer.Number] = l.Layer.FetchedBytes
			o.report()
		}
	case builder.EventFinishing:
		if o.progress != nil {
			o.progress(fetchedPart)
		}
	}
	return nil
}

func (o *outcome) report() {
	if o.progress == nil || o.total <= 0 {
		return
	}
	var sum int64
	for _, n := range o.fetched {
		sum += n
	}
	o.progress(int(min(fetchedPart, fetchedPart*sum/o.total)))
}

// err is the error that the process reported, in its class.
func (l *line) err(secrets []string) error {
	text := imagesnapshot.Redact(l.Error, secrets...)
	err := errors.New(text)
	for c := codes.OK; c <= codes.Unauthenticated; c++ {
		if c.String() == l.Code && c != codes.OK && c != codes.Unknown {
			err = errgrpc.ToNative(status.Error(c, text))
		}
	}
	if l.NeededBytes > 0 {
		return &lifecycle.TooSmallError{NeededBytes: l.NeededBytes, Err: err}
	}
	return err
}

// run starts the program and follows it to its end. When it returns, nothing of it runs any more.
func (b *Builder) run(ctx context.Context, req lifecycle.PlanRequest, more []string, out *outcome) (err error) {
	config, secrets, err := b.credentials(ctx, req.Owner, req.Spec.Registries)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(b.cfg.TempDir, tempPrefix)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600); err != nil {
		return err
	}
	group, err := newGroup(b.cfg, filepath.Base(dir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, group.remove()) }()

	// The context is obeyed by killing the whole group, which exec's own way would not.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), b.cfg.Command[0], b.arguments(req.Spec, more)...)
	cmd.Env = environment(dir, b.cfg.MemoryBytes)
	cmd.Dir = dir
	cmd.SysProcAttr = group.attributes()
	var tail tailBuffer
	cmd.Stderr = &tail
	runErr := follow(ctx, cmd, group, out.take)
	switch {
	case ctx.Err() != nil:
		return errors.Join(ctx.Err(), context.Cause(ctx))
	case group.outOfMemory() || runErr != nil && out.failed == nil && tail.outOfMemory():
		return fmt.Errorf("the build needed more than the %d MiB of memory that it is allowed, raise build_memory_mib: %w", b.cfg.MemoryBytes>>20, errdefs.ErrFailedPrecondition)
	case out.failed != nil:
		return out.failed.err(secrets)
	case runErr != nil:
		return fmt.Errorf("build process: %w: %s", runErr, imagesnapshot.Redact(tail.String(), secrets...))
	}
	return nil
}

// environment of the process: what programs and proxies need, and no credentials of the daemon.
func environment(dir string, memoryBytes int64) []string {
	env := []string{"DOCKER_CONFIG=" + dir, "TMPDIR=" + dir, "HOME=" + dir}
	// The garbage collector works harder before the limit is met; a tenth is for what is not its own.
	const most, ofTen = 9, 10
	env = append(env, "GOMEMLIMIT="+strconv.FormatInt(memoryBytes/ofTen*most, 10))
	for _, name := range []string{"PATH", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// follow runs cmd, gives every line of its output to take, and kills the group when ctx ends.
func follow(ctx context.Context, cmd *exec.Cmd, group *group, take func([]byte) error) error {
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	started, ended, read := make(chan error, 1), make(chan error, 1), make(chan error, 1)
	go func() {
		// The child is to die with this process (prctl(2), PR_SET_PDEATHSIG), of which the kernel thinks as of the
		// thread that started it: so that thread must live as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		// What the process started may outlive it, and must not. Until it is waited for its number is no other's.
		waitErr := awaitExit(cmd.Process.Pid)
		group.kill(cmd.Process.Pid)
		readErr := <-read
		err = group.reap(cmd.Wait)
		ended <- errors.Join(err, readErr, waitErr)
	}()
	if err := <-started; err != nil {
		return err
	}
	go func() {
		err := eachLine(stdout, take)
		if err != nil {
			group.kill(cmd.Process.Pid)
		}
		read <- err
	}()
	if err := group.restrict(cmd.Process.Pid); err != nil {
		group.kill(cmd.Process.Pid)
		return errors.Join(err, <-ended)
	}
	select {
	case err = <-ended:
	case <-ctx.Done():
		group.kill(cmd.Process.Pid)
		err = <-ended
	}
	return err
}

// awaitExit returns when a child has ended. It does not reap the child.
func awaitExit(pid int) error {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func eachLine(r io.Reader, take func([]byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), maxLineBytes)
	for s.Scan() {
		if len(bytes.TrimSpace(s.Bytes())) == 0 {
			continue
		}
		if err := take(s.Bytes()); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil && !errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("read output of the build process: %w", err)
	}
	return nil
}

// tailBuffer keeps the end of what is written, and the beginning.
type tailBuffer struct {
	mu   sync.Mutex
	head []byte
	b    []byte
}

const tailBytes = 2048

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.head = append(t.head, p[:min(len(p), tailBytes-len(t.head))]...)
	t.b = append(t.b, p...)
	if len(t.b) > tailBytes {
		t.b = append(t.b[:0], t.b[len(t.b)-tailBytes:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}

// outOfMemory says whether a Go program ended because the kernel refused it memory: it says so first, and then where
// all its goroutines were (runtime/malloc.go, runtime/mem_linux.go, runtime/cgo/gcc_libinit.c; the stack of a thread is
// memory too).
func (t *tailBuffer) outOfMemory() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, text := range []string{"fatal error: out of memory", "fatal error: runtime: out of memory", "fatal error: runtime: cannot allocate memory",
		"runtime/cgo: pthread_create failed"} {
		if bytes.Contains(t.head, []byte(text)) {
			return true
		}
	}
	return false
}

// killWait is how long killed processes may take to be gone: those in the midst of a write to a device.
const killWait = 30 * time.Second

// deathSignal ends the child with its parent.
const deathSignal = syscall.SIGKILL
