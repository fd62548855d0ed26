package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	controlv1 "berth.dev/berth/proto/berth/control/v1"
	"berth.dev/berth/proto/enumword"
)

// lostLayers asks berthd for the lost layers. A berthd that does not know the request counts as one without lost
// layers.
func lostLayers(ctx context.Context, c controlv1.ControlServiceClient) (*controlv1.ListLostLayersResponse, error) {
	lost, err := c.ListLostLayers(ctx, &controlv1.ListLostLayersRequest{})
	if status.Code(err) == codes.Unimplemented {
		return &controlv1.ListLostLayersResponse{}, nil
	}
	return lost, err
}

// printLost prints which images need layers that no disk serves, and which containers run from lost disks.
func printLost(w io.Writer, lost *controlv1.ListLostLayersResponse) error {
	if len(lost.GetLayers()) > 0 {
		if _, err := fmt.Fprintln(w); err != nil {
			return err
		}
		if err := writeTable(w, lostRows(lost.GetLayers())); err != nil {
			return err
		}
	}
	var lines, reasons []string
	disk := ""
	for _, l := range lost.GetLayers() {
		disk = cmp.Or(disk, l.GetDisk(), l.GetDiskUuid())
		if l.GetState() == controlv1.LostLayerState_LOST_LAYER_STATE_FAILED && !slices.Contains(reasons, l.GetReason()) {
			reasons = append(reasons, l.GetReason())
			lines = append(lines, "! "+l.GetReason())
		}
	}
	if disk != "" {
		lines = append(lines, fmt.Sprintf("A lost layer is made anew when something needs it. \"berth release %s\" removes the images, to be pulled anew.", disk))
	}
	for _, s := range lost.GetStranded() {
		lines = append(lines, fmt.Sprintf("! %s runs from lost disk %s and gets I/O errors: it cannot be saved, start it again",
			userText(s.GetContainer()), s.GetDisk()))
	}
	if e := lost.GetUsersUnknown(); e != "" {
		lines = append(lines, "! who needs what is lost is not known: "+e)
	}
	if len(lines) == 0 {
		return nil
	}
	_, err := fmt.Fprintln(w, strings.Join(lines, "\n"))
	return err
}

// lostRows returns a row for each lost layer and each image that needs it.
func lostRows(layers []*controlv1.LostLayer) [][]string {
	rows := [][]string{{"LOST LAYER", "DISK", "NUMBER", "STATE", "NEEDED BY"}}
	for _, l := range layers {
		row := []string{shortDigest(digest.Digest(l.GetDiffId())), cmp.Or(l.GetDisk(), l.GetDiskUuid()), fmt.Sprint(l.GetLayerNumber()), orDash(enumword.Of(l.GetState()))}
		if len(l.GetUsers()) == 0 {
			rows = append(rows, append(row, "-"))
		}
		for _, u := range l.GetUsers() {
			rows = append(rows, append(slices.Clip(row), userText(u)))
		}
	}
	return rows
}

// userText returns a text such as "image docker.io/library/nginx:1 in namespace k8s.io".
func userText(u *controlv1.LayerUser) string {
	text := cmp.Or(enumword.Of(u.GetKind()), enumword.Other) + " " + u.GetName()
	if u.GetPod() != "" {
		text += " (pod " + u.GetPod() + ")"
	}
	return text + " in namespace " + u.GetNamespace()
}
