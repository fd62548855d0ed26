package matcher

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Match decides which image snapshots to use for the request. An error is ErrInvalidRequest; a rejection by the rules
// is an outcome, not an error.
func (x *Index) Match(r Request) (Decision, error) {
	if err := r.validate(); err != nil {
		return Decision{}, err
	}
	rules := &r.Rules
	pinned := !rules.Pin.IsZero()
	switch {
	case !pinned && !rules.AutoMatch:
		return Decision{Reason: "neither automatic matching nor an image snapshot is asked for", Proven: true}, nil
	case pinned && rules.AutoMatch && rules.Conflict == ConflictRejectBoth:
		return rejected(RejectConflict, fmt.Sprintf("image snapshot %s is asked for and automatic matching too: ask for one of both",
			rules.Pin)), nil
	}

	p := newPlan(&r)
	x.mu.RLock()
	defer x.mu.RUnlock()
	s := x.scratch()
	defer x.putScratch(s)
	g := &gathered{scratch: s, index: x, plan: p, now: noTime}
	if !r.Now.IsZero() {
		g.now = r.Now.UnixMicro()
	}
	g.platforms = g.wanted()
	m := &match{g: g, o: &ordering{g: g, keys: orderKeys(rules.Order), run: newBitset(max(len(p.items), len(p.pulls.bytes)))}}
	at, refusal := m.resolvePin(rules.Pin)
	g.gather()
	m.o.judge()
	d := m.decide(at, refusal)
	m.explain(&d, r.Explain)
	return d, nil
}

// match is the decision on one request.
type match struct {
	g *gathered
	o *ordering
}

// noTime is before every time at which a candidate may expire.
const noTime = -1 << 63

func rejected(code RejectCode, message string) Decision {
	return Decision{Outcome: OutcomeReject, Reason: message, Rejection: &Rejection{Code: code, Message: message}, Proven: true}
}

// decide follows the rules for pins and automatic matching. at is the pinned one's place among the touched, -1 if there
// is none; refusal says why the pin means nothing.
func (m *match) decide(at int, refusal *Rejection) Decision {
	rules := m.g.plan.rules
	if rules.Pin.IsZero() {
		return m.auto()
	}
	if at >= 0 {
		refusal = m.pinRefusal(&m.g.touched[at])
	}
	if refusal != nil {
		if rules.RejectIfUnavailable {
			return rejected(refusal.Code, refusal.Message)
		}
		// C-10: a pin that cannot be used means a pull, also where automatic matching would know another one.
		return Decision{
			Reason: refusal.Message + "; the images are pulled", Warnings: []string{refusal.Message}, Proven: true,
		}
	}
	t := &m.g.touched[at]
	if rules.PinNeedsMatch && m.g.exact(t).empty() {
		return Decision{
			Reason: fmt.Sprintf("image snapshot %s holds none of the images; they are pulled", rules.Pin), Proven: true,
		}
	}
	return m.usePin(at)
}

// usePin takes the pinned one after a look at what automatic matching would take.
func (m *match) usePin(at int) Decision {
	rules, t := m.g.plan.rules, &m.g.touched[at]
	r := &m.g.index.records[t.slot]
	d := Decision{
		Outcome: OutcomeUse, Reason: fmt.Sprintf("image snapshot %q is asked for", r.name), Proven: true, Saved: m.g.groups[t.group].saved,
		Chosen: []Choice{{Name: r.name, ID: r.id, Attached: m.g.index.states[t.slot].attached, Pinned: true}},
	}
	if m.g.has(t).empty() && m.g.exact(t).empty() {
		d.Warnings = append(d.Warnings, fmt.Sprintf("image snapshot %q is asked for but shares no layer with the images", r.name))
	}
	if !rules.AutoMatch || rules.Conflict == ConflictPinWinsSilently {
		return d
	}
	auto := m.auto()
	d.Warnings = append(d.Warnings, auto.Warnings...)
	if len(auto.Chosen) == 0 || slices.ContainsFunc(auto.Chosen, func(c Choice) bool { return c.ID == r.id }) {
		return d
	}
	other := auto.Chosen[0].Name
	if rules.Conflict == ConflictRejectIfDifferent {
		return rejected(RejectConflict, fmt.Sprintf(
			"image snapshot %q is asked for, but automatic matching, which is asked for too, takes %q: ask for one of both", r.name, other))
	}
	d.Warnings = append(d.Warnings, fmt.Sprintf(
		"image snapshot %q is asked for and used; automatic matching, which is asked for too, would take %q", r.name, other))
	return d
}

// resolvePin finds the pinned candidate and touches it, so that it is explained whatever it holds.
func (m *match) resolvePin(pin Pin) (int, *Rejection) {
	if pin.IsZero() {
		return -1, nil
	}
	slots := m.pinSlots(pin)
	if len(slots) == 0 {
		message := fmt.Sprintf("image snapshot %s does not exist", pin)
		if pin.Name != "" && pin.ID != "" {
			message = fmt.Sprintf("no image snapshot has both the name %q and the ID %q that are asked for", pin.Name, pin.ID)
		}
		return -1, &Rejection{Code: RejectNotFound, Message: message}
	}
	// Where several have the name, as while one is replaced, the newest that may be used is meant.
	best := slices.MinFunc(slots, func(a, b uint32) int {
		if ua, ub := m.g.unusable(a) == "", m.g.unusable(b) == ""; ua != ub {
			if ua {
				return -1
			}
			return 1
		}
		if c := cmp.Compare(m.g.index.states[b].created, m.g.index.states[a].created); c != 0 {
			return c
		}
		return cmp.Compare(m.g.index.records[a].id, m.g.index.records[b].id)
	})
	at := m.g.touch(best)
	m.g.touched[at].pinned = true
	return at, nil
}

func (m *match) pinSlots(pin Pin) []uint32 {
	byID := func(id string) []uint32 {
		if slot, ok := m.g.index.byID[id]; ok {
			return []uint32{slot}
		}
		return nil
	}
	if pin.Name == "" {
		return byID(pin.ID)
	}
	slots := m.g.index.byName[pin.Name]
	if len(slots) == 0 && pin.NameOrID {
		slots = byID(pin.Name)
	}
	if pin.ID == "" {
		return slots
	}
	var both []uint32
	for _, s := range slots {
		if m.g.index.records[s].id == pin.ID {
			both = append(both, s)
		}
	}
	return both
}

// pinRefusal says why the pinned candidate may not be used, nil if it may.
func (m *match) pinRefusal(t *touched) *Rejection {
	switch t.verdict {
	case VerdictNotReady, VerdictExpired, VerdictPlatform, VerdictUnreachable:
		r := &m.g.index.records[t.slot]
		return &Rejection{
			Code:    RejectUnavailable,
			Message: fmt.Sprintf("image snapshot %q cannot be used: %s", r.name, m.g.unusableText(t)),
		}
	default:
		return nil
	}
}

// unusableText is the sentence to an unusable candidate's verdict.
func (g *gathered) unusableText(t *touched) string {
	r := &g.index.records[t.slot]
	switch t.verdict {
	case VerdictNotReady:
		return fmt.Sprintf("its state is %.80q, not %q", r.state, StateAvailable)
	case VerdictExpired:
		return "it expired at " + time.UnixMicro(g.index.states[t.slot].expires).UTC().Format("2006-01-02 15:04:05 UTC")
	case VerdictPlatform:
		return fmt.Sprintf("it holds images for %s, wanted is %s", platformList(g.platformsOf(r)), platformList(g.wantedPlatforms()))
	case VerdictUnreachable:
		return "this node cannot attach it: " + r.unreachable
	default:
		return ""
	}
}

func (g *gathered) platformsOf(r *record) []Platform {
	var held []Platform
	for _, number := range r.images {
		if p := g.index.content.images.at(number).Platform; !slices.Contains(held, p) {
			held = append(held, p)
		}
	}
	return held
}

func (g *gathered) wantedPlatforms() []Platform {
	var wanted []Platform
	for i := range g.plan.images {
		if p := g.plan.images[i].platform; !slices.Contains(wanted, p) {
			wanted = append(wanted, p)
		}
	}
	return wanted
}
