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

// ordering says who of those gathered may be used, and who is better.
type ordering struct {
	g    *gathered
	keys []KeyName // of the order
	run  bitset    // scratch of plan.saving
}

// rate scores a candidate whose group is known.
func (o *ordering) rate(t *touched) {
	s, g := &o.g.index.states[t.slot], &o.g.groups[t.group]
	for k, name := range o.keys {
		switch name {
		case KeySaved:
			t.score[k] = g.saved.DownloadBytes
			if !s.attached {
				t.score[k] -= o.g.plan.rules.AttachCostBytes
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

func (o *ordering) groupFor(seed maphash.Seed, has, exact bitset) int {
	h := uint64(len(has))
	for _, w := range has {
		h = maphash.Comparable(seed, [2]uint64{h, w})
	}
	for _, w := range exact {
		h = maphash.Comparable(seed, [2]uint64{h, w})
	}
	for _, g := range o.g.groupOf[h] {
		if o.g.groups[g].of(has, exact) {
			return g
		}
	}
	o.g.groups = append(o.g.groups, group{has: has, exact: exact, saved: o.g.plan.saving(has, o.run), bytes: o.bytesOf(has, exact)})
	g := len(o.g.groups) - 1
	o.g.groupOf[h] = append(o.g.groupOf[h], g)
	return g
}

func (g *group) of(has, exact bitset) bool {
	return slices.Equal(g.has, has) && slices.Equal(g.exact, exact)
}

// bytesOf are the sizes of the images in exact, as far as the request knows their layers, and of the single layers that
// match of other images.
func (o *ordering) bytesOf(has, exact bitset) int64 {
	var sum int64
	o.run.clear()
	exact.each(func(i int) {
		for _, item := range o.g.plan.images[i].items {
			o.run.set(item)
			if o.g.plan.images[i].known {
				sum += o.g.plan.items[item].compressed
			}
		}
	})
	has.each(func(item int) {
		if !o.run.has(item) {
			sum += o.g.plan.items[item].compressed
		}
	})
	return sum
}

// compare is positive if a is better than b by the keys of the order alone, and says which key decided.
func (o *ordering) compare(a, b *touched) (int, KeyName) {
	for k, name := range o.keys {
		if c := cmp.Compare(a.score[k], b.score[k]); c != 0 {
			return c, name
		}
	}
	return 0, ""
}

// better orders candidates completely: by the keys, then by name and ID, the lowest first.
func (o *ordering) better(a, b *touched) bool {
	if c, _ := o.compare(a, b); c != 0 {
		return c > 0
	}
	ra, rb := &o.g.index.records[a.slot], &o.g.index.records[b.slot]
	if ra.name != rb.name {
		return ra.name < rb.name
	}
	return ra.id < rb.id
}
