package dialect

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"berth.dev/berth/matcher"
)

// Request is what a pod asks for, in neutral terms.
type Request struct {
	// Rules for the matcher. What a node decides for itself (MaxAttach, AttachCostBytes) is left at zero.
	Rules matcher.Rules
	// CreateIfMissing asks for an image snapshot to be made if automatic matching finds none.
	CreateIfMissing bool
	// KeepDisk is how long the disk should stay attached after its last use, nil if the pod does not say.
	KeepDisk *time.Duration
	// PlainHTTPRegistries and InsecureRegistries are hosts, sorted: those that speak http, and those whose certificates
	// are not checked. They apply to the image snapshot that CreateIfMissing makes.
	PlainHTTPRegistries []string
	InsecureRegistries  []string
	// Dialects that said something or that the pod is opted in to, by name, in the order of the table.
	Dialects []string
}

// Input is what Parse looks at.
type Input struct {
	// Annotations of the pod.
	Annotations map[string]string
	// Labels of the pod, for dialects that opt in by label.
	Labels map[string]string
	// Assume names a dialect that the pod counts as opted in to, for classes of pods and nodes; empty for none.
	Assume string
	// AutoMatch is the default of automatic matching where no dialect has one.
	AutoMatch bool
	// StrictConflict rejects pods that pin and ask for automatic matching, whatever that finds (the strict reading of
	// C-6), in dialects that reject conflicts at all.
	StrictConflict bool
}

// Error is an annotation that cannot be obeyed. Its class is errdefs.ErrInvalidArgument (HTTP 400).
type Error struct {
	Key     string // with prefix
	Value   string
	Problem string // what is wrong or allowed
}

// Error names the annotation, its value and what is allowed.
func (e *Error) Error() string {
	return fmt.Sprintf("annotation %s: %.*q: %s", e.Key, maxValueInMessages, e.Value, e.Problem)
}

// Unwrap returns the class.
func (e *Error) Unwrap() error { return errdefs.ErrInvalidArgument }

// Parse returns the request of a pod and warnings for its user. The error joins one Error for each annotation that
// cannot be obeyed and is of the class errdefs.ErrInvalidArgument.
func (t Table) Parse(in Input) (Request, []string, error) {
	p := parser{in: &in, said: make(map[Meaning][]saying)}
	for i := range t {
		p.read(&t[i])
	}
	for _, m := range []Meaning{
		MeansAutoMatch, MeansStrategy, MeansConflict, MeansReject, MeansPerfectMatch, MeansMatchCount, MeansCreate, MeansKeepDisk,
	} {
		p.settle(m)
	}
	p.settlePins()
	if err := errors.Join(p.errs...); err != nil {
		return Request{}, nil, err
	}
	r := p.request()
	p.warnUnknown(t)
	return r, p.warnings, nil
}

// saying is one annotation in neutral terms.
type saying struct {
	by    *Dialect
	key   string // with prefix
	raw   string // as the pod has it
	value string // canonical
}

type parser struct {
	in       *Input
	said     map[Meaning][]saying
	optedIn  []*Dialect
	used     []string
	warnings []string
	errs     []error
}

func (p *parser) read(d *Dialect) {
	spoke := false
	for i := range d.Keys {
		k := &d.Keys[i]
		name := d.Prefix + k.Name
		value, ok := p.in.Annotations[name]
		if !ok || k.Meaning.isResult() {
			continue
		}
		spoke = true
		meaning, canonical, err := k.interpret(value)
		if err != nil {
			p.errs = append(p.errs, &Error{Key: name, Value: value, Problem: err.Error()})
			continue
		}
		p.said[meaning] = append(p.said[meaning], saying{by: d, key: name, raw: value, value: canonical})
	}
	optedIn := spoke && d.OptInByKey || d.OptInLabel != "" && p.in.Labels[d.OptInLabel] == truth || p.in.Assume == d.Name
	if optedIn {
		p.optedIn = append(p.optedIn, d)
	}
	if spoke || optedIn {
		p.used = append(p.used, d.Name)
	}
}

func (k *Key) interpret(value string) (Meaning, string, error) {
	if w, ok := k.Words[value]; ok {
		canonical, err := w.Meaning.canonical(w.Value)
		return w.Meaning, canonical, err
	}
	if len(k.Values) > 0 {
		neutral, ok := k.Values[value]
		if !ok {
			return k.Meaning, "", errors.New("want one of " + strings.Join(slices.Sorted(maps.Keys(k.Values)), ", "))
		}
		value = neutral
	}
	canonical, err := k.Meaning.canonical(value)
	return k.Meaning, canonical, err
}

// settle leaves those sayings of one meaning that count: the neutral dialect's if it says something, otherwise all,
// which must be equal then.
func (p *parser) settle(m Meaning) {
	all := p.said[m]
	var neutral []saying
	for _, s := range all {
		if s.by.Neutral {
			neutral = append(neutral, s)
		}
	}
	counting := all
	if len(neutral) > 0 {
		counting = neutral
	}
	for _, s := range all {
		switch first := counting[0]; {
		case s.value == first.value:
		case len(neutral) > 0 && !s.by.Neutral:
			p.warnings = append(p.warnings, fmt.Sprintf("annotation %s overrides %s", first.key, s.key))
		default:
			p.contradiction(first, s)
		}
	}
	p.said[m] = counting
}

func (p *parser) contradiction(a, b saying) {
	p.errs = append(p.errs, &Error{Key: b.key, Value: b.raw, Problem: fmt.Sprintf(
		"annotation %s says %.*q: make them equal or remove one of both", a.key, maxValueInMessages, a.raw)})
}

// settlePins does the same for pins, of which the neutral dialect's may be a name or an ID. Whether a name and an ID
// mean the same image snapshot is seen when it is looked for.
func (p *parser) settlePins() {
	if neutral := p.said[MeansPin]; len(neutral) > 0 {
		p.settle(MeansPin)
		for _, m := range []Meaning{MeansPinName, MeansPinID} {
			for _, s := range p.said[m] {
				if s.value != neutral[0].value {
					p.warnings = append(p.warnings, fmt.Sprintf("annotation %s overrides %s", neutral[0].key, s.key))
				}
			}
			delete(p.said, m)
		}
		return
	}
	p.settle(MeansPinName)
	p.settle(MeansPinID)
}

// value returns the value of a meaning that was settled.
func (p *parser) value(m Meaning) (string, bool) {
	if said := p.said[m]; len(said) > 0 {
		return said[0].value, true
	}
	return "", false
}

func (p *parser) isTrue(m Meaning) bool {
	v, _ := p.value(m)
	return v == truth
}

// number returns the value of a meaning whose values are checked numbers.
func (p *parser) number(m Meaning) (int, bool) {
	v, ok := p.value(m)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(v)
	return n, err == nil
}
