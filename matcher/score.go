package matcher

import (
	"cmp"
	"hash/maphash"
	"slices"
)

// orderKeys are the orders of requirement 2.5 as data: a new order is a new row.
var orderKeys = [...][]KeyName{
	OrderSaved:    {KeySaved, KeyUnpack, KeyAttached, KeyImages, KeyCreated},
	OrderSize:     {KeyBytes, KeyCreated},
	OrderQuantity: {KeyImages, KeyCreated},
	OrderDegree:   {KeyImages, KeyBytes, KeyCreated},
}

// maxKeys is the longest row of orderKeys.
const maxKeys = 5

// score holds the values of an order's keys, the rest is 0.
type score [maxKeys]int64

// rate scores all touched candidates. What a set of items saves is worked out once per distinct set, because thousands of
// candidates may share just the base layers.
func (m *match) rate() {
	seed := maphash.MakeSeed()
	last := -1
	for i := range m.touched {
		t := &m.touched[i]
		if last < 0 || !m.groups[last].of(t) {
			last = m.groupFor(seed, t)
		}
		t.group = last
		t.saved = m.groups[t.group].saved
		for k, name := range orderKeys[m.plan.rules.Order] {
			t.score[k] = m.value(t, name)
		}
	}
}

func (m *match) groupFor(seed maphash.Seed, t *touched) int {
	h := uint64(len(t.has))
	for _, w := range t.has {
		h = maphash.Comparable(seed, [2]uint64{h, w})
	}
	for _, w := range t.exact {
		h = maphash.Comparable(seed, [2]uint64{h, w})
	}
	for _, g := range m.groupOf[h] {
		if m.groups[g].of(t) {
			return g
		}
	}
	m.groups = append(m.groups, group{
		has: t.has, exact: t.exact, saved: m.plan.saving(t.has, m.run), bytes: m.bytesOf(t.has, t.exact),
	})
	g := len(m.groups) - 1
	m.groupOf[h] = append(m.groupOf[h], g)
	return g
}

func (g *group) of(t *touched) bool {
	return slices.Equal(g.has, t.has) && slices.Equal(g.exact, t.exact)
}

func (m *match) value(t *touched, name KeyName) int64 {
	s := &m.index.states[t.slot]
	switch name {
	case KeySaved:
		if s.attached {
			return t.saved.DownloadBytes
		}
		return t.saved.DownloadBytes - m.plan.rules.AttachCostBytes
	case KeyUnpack:
		return t.saved.UnpackBytes
	case KeyAttached:
		if s.attached {
			return 1
		}
		return 0
	case KeyImages:
		return int64(t.exact.count())
	case KeyBytes:
		return m.groups[t.group].bytes + t.imageBytes
	case KeyCreated:
		return s.created
	}
	return 0
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
	for k, name := range orderKeys[m.plan.rules.Order] {
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
