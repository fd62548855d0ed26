package boltstore

import (
	"slices"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/store"
)

// names are sorted, each once.
type names []string

func (n *names) add(name string) {
	if i, found := slices.BinarySearch(*n, name); !found {
		*n = slices.Insert(*n, i, name)
	}
}

func (n *names) remove(name string) {
	if i, found := slices.BinarySearch(*n, name); found {
		*n = slices.Delete(*n, i, i+1)
	}
}

// after returns the names that come after name.
func (n names) after(name string) names {
	i, found := slices.BinarySearch(n, name)
	if found {
		i++
	}
	return n[i:]
}

// candidates are the names of all objects that a filter may let through. mu is locked.
func (o *objects) candidates(f store.Filter) names {
	switch {
	case f.ID != "":
		if name, ok := o.names[f.ID]; ok {
			return names{name}
		}
		return nil
	case f.Owner != nil:
		if owned := o.owned[*f.Owner]; owned != nil {
			return owned.after(f.After)
		}
		return nil
	}
	return o.sorted.after(f.After)
}

// add a new object, or another state of one. mu is locked.
func (o *objects) add(obj *imagesnapshot.ImageSnapshot) {
	if old := o.byName[obj.Name]; old != nil && old.Owner != obj.Owner {
		o.remove(old)
	}
	o.byName[obj.Name], o.names[obj.ID] = obj, obj.Name
	o.sorted.add(obj.Name)
	owned := o.owned[obj.Owner]
	if owned == nil {
		owned = &names{}
		o.owned[obj.Owner] = owned
	}
	owned.add(obj.Name)
}

// remove an object. mu is locked.
func (o *objects) remove(obj *imagesnapshot.ImageSnapshot) {
	delete(o.byName, obj.Name)
	delete(o.names, obj.ID)
	o.sorted.remove(obj.Name)
	if owned := o.owned[obj.Owner]; owned != nil {
		if owned.remove(obj.Name); len(*owned) == 0 {
			delete(o.owned, obj.Owner)
		}
	}
}
