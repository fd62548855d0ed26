package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/node/users"
	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/proto/enumword"
)

// checkDisks checks the disks that berthd has. A missing disk is a failure if the configuration or --keep asks for it,
// or if images use it: these do not start then.
func checkDisks(ctx context.Context, n Node, disks []*controlv1.Disk) []Result {
	var results []Result
	for _, d := range disks {
		name := "disk " + d.GetName()
		if e := d.GetLastError(); e != "" && !d.GetServing() {
			r := Result{name, Warn, enumword.Of(d.GetState()) + ": " + e, "see docs/operations.md, or detach it: berth detach " + d.GetName()}
			if d.GetConfigured() || d.GetKeep() {
				r.Status = Fail
			}
			if holders := d.GetHolders(); holders > 0 {
				r.Status = Fail
				r.Detail += fmt.Sprintf("; images and containers use its layers (snapshots: %d)%s", holders, concerned(ctx, n, d.GetName()))
				r.Advice = "attach it again; what is lost with it is in the results below"
			}
			results = append(results, r)
		} else if e != "" {
			results = append(results, Result{name, Warn, enumword.Of(d.GetState()) + ": " + e, "see docs/operations.md"})
		}
		if file, ok := deletedFile(d.GetDevice()); ok {
			results = append(results, Result{name, Warn,
				fmt.Sprintf("its file %s was deleted: it serves until it is detached or the node starts anew, and never again", file),
				fmt.Sprintf("save it while it is there: cp --sparse=always %s FILE", d.GetDevice())})
		}
	}
	return results
}

// concerned names the users of the disk that berthd and containerd know.
func concerned(ctx context.Context, n Node, disk string) string {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := dial(n.Socket)
	if err != nil {
		return ""
	}
	defer conn.Close()
	resp, err := controlv1.NewControlServiceClient(conn).ListUses(ctx, &controlv1.ListUsesRequest{Disk: disk})
	if err != nil {
		return ""
	}
	chains := map[digest.Digest]bool{}
	for _, u := range resp.GetUses() {
		for _, id := range u.GetChainIds() {
			chains[digest.Digest(id)] = true
		}
	}
	c, err := client.New(n.ContainerdAddress, client.WithTimeout(answerTimeout))
	if err != nil {
		return ""
	}
	defer c.Close() //nolint:errcheck // a connection that only asks
	found, err := users.Find(ctx, c, n.Snapshotter, chains)
	if err != nil || len(found) == 0 {
		return ""
	}
	var names []string
	for _, u := range found {
		names = append(names, u.String())
	}
	return ": " + list(names)
}

// deletedFile returns the file of a loop device if the file was deleted.
func deletedFile(device string) (string, bool) {
	if !strings.HasPrefix(device, "/dev/loop") {
		return "", false
	}
	file, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
	if err != nil {
		return "", false
	}
	return strings.CutSuffix(strings.TrimSpace(string(file)), " (deleted)")
}
