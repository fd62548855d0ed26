package daemon

import (
	"context"
	"maps"
	"slices"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/node/lost"
	"berth.dev/berth/snapshotter"
)

// lostLayers lists the layers that adopted snapshots need and no disk serves, from memory and the store, and the disks
// that do not serve although something is held of them. A disk that is on its way for the first time is not lost.
func lostLayers(n *node) lost.Node {
	return func(ctx context.Context) ([]lost.Layer, []lost.Disk, error) {
		adopted, err := n.snapshotter.Adopted(ctx)
		if err != nil {
			return nil, nil, err
		}
		disks, coming := map[string]lost.Disk{}, map[string]bool{}
		for _, d := range n.stage.Disks() {
			if d.UUID != "" {
				disks[d.UUID] = lost.Disk{Name: d.Name, UUID: d.UUID, Place: d.Place}
				coming[d.UUID] = d.LastError == nil
			}
		}
		var (
			layers []lost.Layer
			served = map[string]bool{}
			away   = map[string]lost.Disk{}
		)
		byName := map[string][]snapshotter.Adopted{}
		for _, a := range adopted {
			byName[a.Name] = append(byName[a.Name], a)
			if _, err := n.stage.Layers.LayerDir(a.DiskUUID, a.LayerNumber); err == nil || coming[a.DiskUUID] {
				served[a.Name] = true
			} else if d, ok := disks[a.DiskUUID]; ok {
				away[a.DiskUUID] = d
			}
		}
		for name, all := range byName {
			if first := all[0]; !served[name] && !first.Local {
				if l, is := n.lostLayer(first); is {
					l.Disk = disks[first.DiskUUID].Name
					layers = append(layers, l)
				}
			}
		}
		return layers, slices.Collect(maps.Values(away)), nil
	}
}

// lostLayer is the layer of a snapshot whose own disks do not serve, unless another disk has it.
func (n *node) lostLayer(a snapshotter.Adopted) (lost.Layer, bool) {
	if _, err := n.stage.Locate(layerdisk.LayerName{ChainID: a.ChainID, DiffID: a.DiffID}); err == nil {
		return lost.Layer{}, false
	}
	l := lost.Layer{DiskUUID: a.DiskUUID, Number: a.LayerNumber, ChainID: a.ChainID, DiffID: a.DiffID, State: lost.Waiting}
	switch {
	case a.Mend.Running:
		l.State = lost.Making
	case a.Mend.Err != nil:
		l.State, l.Reason = lost.Failed, a.Mend.Err.Error()
	default:
		if _, err := n.stage.Layers.LayerDir(a.DiskUUID, a.LayerNumber); err != nil {
			l.Reason = err.Error()
		}
	}
	return l, true
}
