package ondemand

import (
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/matcher"
)

// Match decides as a pull of these images would now, with the same knowledge and the same cost of attaching. It changes
// nothing. The decision warns if no disk could make room. Its errors are matcher.ErrInvalidRequest.
func (c *Chooser) Match(r matcher.Request) (matcher.Decision, error) {
	r.Rules.AttachCostBytes = c.AttachCostBytes
	now := time.Now()
	d, err := c.decide(r, now)
	if err != nil {
		return d, err
	}
	if w := c.attacher.noRoomFor(d.Chosen, now); w != "" {
		d.Warnings = append(d.Warnings, w)
	}
	return d, nil
}

// decide updates the index with what is attached, and then asks it.
func (c *Chooser) decide(r matcher.Request, now time.Time) (matcher.Decision, error) {
	c.view.refresh(c.Stage.Disks(), now)
	r.Images = slices.Clone(r.Images)
	for i := range r.Images {
		r.Images[i].Layers = c.withPresent(r.Images[i].Layers)
	}
	return c.view.index.Match(r)
}

// withPresent marks layers that are on attached disks but that no known image snapshot has: no disk is needed for them.
// Layers of image snapshots are left to the matcher, which knows which disks are attached.
func (c *Chooser) withPresent(layers []matcher.Layer) []matcher.Layer {
	if layers == nil {
		return nil // nil means unknown, which is not the same as no layers
	}
	layers = slices.Clone(layers)
	var below layerdisk.LayerName
	for i := range layers {
		l := &layers[i]
		q := l.LayerName
		q.ParentChainID = below.ChainID
		if q.ChainID == "" && q.DiffID != "" && (i == 0 || below.ChainID != "") {
			q.ChainID = q.DiffID
			if i > 0 {
				q.ChainID = identity.ChainID([]digest.Digest{below.ChainID, q.DiffID})
			}
		}
		below = q
		held, err := c.Stage.Locate(q)
		if err != nil {
			continue
		}
		l.Present = l.Present || !c.view.ofDisk(held.DiskUUID)
	}
	return layers
}
