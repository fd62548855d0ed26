package imageimport

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"berth.dev/berth/internal/durable"
)

// lookTimeout bounds listing what is in containerd.
const lookTimeout = 30 * time.Second

// found is what is in a namespace of containerd.
type found struct {
	namespace string
	// done has the UUIDs of disks whose images are registered, begun those of disks whose registration was begun.
	done, begun map[string]bool
	images      []images.Image
}

// ours reports whether anything of the disk is there.
func (f found) ours(uuid string) bool {
	return f.done[uuid] || f.begun[uuid] || slices.ContainsFunc(f.images, func(img images.Image) bool {
		return img.Labels[labelDisk] == uuid && (owned(img) || moved(img))
	})
}

// disks returns the UUIDs of all disks that have anything there.
func (f found) disks() map[string]bool {
	all := map[string]bool{}
	for uuid := range f.done {
		all[uuid] = true
	}
	for uuid := range f.begun {
		all[uuid] = true
	}
	for _, img := range f.images {
		if owned(img) || moved(img) {
			all[img.Labels[labelDisk]] = true
		}
	}
	return all
}

// record returns the record with this name, if there is one.
func (f found) record(name string) (images.Image, bool) {
	i := slices.IndexFunc(f.images, func(img images.Image) bool { return img.Name == name })
	if i < 0 {
		return images.Image{}, false
	}
	return f.images[i], true
}

// inventory lists what is in containerd.
type inventory struct {
	ctr Containerd
	// namespaces are those in which images are registered.
	namespaces []string
	// marker is the path of the file that says in which namespaces there may be something to take back.
	marker string
}

// marker is the content of the marker file.
type marker struct {
	Namespaces []string `json:"namespaces"`
}

// look lists what is in the configured namespaces, and in those where something was registered before.
func (v inventory) look(ctx context.Context) ([]found, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	was, _, err := durable.Read[marker](v.marker)
	if err != nil {
		return nil, err
	}
	all := slices.Concat(v.namespaces, was.Namespaces)
	slices.Sort(all)
	var list []found
	for _, ns := range slices.Compact(all) {
		f, err := v.lookIn(namespaces.WithNamespace(ctx, ns), ns)
		if err != nil {
			return nil, fmt.Errorf("look into namespace %s of containerd: %w", ns, err)
		}
		list = append(list, f)
	}
	return list, nil
}

func (v inventory) lookIn(ctx context.Context, ns string) (found, error) {
	f := found{namespace: ns, done: map[string]bool{}, begun: map[string]bool{}}
	all, err := v.ctr.Leases.List(ctx, "labels."+strconv.Quote(labelDisk))
	if err != nil {
		return f, err
	}
	for _, l := range all {
		switch uuid := l.Labels[labelDisk]; l.ID {
		case doneLease(uuid):
			f.done[uuid] = true
		case workLease(uuid):
			f.begun[uuid] = true
		}
	}
	f.images, err = v.ctr.Images.List(ctx)
	return f, err
}

// leaveMark notes the namespaces before anything is registered in them.
func (v inventory) leaveMark() error {
	was, _, err := durable.Read[marker](v.marker)
	if err != nil {
		return err
	}
	all := slices.Concat(v.namespaces, was.Namespaces)
	slices.Sort(all)
	all = slices.Compact(all)
	if slices.Equal(all, was.Namespaces) {
		return nil
	}
	return durable.Write(v.marker, marker{all})
}

// marked reports whether there may be something to take back.
func (v inventory) marked() bool {
	_, err := os.Lstat(v.marker)
	return !errors.Is(err, os.ErrNotExist)
}

// unmark notes that there is nothing to take back any more.
func (v inventory) unmark() error { return durable.Remove(v.marker) }
