package ondemand

import (
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"

	"berth.dev/berth/layerdisk"
	"berth.dev/berth/matcher"
)

// Match tells what a pull of these images would be decided now, by the same knowledge and at the same cost of
// attaching, and changes nothing. What cannot be foreseen is a warning: that no disk would make room. Errors are
// matcher.ErrInvalidRequest.
func (c *Chooser) Match(r matcher.Request) (matcher.Decision, error) {
	r.Rules.AttachCostBytes = c.AttachCostBytes
	now := time.Now()
	d, err := c.decide(r, now)
	if err != nil {
		return d, err
	}
	if w := c.noRoomFor(d.Chosen, now); w != "" {
		d.Warnings = append(d.Warnings, w)
	}
	return d, nil
}

// decide asks the index, once it knows what is attached.
func (c *Chooser) decide(r matcher.Request, now time.Time) (matcher.Decision, error) {
	c.refresh(now)
	r.Images = slices.Clone(r.Images)
	for i := range r.Images {
		r.Images[i].Layers = c.withPresent(r.Images[i].Layers)
	}
	return c.index.Match(r)
}

// withPresent marks the layers that a disk serves which is attached and of no image snapshot that is known: nobody need
// be chosen for them. Those of image snapshots are left to the matcher, which knows that they are attached.
func (c *Chooser) withPresent(layers []matcher.Layer) []matcher.Layer {
	if layers == nil {
		return nil // not known is another thing than none
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
		c.mu.Lock()
		l.Present = l.Present || len(c.byUUID[held.DiskUUID]) == 0
		c.mu.Unlock()
	}
	return layers
}

// noRoomFor says which of the chosen could not be attached for want of room; empty if all could.
func (c *Chooser) noRoomFor(chosen []matcher.Choice, now time.Time) string {
	disks := c.Stage.Disks()
	c.mu.Lock()
	defer c.mu.Unlock()
	count, idle := c.census(disks, nil, now)
	spare := c.MaxDisks - count + len(idle)
	var without []string
	for _, choice := range chosen {
		if it := c.items[choice.ID]; it == nil || choice.Attached || c.pending[it.disk] != nil {
			continue
		}
		if spare--; c.MaxDisks > 0 && spare < 0 {
			without = append(without, choice.Name)
		}
	}
	if len(without) == 0 {
		return ""
	}
	return fmt.Sprintf("%d layer disks are attached, as many as allowed, and none can make room: a pull goes on without that of %v", count, without)
}
