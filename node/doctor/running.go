package doctor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"google.golang.org/protobuf/types/known/emptypb"

	"berth.dev/berth/node/containerdconfig"
)

const (
	restart         = "restart containerd: systemctl restart containerd"
	snapshotterType = "io.containerd.snapshotter.v1"
)

// running is what the running containerd reports about itself.
type running struct {
	plugins []*introspectionapi.Plugin
	pid     int
}

func askContainerd(ctx context.Context, address string) (running, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	if _, err := os.Stat(address); err != nil {
		return running{}, err
	}
	conn, err := dial(address)
	if err != nil {
		return running{}, err
	}
	defer conn.Close()
	client := introspectionapi.NewIntrospectionClient(conn)
	plugins, err := client.Plugins(ctx, &introspectionapi.PluginsRequest{})
	if err != nil {
		return running{}, err
	}
	server, err := client.Server(ctx, &emptypb.Empty{})
	if err != nil {
		return running{}, err
	}
	return running{plugins: plugins.GetPlugins(), pid: int(server.GetPid())}, nil
}

func (r running) plugin(kind, id string) *introspectionapi.Plugin {
	i := slices.IndexFunc(r.plugins, func(p *introspectionapi.Plugin) bool { return p.GetType() == kind && p.GetID() == id })
	if i < 0 {
		return nil
	}
	return r.plugins[i]
}

// hasCRI reports whether Kubernetes can use this containerd.
func (r running) hasCRI() bool {
	p := r.plugin("io.containerd.grpc.v1", "cri")
	return p != nil && p.GetInitErr() == nil
}

// checkRunning compares the running containerd with its configuration, which may have changed since it started.
func checkRunning(n Node, r running, file containerdconfig.Config) []Result {
	const name = "running containerd"
	wanted, configured := file.ProxyPlugins[n.Snapshotter]
	plugin := r.plugin(snapshotterType, n.Snapshotter)
	switch {
	case plugin == nil && configured:
		return []Result{{name, Fail, fmt.Sprintf("it was started before its configuration named the proxy plugin %s", n.Snapshotter), restart}}
	case plugin == nil:
		return nil // the check of the configuration has said so
	case plugin.GetInitErr() != nil:
		return []Result{{name, Fail, fmt.Sprintf("its proxy plugin %s did not start: %s", n.Snapshotter, plugin.GetInitErr().GetMessage()),
			"correct the configuration, and " + restart}}
	case !configured:
		return []Result{{name, Warn, fmt.Sprintf("it has the proxy plugin %s, which its configuration does not name any more", n.Snapshotter),
			"put it into the configuration again, or the next start of containerd is without it"}}
	}
	var stale []string
	if got := plugin.GetExports()["address"]; got != "" && got != wanted.Address {
		stale = append(stale, fmt.Sprintf("it asks %s, its configuration says %s", got, wanted.Address))
	}
	if !sameWords(plugin.GetCapabilities(), wanted.Capabilities) {
		stale = append(stale, fmt.Sprintf("it has capabilities %v, its configuration says %v", plugin.GetCapabilities(), wanted.Capabilities))
	}
	for _, key := range []string{"root", "enable_remote_snapshot_annotations"} {
		if got, ok := plugin.GetExports()[key]; ok && got != wanted.Exports[key] {
			stale = append(stale, fmt.Sprintf("it has %s = %q in exports, its configuration says %q", key, got, wanted.Exports[key]))
		}
	}
	if len(stale) > 0 {
		return []Result{{name, Fail, "it was started with another configuration: " + strings.Join(stale, "; "), restart}}
	}
	if file, changed := changedSince(n.ContainerdConfig, r.pid); changed {
		return []Result{{name, Warn, fmt.Sprintf("%s was changed after it was started", file), restart + ", so that it reads it"}}
	}
	return []Result{{name, OK, fmt.Sprintf("process %d has the proxy plugin %s as its configuration says", r.pid, n.Snapshotter), ""}}
}

func sameWords(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

// changedSince names a configuration file that is newer than the process. If the process cannot be seen, its files
// count as read.
func changedSince(config string, pid int) (string, bool) {
	began, known := started(pid)
	files, err := containerdconfig.Files(config)
	if err != nil || !known {
		return "", false
	}
	for _, file := range files {
		if changed, err := os.Stat(file); err == nil && changed.ModTime().After(began) {
			return file, true
		}
	}
	return "", false
}

// started returns when a process began, up to a second late: the kernel gives the time of the boot in whole seconds.
func started(pid int) (time.Time, bool) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	boot, known := bootTime()
	if pid == 0 || err != nil || !known {
		return time.Time{}, false
	}
	// The name in parentheses may have spaces. The 20th field after it is the start, in ticks since the boot.
	const startField, ticksPerSecond = 19, 100
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) <= startField {
		return time.Time{}, false
	}
	ticks, err := strconv.ParseInt(fields[startField], 10, 64)
	return boot.Add(time.Second + time.Duration(ticks)*time.Second/ticksPerSecond), err == nil
}

func bootTime() (time.Time, bool) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return time.Time{}, false
	}
	for line := range strings.Lines(string(stat)) {
		var seconds int64
		if _, err := fmt.Sscanf(line, "btime %d", &seconds); err == nil {
			return time.Unix(seconds, 0), true
		}
	}
	return time.Time{}, false
}
