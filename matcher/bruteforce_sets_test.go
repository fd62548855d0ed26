package matcher_test

import (
	"slices"

	. "berth.dev/berth/matcher"
)

func (o oracle) auto(a answer) answer {
	rules := o.r.Rules
	var usable []*Candidate
	a.nothing = true
	for i := range o.fleet {
		c := &o.fleet[i]
		containers := 0
		for _, w := range o.r.Images {
			if exactly(w, c) {
				containers++
			}
		}
		switch {
		case a.unusable[c.Name] != "", len(o.has(c)) == 0 && o.exact(c) == 0:
		case rules.PerfectMatch && containers < len(o.r.Images):
		case !rules.PerfectMatch && containers < rules.MatchCount:
		default:
			usable = append(usable, c)
			a.nothing = a.nothing && containers == 0
		}
	}
	if !rules.Pin.IsZero() {
		a.nothing = false
	}
	if len(usable) == 0 {
		return a
	}
	slices.SortStableFunc(usable, func(x, y *Candidate) int { return -slices.Compare(o.keys(x), o.keys(y)) }) // ties keep the order of names
	chosen := usable[:1]
	if rules.Order == OrderSaved {
		chosen = o.bestSet(usable)
	}
	for _, c := range chosen {
		a.chosen = append(a.chosen, c.Name)
	}
	if len(chosen) > 0 {
		a.outcome, a.saved = OutcomeUse, o.saving(chosen)
	}
	return a
}

// bestSet tries all sets of candidates that are not attached; usable is by rank.
func (o oracle) bestSet(usable []*Candidate) []*Candidate {
	var attached []*Candidate
	var others []int
	for n, c := range usable {
		if c.Attached {
			attached = append(attached, c)
		} else {
			others = append(others, n)
		}
	}
	limit := o.r.Rules.MaxAttach
	if limit == 0 {
		limit = DefaultMaxAttach
	}
	var best []int
	var bestKeys []int64
	for mask := range 1 << len(others) {
		var set []int
		disks := slices.Clone(attached)
		for b, n := range others {
			if mask&(1<<b) != 0 {
				set = append(set, n)
				disks = append(disks, usable[n])
			}
		}
		if len(set) > limit {
			continue
		}
		s := o.saving(disks)
		keys := []int64{s.DownloadBytes - int64(len(set))*o.r.Rules.AttachCostBytes, s.UnpackBytes, -int64(len(set))}
		for _, n := range set {
			keys = append(keys, -int64(n)) // better ranks are lower
		}
		if bestKeys == nil || slices.Compare(keys, bestKeys) > 0 {
			best, bestKeys = set, keys
		}
	}
	covered := o.present()
	var chosen []*Candidate
	add := func(c *Candidate, always bool) {
		adds := always
		for it := range o.has(c) {
			adds = adds || !covered[it]
		}
		if adds {
			chosen = append(chosen, c)
			for it := range o.has(c) {
				covered[it] = true
			}
		}
	}
	for _, n := range best {
		add(usable[n], true)
	}
	for _, c := range attached {
		add(c, false)
	}
	slices.SortFunc(chosen, func(x, y *Candidate) int { return slices.Index(usable, x) - slices.Index(usable, y) })
	return chosen
}
