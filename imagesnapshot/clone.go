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
	c.Status.Content = s.Status.Clone()
	c.Status.Events = slices.Clone(s.Status.Events)
	if s.Status.Work != nil {
		w := *s.Status.Work
		w.Garbage, w.Donors = slices.Clone(w.Garbage), slices.Clone(w.Donors)
		if w.Built != nil {
			b := w.Built.Clone()
			w.Built = &b
		}
		if w.Previous != nil {
			p := w.Previous.Clone()
			w.Previous = &p
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

// Clone shares nothing with c that can be changed.
func (c Content) Clone() Content {
	c.Images, c.VolumeSnapshots = slices.Clone(c.Images), slices.Clone(c.VolumeSnapshots)
	return c
}
