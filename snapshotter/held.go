package snapshotter

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
)

// heldRecord is what a snapshot still holds whose layer was made anew: containers that were started before may run from
// the disks that it was adopted from, for as long as the machine runs.
type heldRecord struct {
	Boot string     `json:"boot"`
	Held []location `json:"held"`
}

func (h heldRecord) encode() (string, error) {
	b, err := json.Marshal(h)
	if err != nil {
		return "", fmt.Errorf("encode record of held layers: %w", err)
	}
	return string(b), nil
}

// heldOf reads the record from a snapshot's labels; the zero value if there is none.
func heldOf(labels map[string]string) (h heldRecord, err error) {
	text, ok := labels[labelHeld]
	if !ok {
		return heldRecord{}, nil
	}
	if err := json.Unmarshal([]byte(text), &h); err != nil {
		return heldRecord{}, fmt.Errorf("decode record of held layers: %w", err)
	}
	return h, nil
}

// held are the locations that are held for a snapshot, whether it is adopted or was made anew.
func held(labels map[string]string) ([]location, error) {
	r, err := recordOf(labels)
	if err != nil {
		return nil, err
	}
	if r != nil {
		return r.locations(), nil
	}
	h, err := heldOf(labels)
	return h.Held, err
}

// forgetHeld drops the records of earlier boots: none of their containers runs any more.
func (r rows) forgetHeld(ctx context.Context, boot string) error {
	var stale []string
	err := r.read(ctx, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			h, err := heldOf(info.Labels)
			if err == nil && h.Held != nil && h.Boot != boot {
				stale = append(stale, info.Name)
			}
			return err
		})
	})
	if err != nil || len(stale) == 0 {
		return err
	}
	return r.write(ctx, func(ctx context.Context) error {
		for _, name := range stale {
			n, err := lookup(ctx, name)
			if err != nil {
				return err
			}
			labels := with(n.info.Labels, labelHeld, "")
			delete(labels, labelHeld)
			if _, err := storage.UpdateInfo(ctx, snapshots.Info{Name: name, Labels: labels}, "labels"); err != nil {
				return err //nolint:wrapcheck // wrapped by the caller
			}
		}
		return nil
	})
}

// bootID changes with each boot (random(4)).
func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot ID: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
}
