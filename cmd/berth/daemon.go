package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"berth.dev/berth/internal/unixsocket"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

const (
	defaultSocket     = "/run/berth/berthd.sock"
	defaultContainerd = "/run/containerd/containerd.sock"
	// maxMessage is for image configs, which registries and containerd allow up to 8 MiB.
	maxMessage = 32 << 20
	// connectTimeout is for a socket on this machine: the kernel connects to it even while its owner is busy.
	connectTimeout = 5 * time.Second
)

// daemonFlags name the berthd to talk to.
type daemonFlags struct {
	socket string
}

func (f *daemonFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.socket, "socket", cmp.Or(os.Getenv("BERTH_SOCKET"), defaultSocket),
		"berthd's unix `socket`; the environment's BERTH_SOCKET is the default")
}

// call talks to the control service of berthd.
func (f *daemonFlags) call(ctx context.Context, use func(context.Context, controlv1.ControlServiceClient) error) error {
	return f.dial(ctx, func(ctx context.Context, conn connection) error {
		return use(ctx, controlv1.NewControlServiceClient(conn))
	})
}

type connection = grpc.ClientConnInterface

// dial connects to berthd for use. Errors are in the words of this command, not of gRPC.
func (f *daemonFlags) dial(ctx context.Context, use func(context.Context, connection) error) error {
	if err := f.reachable(ctx); err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix:"+f.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return fmt.Errorf("connect to berthd: %w", err)
	}
	defer conn.Close()
	return answered(use(ctx, conn))
}

func isNotFound(err error) bool { return errdefs.IsNotFound(errgrpc.ToNative(err)) }

// answer is an error from a server: its unchanged text, and its class. errgrpc.ToNative would add the class to the text
// again, on a line of its own.
type answer struct {
	words string
	class error
}

func (a *answer) Error() string { return a.words }
func (a *answer) Unwrap() error { return a.class }

// answered turns a gRPC status into the error that it stands for, and returns other errors unchanged.
func answered(err error) error {
	if err == nil {
		return nil
	}
	s, ok := status.FromError(err)
	if !ok {
		return err
	}
	return &answer{words: s.Message(), class: errgrpc.ToNative(err)}
}

// reachable connects once without gRPC, because gRPC gives the reason of a failure only in the text of its errors.
func (f *daemonFlags) reachable(ctx context.Context) error {
	if err := unixsocket.CheckPath(f.socket); err != nil {
		return err
	}
	conn, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "unix", f.socket)
	switch {
	case err == nil:
		return conn.Close()
	case errors.Is(err, fs.ErrNotExist):
		return notRunning(f.socket, "there is no such socket")
	case errors.Is(err, unix.ECONNREFUSED):
		return notRunning(f.socket, "nobody listens on it")
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to use %s: run this command as root", f.socket)
	}
	return fmt.Errorf("connect to berthd: %w", err)
}

// errNotRunning is an error that tests recognise.
var errNotRunning = errors.New("berthd is not running")

func notRunning(socket, why string) error {
	return fmt.Errorf("%w on %s (%s): start it with \"systemctl start berthd\", or name another socket with --socket",
		errNotRunning, socket, why)
}
