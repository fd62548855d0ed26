package dialect

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"berth.dev/berth/matcher"
)

// Table is a list of dialects.
type Table []Dialect

// Dialect is the words and the behaviour of one vendor.
type Dialect struct {
	// Name for messages and for Input.Assume.
	Name string `json:"name" toml:"name"`
	// Neutral marks the project's own dialect: what it says overrides the others, and its prefix is watched for typing
	// errors. No configuration can set it.
	Neutral bool `json:"neutral,omitempty" toml:"-"`
	// Prefix of the annotations, with the slash. Others with the prefix are none of our business unless the dialect is
	// Neutral.
	Prefix string `json:"prefix" toml:"prefix"`
	// Keys are the annotations, without the prefix.
	Keys []Key `json:"keys" toml:"keys"`

	// Order of automatic matching if no strategy is asked for.
	Order matcher.Order `json:"order" toml:"order"`
	// Conflict says what happens if this dialect pins and automatic matching is asked for as well.
	Conflict matcher.ConflictPolicy `json:"conflict" toml:"conflict"`
	// RejectUnavailable: a pod is refused if the image snapshot that it pins cannot be used.
	RejectUnavailable bool `json:"rejectUnavailable,omitempty" toml:"reject_unavailable,omitempty"`
	// PinNeedsMatch: a pinned image snapshot that holds none of the images is not used.
	PinNeedsMatch bool `json:"pinNeedsMatch,omitempty" toml:"pin_needs_match,omitempty"`
	// AutoDefault: pods that opt in are matched automatically unless they say otherwise.
	AutoDefault bool `json:"autoDefault,omitempty" toml:"auto_default,omitempty"`
	// CreateWithAuto: automatic matching that finds nothing creates an image snapshot.
	CreateWithAuto bool `json:"createWithAuto,omitempty" toml:"create_with_auto,omitempty"`
	// OptInLabel is a label of the pod that opts in when it is "true".
	OptInLabel string `json:"optInLabel,omitempty" toml:"opt_in_label,omitempty"`
	// OptInByKey: any annotation of the dialect opts in.
	OptInByKey bool `json:"optInByKey,omitempty" toml:"opt_in_by_key,omitempty"`
}

// Key is one annotation.
type Key struct {
	// Name without the dialect's prefix.
	Name string `json:"name" toml:"name"`
	// Meaning of the annotation.
	Meaning Meaning `json:"meaning" toml:"meaning"`
	// Values, if there are any, are the only ones allowed, each with what it stands for in the neutral dialect.
	Values map[string]string `json:"values,omitempty" toml:"values,omitempty"`
	// Words are values with a meaning of their own, where a vendor uses one key for two things.
	Words map[string]Word `json:"words,omitempty" toml:"words,omitempty"`
}

// Word is what a value of a Key means instead.
type Word struct {
	Meaning Meaning `json:"meaning" toml:"meaning"`
	Value   string  `json:"value" toml:"value"`
}

// Meaning of an annotation. The text is the name that the neutral dialect has for it.
type Meaning string

// The meanings.
const (
	MeansAutoMatch     Meaning = "auto-match"            // "true" or "false"
	MeansStrategy      Meaning = "strategy"              // name of a matcher.Order
	MeansPin           Meaning = "snapshot"              // a name, or an ID if nothing has that name
	MeansPinName       Meaning = "snapshot-name"         // a name
	MeansPinID         Meaning = "snapshot-id"           // an ID
	MeansConflict      Meaning = "conflict"              // name of a matcher.ConflictPolicy
	MeansReject        Meaning = "reject-if-unavailable" // "true" or "false"
	MeansPerfectMatch  Meaning = "perfect-match"         // "true" or "false"
	MeansMatchCount    Meaning = "match-count"           // a number of images from 1 up
	MeansCreate        Meaning = "create-if-missing"     // "true" or "false"
	MeansKeepDisk      Meaning = "keep-disk-minutes"     // whole minutes
	MeansPlainHTTP     Meaning = "plain-http-registries" // hosts, separated by commas
	MeansInsecure      Meaning = "insecure-registries"   // hosts, separated by commas
	MeansResultName    Meaning = "matched-snapshot"      // written by us: the name of the chosen one
	MeansResultID      Meaning = "matched-snapshot-id"   // written by us: the ID of the chosen one
	neutralPrefix              = "berth.dev/"
	maxTableKeys               = 1000
	maxPrefixBytes             = 253 // of a DNS name (Kubernetes)
	truth, falsehood           = "true", "false"
	wantBoolean                = `"true" or "false"`
	maxValueInMessages         = 160
)

// What Kubernetes takes as annotations and labels, and names of dialects.
var (
	dialectName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$`)
	prefixHost  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	keyName     = regexp.MustCompile(`^[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
)

// Validate checks a table that may come from a configuration. The error names every key that is wrong and what is
// allowed.
func (t Table) Validate() error {
	var errs []error
	names, keys := make(map[string]bool), make(map[string]string)
	neutral := t.neutral()
	for i := range t {
		d := &t[i]
		problems := d.validate()
		if names[d.Name] {
			problems = append(problems, errors.New("name: it is there twice"))
		}
		names[d.Name] = true
		switch {
		case neutral == nil || neutral == d:
		case d.Neutral:
			problems = append(problems, fmt.Errorf("neutral: dialect %q is neutral already", neutral.Name))
		case d.Prefix == neutral.Prefix:
			problems = append(problems, fmt.Errorf("prefix: %q is that of dialect %q, whose unknown annotations are typing errors", d.Prefix, neutral.Name))
		}
		for j, k := range d.Keys {
			name := d.Prefix + k.Name
			if other, ok := keys[name]; ok {
				problems = append(problems, fmt.Errorf("keys[%d].name: annotation %q is in dialect %q already", j, name, other))
			}
			keys[name] = d.Name
		}
		for _, err := range problems {
			errs = append(errs, fmt.Errorf("dialect %q: %w", d.Name, err))
		}
	}
	if len(keys) > maxTableKeys {
		errs = append(errs, fmt.Errorf("dialects have %d annotations, at most %d are allowed", len(keys), maxTableKeys))
	}
	return errors.Join(errs...)
}

// neutral is the dialect that overrides the others, or nil if there is no such dialect.
func (t Table) neutral() *Dialect {
	if i := slices.IndexFunc(t, func(d Dialect) bool { return d.Neutral }); i >= 0 {
		return &t[i]
	}
	return nil
}

// validate names every key of the dialect that is wrong by itself.
func (d *Dialect) validate() []error {
	var errs []error
	if !dialectName.MatchString(d.Name) {
		errs = append(errs, errors.New("name: want 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit at both ends"))
	}
	if host, ok := strings.CutSuffix(d.Prefix, "/"); !ok || len(host) > maxPrefixBytes || !prefixHost.MatchString(host) {
		errs = append(errs, fmt.Errorf("prefix: %.*q is not a DNS name in small letters with a slash behind it, such as \"cache.example.com/\"",
			maxValueInMessages, d.Prefix))
	}
	if l := d.OptInLabel; l != "" && !isQualifiedName(l) {
		errs = append(errs, fmt.Errorf("opt_in_label: %.*q is no label, such as \"example.com/serverless\"", maxValueInMessages, l))
	}
	for i := range d.Keys {
		for _, err := range d.Keys[i].validate() {
			errs = append(errs, fmt.Errorf("keys[%d].%w", i, err))
		}
	}
	return errs
}

// isQualifiedName says whether Kubernetes takes s as a label: a name, with or without a DNS name and a slash before it.
func isQualifiedName(s string) bool {
	host, name, ok := strings.Cut(s, "/")
	if !ok {
		return keyName.MatchString(s)
	}
	return len(host) <= maxPrefixBytes && prefixHost.MatchString(host) && keyName.MatchString(name)
}

func (k *Key) validate() []error {
	var errs []error
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !keyName.MatchString(k.Name) {
		refuse("name: %.*q is not 1 to 63 of letters, digits, '.', '_' and '-', a letter or digit at both ends", maxValueInMessages, k.Name)
	}
	if !slices.Contains(meanings(), k.Meaning) {
		refuse("meaning: %w", unknownMeaning(k.Meaning, meanings()))
	}
	for _, word := range slices.Sorted(maps.Keys(k.Words)) {
		w := k.Words[word]
		if readable := slices.DeleteFunc(meanings(), Meaning.isResult); !slices.Contains(readable, w.Meaning) {
			refuse("words.%s.meaning: %w", word, unknownMeaning(w.Meaning, readable))
		} else if _, err := w.Meaning.canonical(w.Value); err != nil {
			refuse("words.%s.value: %.*q: %w", word, maxValueInMessages, w.Value, err)
		}
		if _, ok := k.Values[word]; ok {
			refuse("words.%s: the same value is among values", word)
		}
	}
	for _, from := range slices.Sorted(maps.Keys(k.Values)) {
		if _, err := k.Meaning.canonical(k.Values[from]); err != nil {
			refuse("values.%s: %.*q: %w", from, maxValueInMessages, k.Values[from], err)
		}
	}
	return errs
}

func unknownMeaning(m Meaning, known []Meaning) error {
	names := make([]string, len(known))
	for i := range known {
		names[i] = string(known[i])
	}
	return fmt.Errorf("%.*q is not one of %s", maxValueInMessages, m, strings.Join(names, ", "))
}

// With adds dialects, or replaces those of the same name, and checks the whole. The neutral dialect stays as it is.
func (t Table) With(more ...Dialect) (Table, error) {
	out := slices.Clone(t)
	given := make(map[string]bool)
	for _, d := range more {
		if given[d.Name] {
			return nil, fmt.Errorf("dialect %q: name: it is given twice", d.Name)
		}
		given[d.Name] = true
		at := slices.IndexFunc(out, func(o Dialect) bool { return o.Name == d.Name })
		switch {
		case at < 0:
			out = append(out, d)
		case out[at].Neutral:
			return nil, fmt.Errorf("dialect %q: name: the project's own dialect cannot be replaced, take another name", d.Name)
		default:
			out[at] = d
		}
	}
	if err := out.Validate(); err != nil {
		return nil, err
	}
	return out, nil
}

// Has says whether a dialect of that name is in the table.
func (t Table) Has(name string) bool {
	return slices.ContainsFunc(t, func(d Dialect) bool { return d.Name == name })
}

// Names returns the names of the dialects, in order.
func (t Table) Names() []string {
	names := make([]string, len(t))
	for i := range t {
		names[i] = t[i].Name
	}
	return names
}
