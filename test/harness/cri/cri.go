// Package cri is what a kubelet does, as far as tests need it: pull an image, run a pod with a container from it on the
// host's network, look inside, remove.
package cri

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Client of a containerd's CRI services. Close it after use.
type Client struct {
	conn    *grpc.ClientConn
	images  runtime.ImageServiceClient
	runtime runtime.RuntimeServiceClient
}

// Dial the services at a unix socket; nothing is sent yet.
func Dial(socket string) (*Client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("dial CRI: %w", err)
	}
	return New(conn), nil
}

// New client of services that a connection leads to, which is closed with it.
func New(conn *grpc.ClientConn) *Client {
	return &Client{conn: conn, images: runtime.NewImageServiceClient(conn), runtime: runtime.NewRuntimeServiceClient(conn)}
}

// Close the connection.
func (c *Client) Close() error { return c.conn.Close() }

// Pull an image and return the reference by which containers name it.
func (c *Client) Pull(ctx context.Context, ref string) (string, error) {
	resp, err := c.images.PullImage(ctx, &runtime.PullImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		return "", fmt.Errorf("pull %s by CRI: %w", ref, err)
	}
	return resp.GetImageRef(), nil
}

// Image as a kubelet sees it, nil if it would have to be pulled.
func (c *Client) Image(ctx context.Context, ref string) (*runtime.Image, error) {
	resp, err := c.images.ImageStatus(ctx, &runtime.ImageStatusRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		return nil, fmt.Errorf("get image %s by CRI: %w", ref, err)
	}
	return resp.GetImage(), nil
}

// Images that a kubelet could remove.
func (c *Client) Images(ctx context.Context) ([]*runtime.Image, error) {
	resp, err := c.images.ListImages(ctx, &runtime.ListImagesRequest{})
	if err != nil {
		return nil, fmt.Errorf("list images by CRI: %w", err)
	}
	return resp.GetImages(), nil
}

// RemoveImage is no error if there is none.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	_, err := c.images.RemoveImage(ctx, &runtime.RemoveImageRequest{Image: &runtime.ImageSpec{Image: ref}})
	if err != nil {
		return fmt.Errorf("remove image %s by CRI: %w", ref, err)
	}
	return nil
}

// FsInfo is where CRI thinks images are, with the bytes used there.
func (c *Client) FsInfo(ctx context.Context) ([]*runtime.FilesystemUsage, error) {
	resp, err := c.images.ImageFsInfo(ctx, &runtime.ImageFsInfoRequest{})
	if err != nil {
		return nil, fmt.Errorf("get image file system by CRI: %w", err)
	}
	return resp.GetImageFilesystems(), nil
}

// PodSpec of a pod with one container.
type PodSpec struct {
	// Name of the pod; unique on the node.
	Name string
	// Image of the container, and its Command.
	Image   string
	Command []string
	// CgroupParent is an absolute cgroup path; it is made by the runtime.
	CgroupParent string
	// LogDir gets the container's output.
	LogDir string
	// UserNamespaceBase is what the container's ids 0..65535 are mapped to and up; 0 runs in the host's user namespace.
	// A pod with a user namespace cannot share the host's network.
	UserNamespaceBase uint32
}

// Pod that runs.
type Pod struct {
	client    *Client
	Sandbox   string
	Container string
	// CreateContainer is how long that call took: with it the container's snapshot is prepared.
	CreateContainer time.Duration
}

// Run starts a pod and its container.
func (c *Client) Run(ctx context.Context, spec PodSpec) (_ *Pod, err error) {
	sandbox := spec.sandbox()
	sb, err := c.runtime.RunPodSandbox(ctx, &runtime.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		return nil, fmt.Errorf("run sandbox of pod %s: %w", spec.Name, err)
	}
	p := &Pod{client: c, Sandbox: sb.GetPodSandboxId()}
	start := time.Now()
	created, err := c.runtime.CreateContainer(ctx, &runtime.CreateContainerRequest{
		PodSandboxId: p.Sandbox, Config: spec.container(), SandboxConfig: sandbox,
	})
	if err != nil {
		return p, fmt.Errorf("create container of pod %s: %w", spec.Name, err)
	}
	p.CreateContainer = time.Since(start)
	p.Container = created.GetContainerId()
	if _, err := c.runtime.StartContainer(ctx, &runtime.StartContainerRequest{ContainerId: p.Container}); err != nil {
		return p, fmt.Errorf("start container of pod %s: %w", spec.Name, err)
	}
	return p, nil
}

func (s PodSpec) namespaces() *runtime.NamespaceOption {
	options := &runtime.NamespaceOption{Network: runtime.NamespaceMode_NODE}
	if s.UserNamespaceBase != 0 {
		mapping := []*runtime.IDMapping{{ContainerId: 0, HostId: s.UserNamespaceBase, Length: 65536}}
		options.UsernsOptions = &runtime.UserNamespace{Mode: runtime.NamespaceMode_POD, Uids: mapping, Gids: mapping}
		options.Network = runtime.NamespaceMode_POD
	}
	return options
}

// labels are those by which the kubelet says whose a sandbox or container is.
func (s PodSpec) labels() map[string]string {
	return map[string]string{"io.kubernetes.pod.name": s.Name, "io.kubernetes.pod.namespace": "test"}
}

func (s PodSpec) sandbox() *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		// The host name must be empty on the host's network.
		Metadata:     &runtime.PodSandboxMetadata{Name: s.Name, Namespace: "test", Uid: s.Name},
		Labels:       s.labels(),
		LogDirectory: s.LogDir,
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    s.CgroupParent,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: s.namespaces()},
		},
	}
}

func (s PodSpec) container() *runtime.ContainerConfig {
	return &runtime.ContainerConfig{
		Metadata: &runtime.ContainerMetadata{Name: "main"},
		Labels:   s.labels(),
		Image:    &runtime.ImageSpec{Image: s.Image},
		Command:  s.Command,
		LogPath:  filepath.Base(s.Name) + ".log",
		Linux: &runtime.LinuxContainerConfig{
			SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: s.namespaces()},
		},
	}
}

// Exec runs a command in the container and returns its standard output.
func (p *Pod) Exec(ctx context.Context, command ...string) (string, error) {
	resp, err := p.client.runtime.ExecSync(ctx, &runtime.ExecSyncRequest{ContainerId: p.Container, Cmd: command, Timeout: 30})
	if err != nil {
		return "", fmt.Errorf("exec %v: %w", command, err)
	}
	if code := resp.GetExitCode(); code != 0 {
		return "", fmt.Errorf("exec %v: exit status %d: %s", command, code, resp.GetStderr())
	}
	return string(resp.GetStdout()), nil
}

// Remove the pod with its container.
func (p *Pod) Remove(ctx context.Context) error {
	if _, err := p.client.runtime.StopPodSandbox(ctx, &runtime.StopPodSandboxRequest{PodSandboxId: p.Sandbox}); err != nil {
		return fmt.Errorf("stop pod: %w", err)
	}
	if _, err := p.client.runtime.RemovePodSandbox(ctx, &runtime.RemovePodSandboxRequest{PodSandboxId: p.Sandbox}); err != nil {
		return fmt.Errorf("remove pod: %w", err)
	}
	return nil
}
