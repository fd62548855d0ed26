package matcher

import "slices"

const (
	// maxSets is how many sets of disks are tried one by one; beyond that a set is put together step by step. 2,000
	// sets take about 0.3 ms for a pod of ten images.
	maxSets = 2000
	// maxPool bounds the different candidates that a set is put together from, the best ones by themselves.
	maxPool = 256
)

// setSearch looks for the best set of disks to attach beside those that are attached already, which serve what they
// have anyway and cost nothing. The objective, the first difference decides: saved download bytes less the cost of each
// newly attached disk; bytes that need no unpacking; fewer new disks; better ranks of the members, the best member
// first.
type setSearch struct {
	g     *gathered
	o     *ordering
	base  bitset // items of the attached ones
	pool  []int  // places among the touched, by rank, none of them covered by a better one
	limit int    // of new disks

	best   []int // places in pool, ascending
	net    int64 // of best: saved download bytes less cost
	unpack int64
}

// chooseSaved gives places among the touched, by rank, and whether no other set is better.
func (m *match) chooseSaved(usable []int) (chosen []int, proven bool) {
	s := setSearch{g: m.g, o: m.o, base: newBitset(len(m.g.plan.items)), limit: m.g.plan.rules.MaxAttach}
	if s.limit == 0 {
		s.limit = DefaultMaxAttach
	}
	attached, others := m.bestOfGroups(usable)
	for _, i := range attached {
		s.base.or(m.g.has(&m.g.touched[i]))
	}
	complete := s.fill(others)
	now := m.g.plan.saving(s.base, m.o.run)
	s.net, s.unpack = now.DownloadBytes, now.UnpackBytes
	if complete && s.sets() <= maxSets {
		s.all(0, nil, s.base)
		proven = true
	} else {
		proven = s.stepwise() && complete
	}

	has := slices.Clone(m.g.plan.present)
	for _, at := range s.best {
		chosen = append(chosen, s.pool[at])
		has.or(m.g.has(&m.g.touched[s.pool[at]]))
	}
	for _, i := range attached { // those that add something are in use too
		if !m.g.has(&m.g.touched[i]).within(has) {
			chosen = append(chosen, i)
			has.or(m.g.has(&m.g.touched[i]))
		}
	}
	slices.SortFunc(chosen, m.o.rank)
	return chosen, proven
}

// bestOfGroups gives the best of each group, attached and other ones apart, each by rank. The rest of a group has
// nothing that its best does not have.
func (m *match) bestOfGroups(usable []int) (attached, others []int) {
	best := make([][2]int, len(m.g.groups)) // 1 + place among the touched
	for _, i := range usable {
		t, kind := &m.g.touched[i], 0
		if m.g.index.states[t.slot].attached {
			kind = 1
		}
		b := &best[t.group][kind]
		if *b == 0 || m.o.better(t, &m.g.touched[*b-1]) {
			*b = i + 1
		}
	}
	for _, b := range best {
		if b[0] != 0 {
			others = append(others, b[0]-1)
		}
		if b[1] != 0 {
			attached = append(attached, b[1]-1)
		}
	}
	slices.SortFunc(attached, m.o.rank)
	slices.SortFunc(others, m.o.rank)
	return attached, others
}

// fill makes the pool from candidates in the order of rank. One that a better one covers is left out: in any set the
// better one could stand for it. It tells whether all of the rest found room.
func (s *setSearch) fill(others []int) bool {
	free := slices.Clone(s.g.plan.present)
	free.or(s.base)
	adds := func(i int) bitset { // what it has beside what is free
		b := slices.Clone(s.g.has(&s.g.touched[i]))
		for w := range b {
			b[w] &^= free[w]
		}
		return b
	}
	var kept []bitset
	for _, i := range others {
		b := adds(i)
		if b.empty() || slices.ContainsFunc(kept, b.within) {
			continue
		}
		if len(kept) == maxPool {
			return false
		}
		kept, s.pool = append(kept, b), append(s.pool, i)
	}
	return true
}

// sets is the number of sets of at most limit disks, or some number above maxSets.
func (s *setSearch) sets() int {
	total, choose := 0, 1
	for k := 1; k <= min(s.limit, len(s.pool)); k++ {
		choose = choose * (len(s.pool) - k + 1) / k
		if total += choose; total > maxSets {
			break
		}
	}
	return total
}

// all tries every set that extends this one by places from the given one on, in lexical order, so that of equals the
// one of better rank comes first.
func (s *setSearch) all(from int, set []int, has bitset) {
	if len(set) == s.limit {
		return
	}
	set = append(set, 0)
	for at := from; at < len(s.pool); at++ {
		with := slices.Clone(has)
		with.or(s.g.has(&s.g.touched[s.pool[at]]))
		set[len(set)-1] = at
		s.try(set, with)
		s.all(at+1, set, with)
	}
}

// try keeps the set if it is better than the best so far.
func (s *setSearch) try(set []int, has bitset) {
	saved := s.g.plan.saving(has, s.o.run)
	net := saved.DownloadBytes - int64(len(set))*s.g.plan.rules.AttachCostBytes
	switch {
	case net < s.net, net == s.net && saved.UnpackBytes < s.unpack:
		return
	case net == s.net && saved.UnpackBytes == s.unpack && len(set) >= len(s.best):
		return // of the same number the first one is of better rank
	}
	s.best, s.net, s.unpack = append(s.best[:0], set...), net, saved.UnpackBytes
}

// stepwise adds the disk that helps most until the limit, and keeps the best set on the way. It tells whether the
// result is certainly the best: if one disk or two save what all together would, and one alone would not do.
func (s *setSearch) stepwise() bool {
	everything := slices.Clone(s.base)
	for _, i := range s.pool {
		everything.or(s.g.has(&s.g.touched[i]))
	}
	bound := s.g.plan.saving(everything, s.o.run)
	has, set := slices.Clone(s.base), []int{}
	with := newBitset(len(s.g.plan.items))
	for len(set) < min(s.limit, len(s.pool)) {
		next, most := -1, Saving{-1, -1}
		for at, i := range s.pool {
			if slices.Contains(set, at) {
				continue
			}
			copy(with, has)
			with.or(s.g.has(&s.g.touched[i]))
			saved := s.g.plan.saving(with, s.o.run)
			if saved.DownloadBytes > most.DownloadBytes ||
				saved.DownloadBytes == most.DownloadBytes && saved.UnpackBytes > most.UnpackBytes {
				next, most = at, saved
			}
		}
		set = append(set, next)
		has.or(s.g.has(&s.g.touched[s.pool[next]]))
		ascending := slices.Clone(set)
		slices.Sort(ascending)
		s.try(ascending, has)
	}
	reached := s.net+int64(len(s.best))*s.g.plan.rules.AttachCostBytes == bound.DownloadBytes && s.unpack == bound.UnpackBytes
	return reached && len(s.best) <= 2
}
