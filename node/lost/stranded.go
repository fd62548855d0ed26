package lost

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"

	"berth.dev/berth/node/users"
)

// stranded finds the containers that run from the disks. The kernel says which directories their root consists of, even
// if the layers of their snapshots are elsewhere by now.
func (f *Finder) stranded(ctx context.Context, disks []Disk) (list []Stranded, _ error) {
	spaces, err := f.client.NamespaceService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("find containers that run from lost disks: %w", err)
	}
	for _, ns := range spaces {
		here := namespaces.WithNamespace(ctx, ns)
		resp, err := f.client.TaskService().List(here, &tasks.ListTasksRequest{})
		if err != nil {
			return nil, fmt.Errorf("find containers that run from lost disks in namespace %s: %w", ns, err)
		}
		for _, t := range resp.GetTasks() {
			if t.GetStatus() == task.Status_STOPPED || t.GetPid() == 0 {
				continue
			}
			for _, d := range disks {
				if !runsFrom(int(t.GetPid()), d.Place) {
					continue
				}
				u, err := f.container(here, ns, t.GetID())
				if err != nil {
					return nil, err
				}
				list = append(list, Stranded{u, d.Name})
			}
		}
	}
	return list, nil
}

// container returns the container with this ID, with its pod.
func (f *Finder) container(ctx context.Context, namespace, id string) (users.User, error) {
	c, err := f.client.ContainerService().Get(ctx, id)
	if err != nil && !errdefs.IsNotFound(err) {
		return users.User{}, fmt.Errorf("read container %s in namespace %s: %w", id, namespace, err)
	}
	return users.User{Namespace: namespace, Kind: users.Container, Name: id, Pod: users.PodOf(c.Labels)}, nil
}

// runsFrom reports whether a process sees a mount that has a directory of the disk. A process that has ended sees none.
func runsFrom(pid int, place string) bool {
	f, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return false
	}
	defer f.Close() //nolint:errcheck // only read
	return mountsFrom(f, place)
}

// mountsFrom reports whether a mountinfo (proc(5)) has an overlay with a lower directory below place. If there are many
// lower directories, containerd names them relative to a common parent, and then only the end of place remains.
func mountsFrom(mountinfo io.Reader, place string) bool {
	lines := bufio.NewScanner(mountinfo)
	lines.Buffer(nil, maxMountLine)
	for lines.Scan() {
		_, after, ok := strings.Cut(lines.Text(), " - ")
		fields := strings.SplitN(after, " ", 3)
		if !ok || len(fields) < 3 || fields[0] != "overlay" {
			continue
		}
		for _, option := range strings.Split(fields[2], ",") {
			key, value, _ := strings.Cut(option, "=")
			if key != "lowerdir" && key != "lowerdir+" {
				continue
			}
			for _, dir := range strings.Split(value, ":") {
				if isBelow(dir, place) {
					return true
				}
			}
		}
	}
	return false
}

// maxMountLine is more than a line of mountinfo can have: options fit a page.
const maxMountLine = 1 << 20

// layersDir is the directory on a disk that has the layers.
const layersDir = "/l/"

func isBelow(dir, place string) bool {
	if strings.HasPrefix(dir, "/") {
		return strings.HasPrefix(dir, place+"/")
	}
	at := strings.Index(dir, layersDir)
	if at < 0 {
		return false
	}
	return strings.HasSuffix(place, "/"+dir[:at])
}
