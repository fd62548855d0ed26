package imagesnapshot

import (
	"maps"
	"slices"
)

// Clone shares nothing with s that can be changed.
func (s *ImageSnapshot) Clone() *ImageSnapshot {
	c := *s
	c.Labels, c.Annotations = maps.Clone(s.Labels), maps.Clone(s.Annotations)
	c.Spec = s.Spec.Clone()
	c.Status.Images = slices.Clone(s.Status.Images)
	c.Status.Snapshots = slices.Clone(s.Status.Snapshots)
	c.Status.Events = slices.Clone(s.Status.Events)
	if s.Status.Work != nil {
		w := *s.Status.Work
		w.Snapshots, w.Garbage = slices.Clone(w.Snapshots), slices.Clone(w.Garbage)
		if w.Built != nil {
			b := *w.Built
			b.Images = slices.Clone(b.Images)
			w.Built = &b
		}
		c.Status.Work = &w
	}
	return &c
}

// Clone shares nothing with s that can be changed.
func (s Spec) Clone() Spec {
	s.Images, s.Platforms, s.Registries = slices.Clone(s.Images), slices.Clone(s.Platforms), slices.Clone(s.Registries)
	s.Build.DNSServers, s.Build.Parameters = slices.Clone(s.Build.DNSServers), maps.Clone(s.Build.Parameters)
	return s
}
