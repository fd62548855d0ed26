package dialect

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"berth.dev/berth/matcher"
)

// maxWarnings about unknown annotations.
const maxWarnings = 10

// request puts together what was settled.
func (p *parser) request() Request {
	r := Request{
		Dialects:            p.used,
		PlainHTTPRegistries: p.hosts(MeansPlainHTTP),
		InsecureRegistries:  p.hosts(MeansInsecure),
	}
	p.pin(&r.Rules)
	auto := p.auto(&r.Rules)
	r.Rules.PerfectMatch = p.isTrue(MeansPerfectMatch)
	r.Rules.MatchCount, _ = p.number(MeansMatchCount)
	if minutes, ok := p.number(MeansKeepDisk); ok {
		keep := time.Duration(minutes) * time.Minute
		r.KeepDisk = &keep
	}
	if _, ok := p.value(MeansCreate); ok {
		r.CreateIfMissing = p.isTrue(MeansCreate)
	} else {
		r.CreateIfMissing = r.Rules.AutoMatch && slices.ContainsFunc(auto, func(d *Dialect) bool { return d.CreateWithAuto })
	}
	return r
}

// auto decides on automatic matching and its order, and gives the dialects that it is from.
func (p *parser) auto(rules *matcher.Rules) []*Dialect {
	var from []*Dialect
	switch _, said := p.value(MeansAutoMatch); {
	case said:
		rules.AutoMatch = p.isTrue(MeansAutoMatch)
		for _, s := range p.said[MeansAutoMatch] {
			from = append(from, s.by)
		}
	case !rules.Pin.IsZero():
		// A default must not turn somebody's pin into a conflict.
	default:
		for _, d := range p.optedIn {
			if d.AutoDefault {
				from = append(from, d)
			}
		}
		rules.AutoMatch = p.in.AutoMatch || len(from) > 0
	}
	strategy, said := p.value(MeansStrategy)
	switch {
	case said && !rules.AutoMatch:
		p.warnings = append(p.warnings, fmt.Sprintf("annotation %s has no effect without automatic matching", p.said[MeansStrategy][0].key))
	case said:
		if order, err := matcher.ParseOrder(strategy); err == nil { // canonical values parse
			rules.Order = order
		}
	case rules.AutoMatch:
		rules.Order = p.commonOrder(from)
	}
	return from
}

// commonOrder is that of the dialects which ask for automatic matching, or the neutral one if they differ.
func (p *parser) commonOrder(from []*Dialect) matcher.Order {
	if len(from) == 0 {
		return matcher.OrderSaved
	}
	for _, d := range from {
		if d.Order != from[0].Order {
			p.warnings = append(p.warnings, fmt.Sprintf(
				"dialects %s and %s compare image snapshots in different orders, so the order %q is used", from[0].Name, d.Name, matcher.OrderSaved))
			return matcher.OrderSaved
		}
	}
	return from[0].Order
}

// pin takes the behaviour of the dialects that pin; of several the strictest.
func (p *parser) pin(rules *matcher.Rules) {
	var from []*Dialect
	for _, m := range []Meaning{MeansPin, MeansPinName, MeansPinID} {
		for _, s := range p.said[m] {
			from = append(from, s.by)
		}
	}
	if v, ok := p.value(MeansPin); ok {
		rules.Pin = matcher.Pin{Name: v, NameOrID: true}
	} else {
		rules.Pin.Name, _ = p.value(MeansPinName)
		rules.Pin.ID, _ = p.value(MeansPinID)
	}
	for i, d := range from {
		if i == 0 || strictness(d.Conflict) > strictness(rules.Conflict) {
			rules.Conflict = d.Conflict
		}
		rules.RejectIfUnavailable = rules.RejectIfUnavailable || d.RejectUnavailable
		rules.PinNeedsMatch = rules.PinNeedsMatch || d.PinNeedsMatch
	}
	if p.isTrue(MeansReject) {
		rules.RejectIfUnavailable = true
	} else if said := p.said[MeansReject]; len(said) > 0 && said[0].by.Neutral {
		rules.RejectIfUnavailable = false
	}
	if v, ok := p.value(MeansConflict); ok {
		if policy, err := matcher.ParseConflictPolicy(v); err == nil { // canonical values parse
			rules.Conflict = policy
		}
	}
	if p.in.StrictConflict && rules.Conflict == matcher.ConflictRejectIfDifferent {
		rules.Conflict = matcher.ConflictRejectBoth
	}
}

func strictness(c matcher.ConflictPolicy) int {
	switch c {
	case matcher.ConflictPinWinsSilently:
		return 0
	case matcher.ConflictPinWins:
		return 1
	case matcher.ConflictRejectIfDifferent:
		return 2
	default:
		return 3
	}
}

// hosts joins lists of registries: two that differ do not contradict one another.
func (p *parser) hosts(m Meaning) []string {
	var hosts []string
	for _, s := range p.said[m] {
		hosts = append(hosts, strings.Split(s.value, ",")...)
	}
	slices.Sort(hosts)
	return slices.Compact(hosts)
}

// warnUnknown finds typing errors in the neutral dialect. Other vendors' prefixes have many annotations of other
// purposes.
func (p *parser) warnUnknown(t Table) {
	d := t.neutral()
	if d == nil {
		return
	}
	var unknown []string
	for key := range p.in.Annotations {
		name, ours := strings.CutPrefix(key, d.Prefix)
		if ours && !slices.ContainsFunc(d.Keys, func(k Key) bool { return k.Name == name }) {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	for _, key := range unknown[:min(len(unknown), maxWarnings)] {
		p.warnings = append(p.warnings, fmt.Sprintf("annotation %.*q is unknown and has no effect", maxValueInMessages, key))
	}
}

// Results returns the annotations that tell a pod which image snapshot was chosen: the neutral dialect's and those of
// the dialects in Request.Dialects.
func (t Table) Results(r Request, name, id string) map[string]string {
	results := make(map[string]string)
	for i := range t {
		d := &t[i]
		if !d.Neutral && !slices.Contains(r.Dialects, d.Name) {
			continue
		}
		for _, k := range d.Keys {
			switch k.Meaning {
			case MeansResultName:
				results[d.Prefix+k.Name] = name
			case MeansResultID:
				results[d.Prefix+k.Name] = id
			default:
			}
		}
	}
	return results
}
