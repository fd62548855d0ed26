package matcher

import (
	"cmp"
	"hash/maphash"
	"slices"
)

// orderKeys are the orders of docs/matching.md (Q5) as data: a new order is a new row.
func orderKeys(o Order) []KeyName {
	switch o {
	case OrderSize:
		return []KeyName{KeyBytes, KeyCreated}
	case OrderQuantity:
		return []KeyName{KeyImages, KeyCreated}
	case OrderDegree:
		return []KeyName{KeyImages, KeyBytes, KeyCreated}
	default:
		return []KeyName{KeySaved, KeyUnpack, KeyAttached, KeyImages, KeyCreated}
	}
}

// maxKeys is the longest row of orderKeys.
const maxKeys = 5

// score holds the values of an order's keys, the rest is 0.
type score [maxKeys]int64

// rate scores a candidate whose group is known.
func (m *match) rate(t *touched) {
	s, g := &m.index.states[t.slot], &m.groups[t.group]
	for k, name := range m.keys {
		switch name {
		case KeySaved:
			t.score[k] = g.saved.DownloadBytes
			if !s.attached {
				t.score[k] -= m.plan.rules.AttachCostBytes
			}
		case KeyUnpack:
			t.score[k] = g.saved.UnpackBytes
		case KeyAttached:
			if s.attached {
				t.score[k] = 1
			}
		case KeyImages:
			t.score[k] = int64(g.exact.count())
		case KeyBytes:
			t.score[k] = g.bytes + t.imageBytes
		case KeyCreated:
			t.score[k] = s.created
		}
	}
}

func (m *match) groupFor(seed maphash.Seed, has, exact bitset) int {
	h := uint64(len(has))
	for _, w := range has {
		h = maphash.Comparable(seed, [2]uint64{h, w})
	}
	for _, w := range exact {
		h = maphash.Comparable(seed, [2]uint64{h, w})
	}
	for _, g := range m.groupOf[h] {
		if m.groups[g].of(has, exact) {
			return g
		}
	}
	m.groups = append(m.groups, group{has: has, exact: exact, saved: m.plan.saving(has, m.run), bytes: m.bytesOf(has, exact)})
	g := len(m.groups) - 1
	m.groupOf[h] = append(m.groupOf[h], g)
	return g
}

func (g *group) of(has, exact bitset) bool {
	return slices.Equal(g.has, has) && slices.Equal(g.exact, exact)
}

// bytesOf are the sizes of the images in exact, as far as the request knows their layers, and of the single layers that
// match of other images.
func (m *match) bytesOf(has, exact bitset) int64 {
	var sum int64
	m.run.clear()
	exact.each(func(i int) {
		for _, item := range m.plan.images[i].items {
			m.run.set(item)
			if m.plan.images[i].known {
				sum += m.plan.items[item].compressed
			}
		}
	})
	has.each(func(item int) {
		if !m.run.has(item) {
			sum += m.plan.items[item].compressed
		}
	})
	return sum
}

// compare is positive if a is better than b by the keys of the order alone, and says which key decided.
func (m *match) compare(a, b *touched) (int, KeyName) {
	for k, name := range m.keys {
		if c := cmp.Compare(a.score[k], b.score[k]); c != 0 {
			return c, name
		}
	}
	return 0, ""
}

// better orders candidates completely: by the keys, then by name and ID, the lowest first.
func (m *match) better(a, b *touched) bool {
	if c, _ := m.compare(a, b); c != 0 {
		return c > 0
	}
	ra, rb := &m.index.records[a.slot], &m.index.records[b.slot]
	if ra.name != rb.name {
		return ra.name < rb.name
	}
	return ra.id < rb.id
}
