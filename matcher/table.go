package matcher

// table holds each distinct thing (an image or a layer, as candidates describe them) once, under a number, with the
// slots of the candidates that have it.
type table[T comparable] struct {
	things  []T
	holders []few // slots, by number; meaningless where free
	lists   lists // of holders
	free    []uint32
}

// at gives a thing by its number.
func (t *table[T]) at(number uint32) *T { return &t.things[number] }

// slots of the candidates that have the thing.
func (t *table[T]) slots(number uint32, one *[1]uint32) []uint32 {
	return t.lists.members(t.holders[number], one)
}

// among gives the number of the thing if it is one of the numbers.
func (t *table[T]) among(numbers []uint32, thing *T) (uint32, bool) {
	for _, n := range numbers {
		if t.things[n] == *thing {
			return n, true
		}
	}
	return 0, false
}

// add numbers a new thing that the candidate in slot has.
func (t *table[T]) add(thing *T, slot uint32) uint32 {
	if last := len(t.free) - 1; last >= 0 {
		number := t.free[last]
		t.free = t.free[:last]
		t.things[number], t.holders[number] = *thing, few(slot)
		return number
	}
	t.things = append(t.things, *thing)
	t.holders = append(t.holders, few(slot))
	return uint32(len(t.things) - 1)
}

// hold adds a holder to a thing. The second holding by the candidate that was added last is ignored and answered with
// false.
func (t *table[T]) hold(number, slot uint32) bool {
	var one [1]uint32
	if slots := t.slots(number, &one); slots[len(slots)-1] == slot {
		return false
	}
	t.holders[number] = t.lists.with(t.holders[number], slot)
	return true
}

// release takes out a holder and tells whether it was the last one. The number is free then.
func (t *table[T]) release(number, slot uint32) bool {
	var gone bool
	if t.holders[number], gone = t.lists.without(t.holders[number], slot); gone {
		var none T
		t.things[number] = none
		t.free = append(t.free, number)
	}
	return gone
}
