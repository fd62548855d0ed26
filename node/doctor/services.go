package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	versionapi "github.com/containerd/containerd/api/services/version/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth.dev/berth/node/containerdconfig"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
)

// answerTimeout is for one request to a daemon on this machine.
const answerTimeout = 5 * time.Second

// checkBerthd returns the status of berthd, or nil if it does not answer.
func checkBerthd(ctx context.Context, n Node) (*controlv1.StatusResponse, []Result) {
	const name = "berthd"
	start := "start it: systemctl start berthd"
	info, err := os.Stat(n.Socket)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil, []Result{{name, Fail, "not running: there is no socket " + n.Socket, start}}
	case err != nil:
		return nil, []Result{{name, Warn, err.Error(), "run berth doctor as root"}}
	}
	var results []Result
	if mode := info.Mode().Perm(); mode != 0o600 {
		results = append(results, Result{"socket", Fail, fmt.Sprintf("%s has mode %04o: others could attach disks", n.Socket, mode),
			"chmod 0600 it, and find out who changed it"})
	} else {
		results = append(results, Result{"socket", OK, n.Socket + ", mode 0600", ""})
	}
	status, err := askBerthd(ctx, n.Socket)
	if err != nil {
		return nil, append(results, Result{name, Fail, fmt.Sprintf("does not answer on %s: %v", n.Socket, err), start + ", and see journalctl -u berthd"})
	}
	results = append(results, Result{name, OK, fmt.Sprintf("version %s, process %d, disks: %d", status.GetVersion(), status.GetPid(), len(status.GetDisks())), ""})
	if got := status.GetRoot(); got != n.Root {
		results = append(results, Result{"berthd root", Fail, fmt.Sprintf("berthd uses %s, %s was expected", got, n.Root), "give berth doctor --root " + got})
	}
	results = append(results, checkDisks(ctx, n, status.GetDisks())...)
	return status, append(results, checkLost(ctx, n)...)
}

func askBerthd(ctx context.Context, socket string) (*controlv1.StatusResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	health, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		return nil, err
	}
	if s := health.GetStatus(); s != grpc_health_v1.HealthCheckResponse_SERVING {
		return nil, fmt.Errorf("its health is %s", s)
	}
	return controlv1.NewControlServiceClient(conn).Status(ctx, &controlv1.StatusRequest{})
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// checkContainerdVersion prefers the running containerd: the binary may have been replaced since it started.
func checkContainerdVersion(ctx context.Context, n Node) (containerdconfig.Version, []Result) {
	const name = "containerd"
	running, runErr := RunningVersion(ctx, n.ContainerdAddress)
	text := running
	if runErr != nil {
		var err error
		if _, text, err = containerdconfig.BinaryVersion(ctx, n.Containerd); err != nil {
			return containerdconfig.Newest(), []Result{{name, Fail,
				fmt.Sprintf("neither answers on %s (%v) nor is installed (%v)", n.ContainerdAddress, runErr, err),
				"install and start containerd, or give --containerd-address"}}
		}
	}
	v, err := containerdconfig.ParseVersion(text)
	if err != nil {
		return containerdconfig.Newest(), []Result{{name, Fail, err.Error(), "install containerd " + containerdconfig.Oldest().String() + " or later"}}
	}
	r := Result{name, OK, v.String() + " runs (" + text + ")", ""}
	if runErr != nil {
		r = Result{name, Fail, fmt.Sprintf("%s is installed, but does not answer on %s: %v", v, n.ContainerdAddress, runErr),
			"start it: systemctl start containerd"}
	}
	if containerdconfig.Newest().Before(v) && r.Status == OK {
		r.Status, r.Advice = Warn, "it is newer than what this berth was tested with ("+containerdconfig.Newest().String()+"): look for a newer berth"
	}
	return v, []Result{r}
}

// RunningVersion asks the containerd on the socket for its version.
func RunningVersion(ctx context.Context, address string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if _, err := os.Stat(address); err != nil {
		return "", err
	}
	conn, err := dial(address)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	resp, err := versionapi.NewVersionClient(conn).Version(ctx, &emptypb.Empty{})
	if err != nil {
		return "", err
	}
	return resp.GetVersion(), nil
}

func checkContainerdConfig(ctx context.Context, n Node, v containerdconfig.Version) (containerdconfig.Config, []Result) {
	const name = "containerd configuration"
	var (
		c    containerdconfig.Config
		err  error
		from string
	)
	if binary, lookErr := exec.LookPath(n.Containerd); lookErr == nil {
		from = binary + " config dump"
		c, err = containerdconfig.Dump(ctx, binary, n.ContainerdConfig)
	} else {
		from = n.ContainerdConfig
		c, err = containerdconfig.ReadFiles(n.ContainerdConfig)
	}
	if err != nil {
		return c, []Result{{name, Fail, err.Error(), "correct it, or give --containerd-config"}}
	}
	problems := containerdconfig.Check(c, n.settings(v))
	if len(problems) == 0 {
		return c, []Result{{name, OK, fmt.Sprintf("%s: plugin %s, unpack_config and exports agree with berthd", from, n.Snapshotter), ""}}
	}
	var results []Result
	for _, p := range problems {
		r := Result{name, Warn, p.What, p.Advice}
		if p.Fatal {
			r.Status = Fail
		}
		results = append(results, r)
	}
	return c, results
}
