package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/platforms"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"berth.dev/berth/node/containerdconfig"
	"berth.dev/berth/node/heal"
	"berth.dev/berth/snapshotter"
)

const (
	// The first and the longest wait between attempts to reach a containerd that was away: pods wait for it.
	firstReconnect = 50 * time.Millisecond
	reconnect      = 2 * time.Second
	// mendWait is how long a start waits for layers of a lost disk to be made anew. containerd holds a lock of its
	// snapshots meanwhile, behind which its garbage collection and then others wait. The kubelet tries again.
	mendWait = 30 * time.Second
)

// openContainerd makes the client of containerd. Nothing is sent before there is something to ask.
func openContainerd(_ context.Context, n *node) error {
	connect := grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: reconnect}
	connect.Backoff.BaseDelay, connect.Backoff.MaxDelay = firstReconnect, reconnect
	conn, err := grpc.NewClient("unix://"+n.config.Import.Containerd, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(connect))
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	c, err := client.NewWithConn(conn)
	if err != nil {
		return errors.Join(fmt.Errorf("make client of containerd: %w", err), conn.Close())
	}
	n.containerd, n.client = conn, c
	return nil
}

// layerMaker is the healer as the snapshotter sees it.
type layerMaker struct {
	healer *heal.Healer
	conn   *grpc.ClientConn
}

var _ snapshotter.LayerMaker = layerMaker{}

func (m layerMaker) MakeLayer(ctx context.Context, l snapshotter.LostLayer) error {
	connectNow(ctx, m.conn)
	return m.healer.MakeLayer(ctx, heal.Layer(l))
}

// connectNow ends the wait for the next attempt to connect, and waits for the outcome. containerd, which wants the
// layer, may have started after the last attempt. If it is not there, the first request says so.
func connectNow(ctx context.Context, conn *grpc.ClientConn) {
	bounded, cancel := context.WithTimeout(ctx, reconnect)
	defer cancel()
	conn.ResetConnectBackoff()
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready && conn.WaitForStateChange(bounded, state); {
		state = conn.GetState()
	}
}

// newLayerMaker makes layers anew with the help of containerd.
func newLayerMaker(c *client.Client, conn *grpc.ClientConn) layerMaker {
	fetcher := heal.TransferService{Service: c, Images: c.ImageService(), Registries: registriesOf(c)}
	return layerMaker{heal.New(heal.Containerd{
		Namespaces: c.NamespaceService().List, Images: c.ImageService(), Content: c.ContentStore(), Fetcher: fetcher,
	}, platforms.Default()), conn}
}

// registriesOf reads from the configuration of the containerd that runs how it reaches registries. A file that is not
// there is containerd's own defaults.
func registriesOf(c *client.Client) func(ctx context.Context) (heal.Registries, error) {
	return func(ctx context.Context) (heal.Registries, error) {
		server, err := c.IntrospectionService().Server(ctx)
		if err != nil {
			return nil, err
		}
		file, err := containerdconfig.ReadFiles(containerdconfig.RunningFile(int(server.GetPid()))) //nolint:gosec // a process ID
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return file.Registries(), nil
	}
}
