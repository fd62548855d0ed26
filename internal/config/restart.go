package config

import "reflect"

// NeedsRestart says whether next says anything else than c that a running berthd does not take over. It takes over the
// log's settings, disks that were added, and which disks' images are imported.
func (c *Config) NeedsRestart(next *Config) bool {
	return !same(c.fixed(), next.fixed()) || !c.keepsDisks(next)
}

// fixed is the configuration without what can change while berthd runs.
func (c *Config) fixed() Config {
	f := *c
	f.Log, f.Disks, f.Import.Enabled = Log{}, nil, false
	return f
}

// keepsDisks says whether next has all disks of c, unchanged.
func (c *Config) keepsDisks(next *Config) bool {
	disks := make(map[string]Disk, len(next.Disks))
	for _, d := range next.Disks {
		disks[d.Name] = d.fixed()
	}
	for _, d := range c.Disks {
		if !same(d.fixed(), disks[d.Name]) {
			return false
		}
	}
	return true
}

// fixed is the disk with its defaults, without what can change while berthd runs.
func (d Disk) fixed() Disk {
	keep := d.KeepAttached()
	d.Driver, d.Volume, d.Path, d.Keep, d.Import = d.DriverName(), d.VolumeID(), "", &keep, nil
	return d
}

// same says whether two values of one type mean the same. A list or table that is left out means the same as an empty
// one, all else is as in reflect.DeepEqual.
func same[T any](a, b T) bool {
	return sameValue(reflect.ValueOf(&a).Elem(), reflect.ValueOf(&b).Elem())
}

func sameValue(a, b reflect.Value) bool {
	switch a.Kind() { //nolint:exhaustive // the others have no parts that may be left out
	case reflect.Struct:
		for i := range a.NumField() {
			if !sameValue(a.Field(i), b.Field(i)) {
				return false
			}
		}
		return true
	case reflect.Slice:
		if a.Len() != b.Len() {
			return false
		}
		for i := range a.Len() {
			if !sameValue(a.Index(i), b.Index(i)) {
				return false
			}
		}
		return true
	case reflect.Map:
		for _, key := range a.MapKeys() {
			if v := b.MapIndex(key); !v.IsValid() || !sameValue(a.MapIndex(key), v) {
				return false
			}
		}
		return a.Len() == b.Len()
	}
	return reflect.DeepEqual(a.Interface(), b.Interface())
}
