package matcher

import (
	"fmt"
	"slices"
)

// auto is automatic matching.
func (m *match) auto() Decision {
	d := Decision{Proven: true}
	rules := m.g.plan.rules
	if !rules.PerfectMatch && rules.MatchCount > m.g.plan.entries {
		d.Warnings = append(d.Warnings, fmt.Sprintf(
			"%d images have to match exactly but there are only %d, so nothing ever matches", rules.MatchCount, m.g.plan.entries))
	}
	usable := m.g.usable
	d.NothingMatched = !slices.ContainsFunc(usable, func(i int) bool { return !m.g.exact(&m.g.touched[i]).empty() })
	if len(usable) == 0 {
		d.Reason = "no image snapshot that may be used matches"
		return d
	}
	var chosen []int
	if rules.Order == OrderSaved {
		chosen, d.Proven = m.chooseSaved(usable)
	} else {
		chosen = []int{slices.MinFunc(usable, m.o.rank)}
	}
	if len(chosen) == 0 {
		d.Reason = "no image snapshot saves more than attaching it costs"
		return d
	}
	d.Outcome = OutcomeUse
	has := newBitset(len(m.g.plan.items))
	for _, i := range chosen {
		t := &m.g.touched[i]
		r := &m.g.index.records[t.slot]
		has.or(m.g.has(t))
		d.Chosen = append(d.Chosen, Choice{Name: r.name, ID: r.id, Attached: m.g.index.states[t.slot].attached, Pinned: t.pinned})
	}
	d.Saved = m.g.plan.saving(has, m.o.run)
	d.Reason = fmt.Sprintf("image snapshot %q is the best of %d by the order %q", d.Chosen[0].Name, len(usable), rules.Order)
	if len(chosen) > 1 {
		d.Reason = fmt.Sprintf("%d image snapshots together are the best choice from %d by the order %q",
			len(chosen), len(usable), rules.Order)
	}
	return d
}

// rank sorts the best first.
func (o *ordering) rank(a, b int) int {
	switch {
	case a == b:
		return 0
	case o.better(&o.g.touched[a], &o.g.touched[b]):
		return -1
	default:
		return 1
	}
}
