package doctor

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/proto/enumword"
)

// checkLost looks for layers that images need and no disk serves, and for containers that run from lost disks.
func checkLost(ctx context.Context, n Node) []Result {
	const name = "lost layers"
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	conn, err := dial(n.Socket)
	if err != nil {
		return []Result{{name, Warn, "not checked: " + err.Error(), "see the check of berthd"}}
	}
	defer conn.Close()
	lost, err := controlv1.NewControlServiceClient(conn).ListLostLayers(ctx, &controlv1.ListLostLayersRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil // an older berthd
	}
	if err != nil {
		return []Result{{name, Warn, "not checked: " + status.Convert(err).Message(), "see the log of berthd"}}
	}
	return lostResults(name, lost)
}

func lostResults(name string, lost *controlv1.ListLostLayersResponse) (results []Result) {
	for _, disk := range lostDisks(lost.GetLayers()) {
		results = append(results, lostResult(name, disk, lost.GetLayers()))
	}
	for _, c := range lost.GetStranded() {
		results = append(results, Result{"container " + c.GetContainer().GetName(), Fail,
			fmt.Sprintf("%s runs from disk %s, which is lost: it gets I/O errors and cannot be saved", userText(c.GetContainer()), c.GetDisk()),
			"start it again; its image is taken from elsewhere then"})
	}
	if e := lost.GetUsersUnknown(); e != "" {
		results = append(results, Result{name, Warn, "who needs them is not known: " + e, "see the check of containerd"})
	}
	return results
}

// lostDisks returns the disks that have lost layers, by name or UUID.
func lostDisks(layers []*controlv1.LostLayer) (disks []string) {
	for _, l := range layers {
		if d := cmp.Or(l.GetDisk(), l.GetDiskUuid()); !slices.Contains(disks, d) {
			disks = append(disks, d)
		}
	}
	return disks
}

// lostResult returns the result for the layers of one disk.
func lostResult(name, disk string, layers []*controlv1.LostLayer) Result {
	var numbers, users, reasons []string
	for _, l := range layers {
		if cmp.Or(l.GetDisk(), l.GetDiskUuid()) != disk {
			continue
		}
		numbers = append(numbers, fmt.Sprintf("%d (%s)", l.GetLayerNumber(), cmp.Or(enumword.Of(l.GetState()), enumword.Other)))
		if l.GetState() == controlv1.LostLayerState_LOST_LAYER_STATE_FAILED && !slices.Contains(reasons, l.GetReason()) {
			reasons = append(reasons, l.GetReason())
		}
		for _, u := range l.GetUsers() {
			if text := userText(u); !slices.Contains(users, text) {
				users = append(users, text)
			}
		}
	}
	r := Result{name, Fail, fmt.Sprintf("no disk serves layers %s of disk %s", list(numbers), disk), ""}
	if len(users) > 0 {
		r.Detail += ", which are needed by " + list(users)
	}
	r.Advice = "they are made anew when something needs them, if containerd can fetch them; attach a disk that has them; or berth release " + disk
	if len(reasons) > 0 {
		r.Detail += "; they could not be made anew: " + strings.Join(reasons, "; ")
		r.Advice = "let containerd reach the registry, attach a disk that has them, or remove the images and pull them again: berth release " + disk
	}
	return r
}

// userText returns a text such as "image docker.io/library/nginx:1 in namespace k8s.io".
func userText(u *controlv1.LayerUser) string {
	text := cmp.Or(enumword.Of(u.GetKind()), enumword.Other) + " " + u.GetName()
	if u.GetPod() != "" {
		text += " (pod " + u.GetPod() + ")"
	}
	return text + " in namespace " + u.GetNamespace()
}
