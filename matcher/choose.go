package matcher

import (
	"fmt"
	"slices"
)

// auto is automatic matching.
func (m *match) auto() Decision {
	d := Decision{Proven: true}
	rules := m.plan.rules
	if !rules.PerfectMatch && rules.MatchCount > m.plan.entries {
		d.Warnings = append(d.Warnings, fmt.Sprintf(
			"%d images have to match exactly but there are only %d, so nothing ever matches", rules.MatchCount, m.plan.entries))
	}
	usable := m.usable
	d.NothingMatched = !slices.ContainsFunc(usable, func(i int) bool { return !m.exact(&m.touched[i]).empty() })
	if len(usable) == 0 {
		d.Reason = "no image snapshot that may be used matches"
		return d
	}
	var chosen []int
	if rules.Order == OrderSaved {
		chosen, d.Proven = m.chooseSaved(usable)
	} else {
		chosen = []int{slices.MinFunc(usable, m.rank)}
	}
	if len(chosen) == 0 {
		d.Reason = "no image snapshot saves more than attaching it costs"
		return d
	}
	d.Outcome = OutcomeUse
	has := newBitset(len(m.plan.items))
	for _, i := range chosen {
		t := &m.touched[i]
		r := &m.index.records[t.slot]
		has.or(m.has(t))
		d.Chosen = append(d.Chosen, Choice{Name: r.name, ID: r.id, Attached: m.index.states[t.slot].attached, Pinned: t.pinned})
	}
	d.Saved = m.plan.saving(has, m.run)
	d.Reason = fmt.Sprintf("image snapshot %q is the best of %d by the order %q", d.Chosen[0].Name, len(usable), rules.Order)
	if len(chosen) > 1 {
		d.Reason = fmt.Sprintf("%d image snapshots together are the best choice from %d by the order %q",
			len(chosen), len(usable), rules.Order)
	}
	return d
}

// rank sorts the best first.
func (m *match) rank(a, b int) int {
	switch {
	case a == b:
		return 0
	case m.better(&m.touched[a], &m.touched[b]):
		return -1
	default:
		return 1
	}
}
