package dialect

import (
	"fmt"
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
	// errors.
	Neutral bool `json:"neutral,omitempty" toml:"neutral,omitempty"`
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
	maxKeyBytes                = 317 // of an annotation: DNS name of 253, a slash, 63 (Kubernetes)
	truth, falsehood           = "true", "false"
	wantBoolean                = `"true" or "false"`
	maxValueInMessages         = 160
)

// Validate checks a table that comes from a configuration.
func (t Table) Validate() error {
	names, keys := make(map[string]bool), make(map[string]string)
	neutral := ""
	for i := range t {
		d := &t[i]
		switch {
		case d.Name == "":
			return fmt.Errorf("dialects[%d] has no name", i)
		case names[d.Name]:
			return fmt.Errorf("dialect %q is there twice", d.Name)
		case !strings.HasSuffix(d.Prefix, "/") || len(d.Prefix) < 2:
			return fmt.Errorf("dialect %q: prefix %q does not end in a slash", d.Name, d.Prefix)
		case d.Neutral && neutral != "":
			return fmt.Errorf("dialects %q and %q are both neutral", neutral, d.Name)
		}
		names[d.Name] = true
		if d.Neutral {
			neutral = d.Name
		}
		for j := range d.Keys {
			k := &d.Keys[j]
			name := d.Prefix + k.Name
			if other, ok := keys[name]; ok {
				return fmt.Errorf("annotation %q is in dialects %q and %q", name, other, d.Name)
			}
			keys[name] = d.Name
			if err := k.validate(name); err != nil {
				return fmt.Errorf("dialect %q: %w", d.Name, err)
			}
		}
	}
	if len(keys) > maxTableKeys {
		return fmt.Errorf("%d annotations, at most %d are allowed", len(keys), maxTableKeys)
	}
	return nil
}

func (k *Key) validate(name string) error {
	if k.Name == "" || len(name) > maxKeyBytes {
		return fmt.Errorf("annotation %q has no name or more than %d bytes", name, maxKeyBytes)
	}
	if !k.Meaning.known() {
		return fmt.Errorf("annotation %q: meaning %q is unknown", name, k.Meaning)
	}
	for word, w := range k.Words {
		if !w.Meaning.known() || w.Meaning.isResult() {
			return fmt.Errorf("annotation %q: word %q: meaning %q is unknown or not for reading", name, word, w.Meaning)
		}
		if _, err := w.Meaning.canonical(w.Value); err != nil {
			return fmt.Errorf("annotation %q: word %q: %w", name, word, err)
		}
	}
	for from, to := range k.Values {
		if _, err := k.Meaning.canonical(to); err != nil {
			return fmt.Errorf("annotation %q: value %q: %w", name, from, err)
		}
	}
	return nil
}

// With adds dialects, or replaces those of the same name, and checks the whole.
func (t Table) With(more ...Dialect) (Table, error) {
	out := slices.Clone(t)
	for _, d := range more {
		at := slices.IndexFunc(out, func(o Dialect) bool { return o.Name == d.Name })
		if at < 0 {
			out = append(out, d)
		} else {
			out[at] = d
		}
	}
	if err := out.Validate(); err != nil {
		return nil, fmt.Errorf("add dialects: %w", err)
	}
	return out, nil
}
