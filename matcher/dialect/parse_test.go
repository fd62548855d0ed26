package dialect_test

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/matcher"
	"berth.dev/berth/matcher/dialect"
)

type annotations = map[string]string

const (
	berth = "berth.dev/"
	cci   = "cci.io/image-snapshot-"
	cce   = "imagecache.cce.io/"
	eci   = "k8s.aliyun.com/"
	tke   = "eks.tke.cloud.tencent.com/"
	vci   = "vci.vke.volcengine.com/"
)

// parse reads annotations by the built-in table.
func parse(in annotations) (dialect.Request, []string, error) {
	return dialect.Builtin().Parse(dialect.Input{Annotations: in})
}

func minutes(n int) *time.Duration {
	d := time.Duration(n) * time.Minute
	return &d
}

// TestRows has one line at least for every row of the table of annotations in docs/matching.md.
func TestRows(t *testing.T) {
	type rules = matcher.Rules
	pinned := func(p matcher.Pin, c matcher.ConflictPolicy, change func(*rules)) rules {
		r := rules{Pin: p, Conflict: c}
		if change != nil {
			change(&r)
		}
		return r
	}
	reject := func(r *rules) { r.RejectIfUnavailable = true }
	for _, tc := range []struct {
		name string
		in   annotations
		want dialect.Request
	}{
		{"nothing said, nothing asked for: C-7", nil, dialect.Request{}},
		{"Q17 a key with a blank is another key", annotations{cci + "auto-match ": "true"}, dialect.Request{}},
		{"strangers are ignored", annotations{"cci.io/other": "x", "k8s.aliyun.com/eci-vswitch": "v"}, dialect.Request{}},

		{"neutral auto-match", annotations{berth + "auto-match": "true"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderSaved}, Dialects: []string{"berth"}}},
		{"neutral auto-match off", annotations{berth + "auto-match": "false"}, dialect.Request{Dialects: []string{"berth"}}},
		{"neutral strategy size", annotations{berth + "auto-match": "true", berth + "strategy": "size"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderSize}, Dialects: []string{"berth"}}},
		{"neutral strategy degree", annotations{berth + "auto-match": "true", berth + "strategy": "degree"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderDegree}, Dialects: []string{"berth"}}},
		{"neutral pin", annotations{berth + "snapshot": "web"},
			dialect.Request{Rules: pinned(matcher.Pin{Name: "web", NameOrID: true}, matcher.ConflictPinWins, nil), Dialects: []string{"berth"}}},
		{"neutral pin, conflict: reject", annotations{berth + "snapshot": "web", berth + "conflict": "reject"},
			dialect.Request{Rules: pinned(matcher.Pin{Name: "web", NameOrID: true}, matcher.ConflictRejectIfDifferent, nil), Dialects: []string{"berth"}}},
		{"neutral pin, reject-if-unavailable", annotations{berth + "snapshot": "web", berth + "reject-if-unavailable": "true"},
			dialect.Request{Rules: pinned(matcher.Pin{Name: "web", NameOrID: true}, matcher.ConflictPinWins, reject), Dialects: []string{"berth"}}},
		{"neutral gates", annotations{berth + "perfect-match": "true", berth + "match-count": "2"},
			dialect.Request{Rules: rules{PerfectMatch: true, MatchCount: 2}, Dialects: []string{"berth"}}},
		{"neutral create-if-missing", annotations{berth + "create-if-missing": "true"},
			dialect.Request{CreateIfMissing: true, Dialects: []string{"berth"}}},
		{"neutral keep-disk-minutes", annotations{berth + "keep-disk-minutes": "0"},
			dialect.Request{KeepDisk: minutes(0), Dialects: []string{"berth"}}},
		{"neutral registries", annotations{berth + "plain-http-registries": "b.example:5000, a.example,b.example:5000", berth + "insecure-registries": "c.example"},
			dialect.Request{PlainHTTPRegistries: []string{"a.example", "b.example:5000"}, InsecureRegistries: []string{"c.example"}, Dialects: []string{"berth"}}},
		{"neutral result is not a wish", annotations{berth + "matched-snapshot": "web"}, dialect.Request{}},

		{"C-7 C-8 CCI auto match, strategy size by default", annotations{cci + "auto-match": "true"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderSize}, Dialects: []string{"cci"}}},
		{"C-8 CCI strategy size", annotations{cci + "auto-match": "true", cci + "usage-strategy": "size"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderSize}, Dialects: []string{"cci"}}},
		{"C-8 CCI strategy quantity", annotations{cci + "auto-match": "true", cci + "usage-strategy": "quantity"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderQuantity}, Dialects: []string{"cci"}}},
		{"C-2 C-9 C-10 CCI pin by name, pull if missing, Q1 Q2 conflict rejects", annotations{cci + "specified-name": "my-imagesnapshot"},
			dialect.Request{Rules: pinned(matcher.Pin{Name: "my-imagesnapshot"}, matcher.ConflictRejectIfDifferent, nil), Dialects: []string{"cci"}}},
		{"C-11 Q3 CCI reject", annotations{cci + "specified-name": "my-imagesnapshot", cci + "reject-if-not-available": "true"},
			dialect.Request{Rules: pinned(matcher.Pin{Name: "my-imagesnapshot"}, matcher.ConflictRejectIfDifferent, reject), Dialects: []string{"cci"}}},
		{"Q1 CCI's guide: auto match false beside the name", annotations{cci + "specified-name": "n", cci + "auto-match": "false"},
			dialect.Request{Rules: pinned(matcher.Pin{Name: "n"}, matcher.ConflictRejectIfDifferent, nil), Dialects: []string{"cci"}}},
		{"CCI exact match: all images of the pod", annotations{cci + "auto-match": "true", cci + "exact-match": "true"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderSize, PerfectMatch: true}, Dialects: []string{"cci"}}},
		{"CCI exact match off, as by default", annotations{cci + "auto-match": "true", cci + "exact-match": "false"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderSize}, Dialects: []string{"cci"}}},
		{"CCI create", annotations{cci + "auto-match": "true", cci + "create-if-not-present": "true"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderSize}, CreateIfMissing: true, Dialects: []string{"cci"}}},

		{"Q3 CCE pin, unused if it lacks the images", annotations{cce + "specified-name": "n"},
			dialect.Request{Rules: pinned(matcher.Pin{Name: "n"}, matcher.ConflictPinWins, func(r *rules) { r.PinNeedsMatch = true }), Dialects: []string{"cce"}}},

		{"E-4 E-5 ECI auto match creates what is missing", annotations{eci + "eci-auto-imc": "true"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderDegree}, CreateIfMissing: true, Dialects: []string{"eci"}}},
		{"E-4 ECI off", annotations{eci + "eci-auto-imc": "false"}, dialect.Request{Dialects: []string{"eci"}}},
		{"ECI's older auto match", annotations{eci + "eci-image-cache": "true"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderDegree}, CreateIfMissing: true, Dialects: []string{"eci"}}},
		{"E-6 E-7 E-10 ECI gates: both are passed on", annotations{eci + "eci-auto-imc": "true", eci + "imc-perfect-match": "true", eci + "imc-match-count-request": "2"},
			dialect.Request{Rules: rules{AutoMatch: true, Order: matcher.OrderDegree, PerfectMatch: true, MatchCount: 2}, CreateIfMissing: true, Dialects: []string{"eci"}}},
		{"E-8 E-11 Q3 ECI pin by ID has to be usable", annotations{eci + "eci-imc-id": "imc-2zebxkiifuyzzlhl0000"},
			dialect.Request{Rules: pinned(matcher.Pin{ID: "imc-2zebxkiifuyzzlhl0000"}, matcher.ConflictPinWinsSilently, reject), Dialects: []string{"eci"}}},
		{"ECI's older pin", annotations{eci + "eci-image-snapshot-id": "imc-1"},
			dialect.Request{Rules: pinned(matcher.Pin{ID: "imc-1"}, matcher.ConflictPinWinsSilently, reject), Dialects: []string{"eci"}}},
		{"E-9 Q2 ECI pin overrides auto match silently", annotations{eci + "eci-imc-id": "imc-1", eci + "eci-auto-imc": "true"},
			dialect.Request{Rules: pinned(matcher.Pin{ID: "imc-1"}, matcher.ConflictPinWinsSilently, func(r *rules) {
				r.RejectIfUnavailable, r.AutoMatch, r.Order = true, true, matcher.OrderDegree
			}), CreateIfMissing: true, Dialects: []string{"eci"}}},
		{"ECI registries", annotations{eci + "plain-http-registry": "harbor.example.com,192.168.1.1:5000", eci + "insecure-registry": "h.example"},
			dialect.Request{PlainHTTPRegistries: []string{"192.168.1.1:5000", "harbor.example.com"}, InsecureRegistries: []string{"h.example"}, Dialects: []string{"eci"}}},
		{"ECI result is not a wish", annotations{eci + "eci-matched-image-cache": "imc-1"}, dialect.Request{}},

		{"TKE auto", annotations{tke + "use-image-cache": "auto"},
			dialect.Request{Rules: rules{AutoMatch: true}, Dialects: []string{"tke"}}},
		{"TKE pin by ID, pull if missing", annotations{tke + "use-image-cache": "imc-xxx"},
			dialect.Request{Rules: pinned(matcher.Pin{ID: "imc-xxx"}, matcher.ConflictPinWins, nil), Dialects: []string{"tke"}}},
		{"TKE keeps the disk", annotations{tke + "image-cache-disk-retain-minute": "10"},
			dialect.Request{KeepDisk: minutes(10), Dialects: []string{"tke"}}},
		{"TKE registries", annotations{tke + "registry-http-endpoint": "a.example", tke + "registry-insecure-skip-verify": "b.example"},
			dialect.Request{PlainHTTPRegistries: []string{"a.example"}, InsecureRegistries: []string{"b.example"}, Dialects: []string{"tke"}}},

		{"VCI matches by default and creates if asked", annotations{vci + "enable-auto-create-imc": "true"},
			dialect.Request{Rules: rules{AutoMatch: true}, CreateIfMissing: true, Dialects: []string{"vci"}}},
		{"VCI does not create", annotations{vci + "enable-auto-create-imc": "false"},
			dialect.Request{Rules: rules{AutoMatch: true}, Dialects: []string{"vci"}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, warnings, err := parse(tc.in)
			require.NoError(t, err)
			require.Empty(t, warnings)
			require.Equal(t, tc.want, got)
		})
	}
}

// TestDefaults shows Q4 and the strict reading of Q1.
func TestDefaults(t *testing.T) {
	eciLabel := map[string]string{"alibabacloud.com/eci": "true"}
	for _, tc := range []struct {
		name       string
		in         dialect.Input
		auto       bool
		order      matcher.Order
		create     bool
		conflict   matcher.ConflictPolicy
		dialectSet []string
	}{
		{name: "Q4 no opt-in, no default: perfect match alone does not opt in",
			in: dialect.Input{Annotations: annotations{eci + "imc-perfect-match": "false"}}, dialectSet: []string{"eci"}},
		{name: "Q4 E-4 ECI's label", in: dialect.Input{Labels: eciLabel}, auto: true, order: matcher.OrderDegree, create: true, dialectSet: []string{"eci"}},
		{name: "Q4 label with another value", in: dialect.Input{Labels: map[string]string{"alibabacloud.com/eci": "false"}}},
		{name: "Q4 ECI by class", in: dialect.Input{Assume: "eci"}, auto: true, order: matcher.OrderDegree, create: true, dialectSet: []string{"eci"}},
		{name: "CCI by class stays off: C-7", in: dialect.Input{Assume: "cci"}, dialectSet: []string{"cci"}},
		{name: "E-4 said beats default", in: dialect.Input{Labels: eciLabel, Annotations: annotations{eci + "eci-auto-imc": "false"}}, dialectSet: []string{"eci"}},
		{name: "another dialect's word beats a default", in: dialect.Input{Labels: eciLabel, Annotations: annotations{cci + "auto-match": "false"}}, dialectSet: []string{"cci", "eci"}},
		{name: "Q4 neutral default by policy", in: dialect.Input{AutoMatch: true}, auto: true},
		{name: "policy off by annotation", in: dialect.Input{AutoMatch: true, Annotations: annotations{berth + "auto-match": "false"}}, dialectSet: []string{"berth"}},
		{name: "a default does not make a pin a conflict", in: dialect.Input{AutoMatch: true, Annotations: annotations{cci + "specified-name": "n"}},
			conflict: matcher.ConflictRejectIfDifferent, dialectSet: []string{"cci"}},
		{name: "Q1 (a) as strict option", in: dialect.Input{StrictConflict: true, Annotations: annotations{cci + "specified-name": "n", cci + "auto-match": "true"}},
			auto: true, order: matcher.OrderSize, conflict: matcher.ConflictRejectBoth, dialectSet: []string{"cci"}},
		{name: "Q1 (a) leaves ECI alone", in: dialect.Input{StrictConflict: true, Annotations: annotations{eci + "eci-imc-id": "n", eci + "eci-auto-imc": "true"}},
			auto: true, order: matcher.OrderDegree, create: true, conflict: matcher.ConflictPinWinsSilently, dialectSet: []string{"eci"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, warnings, err := dialect.Builtin().Parse(tc.in)
			require.NoError(t, err)
			require.Empty(t, warnings)
			require.Equal(t, tc.auto, got.Rules.AutoMatch)
			require.Equal(t, tc.order, got.Rules.Order)
			require.Equal(t, tc.create, got.CreateIfMissing)
			require.Equal(t, tc.conflict, got.Rules.Conflict)
			require.Equal(t, tc.dialectSet, got.Dialects)
		})
	}
}

// TestMixed shows how dialects on one pod go together.
func TestMixed(t *testing.T) {
	type check func(t *testing.T, r dialect.Request)
	for _, tc := range []struct {
		name     string
		in       annotations
		warnings []string
		check    check
	}{
		{"equal values merge", annotations{cci + "specified-name": "web", cce + "specified-name": "web"}, nil, func(t *testing.T, r dialect.Request) {
			require.Equal(t, matcher.Pin{Name: "web"}, r.Rules.Pin)
			require.Equal(t, matcher.ConflictRejectIfDifferent, r.Rules.Conflict, "the strictest")
			require.True(t, r.Rules.PinNeedsMatch)
			require.Equal(t, []string{"cci", "cce"}, r.Dialects)
		}},
		{"name and ID are left to the matcher", annotations{cci + "specified-name": "web", eci + "eci-imc-id": "imc-1"}, nil, func(t *testing.T, r dialect.Request) {
			require.Equal(t, matcher.Pin{Name: "web", ID: "imc-1"}, r.Rules.Pin)
			require.True(t, r.Rules.RejectIfUnavailable, "the strictest")
			require.Equal(t, matcher.ConflictRejectIfDifferent, r.Rules.Conflict)
		}},
		{"both generations of one vendor", annotations{eci + "eci-imc-id": "imc-1", eci + "eci-image-snapshot-id": "imc-1"}, nil, func(t *testing.T, r dialect.Request) {
			require.Equal(t, matcher.Pin{ID: "imc-1"}, r.Rules.Pin)
		}},
		{"neutral overrides a vendor", annotations{berth + "auto-match": "false", cci + "auto-match": "true"},
			[]string{"annotation berth.dev/auto-match overrides cci.io/image-snapshot-auto-match"}, func(t *testing.T, r dialect.Request) {
				require.False(t, r.Rules.AutoMatch)
			}},
		{"neutral overrides vendors that contradict one another", annotations{berth + "auto-match": "true", cci + "auto-match": "true", eci + "eci-auto-imc": "false"},
			[]string{"annotation berth.dev/auto-match overrides k8s.aliyun.com/eci-auto-imc"}, func(t *testing.T, r dialect.Request) {
				require.True(t, r.Rules.AutoMatch)
				require.Equal(t, matcher.OrderSaved, r.Rules.Order)
				require.False(t, r.CreateIfMissing)
			}},
		{"neutral pin overrides names and IDs", annotations{berth + "snapshot": "web", cci + "specified-name": "web", eci + "eci-imc-id": "imc-1"},
			[]string{"annotation berth.dev/snapshot overrides k8s.aliyun.com/eci-imc-id"}, func(t *testing.T, r dialect.Request) {
				require.Equal(t, matcher.Pin{Name: "web", NameOrID: true}, r.Rules.Pin)
				require.Equal(t, matcher.ConflictPinWins, r.Rules.Conflict)
				require.False(t, r.Rules.RejectIfUnavailable)
			}},
		{"neutral reject overrides what a pin implies", annotations{berth + "reject-if-unavailable": "false", eci + "eci-imc-id": "imc-1"}, nil, func(t *testing.T, r dialect.Request) {
			require.False(t, r.Rules.RejectIfUnavailable)
		}},
		{"a vendor's reject does not", annotations{cci + "reject-if-not-available": "false", eci + "eci-imc-id": "imc-1"}, nil, func(t *testing.T, r dialect.Request) {
			require.True(t, r.Rules.RejectIfUnavailable)
		}},
		{"two orders", annotations{cci + "auto-match": "true", eci + "eci-auto-imc": "true"},
			[]string{`dialects cci and eci compare image snapshots in different orders, so the order "saved" is used`}, func(t *testing.T, r dialect.Request) {
				require.Equal(t, matcher.OrderSaved, r.Rules.Order)
				require.True(t, r.CreateIfMissing, "E-5")
			}},
		{"a strategy decides between two orders", annotations{cci + "auto-match": "true", cci + "usage-strategy": "quantity", eci + "eci-auto-imc": "true"}, nil, func(t *testing.T, r dialect.Request) {
			require.Equal(t, matcher.OrderQuantity, r.Rules.Order)
		}},
		{"said beats implied creation", annotations{cci + "create-if-not-present": "false", eci + "eci-auto-imc": "true"}, nil, func(t *testing.T, r dialect.Request) {
			require.False(t, r.CreateIfMissing)
		}},
		{"TKE's word is an auto match like any other", annotations{tke + "use-image-cache": "auto", eci + "eci-auto-imc": "true", berth + "strategy": "saved"}, nil, func(t *testing.T, r dialect.Request) {
			require.True(t, r.Rules.AutoMatch)
			require.True(t, r.Rules.Pin.IsZero())
		}},
		{"registries add up", annotations{eci + "plain-http-registry": "a.example", tke + "registry-http-endpoint": "b.example,A.example"}, nil, func(t *testing.T, r dialect.Request) {
			require.Equal(t, []string{"a.example", "b.example"}, r.PlainHTTPRegistries)
		}},
		{"strategy without automatic matching", annotations{cci + "usage-strategy": "size"},
			[]string{"annotation cci.io/image-snapshot-usage-strategy has no effect without automatic matching"}, func(t *testing.T, r dialect.Request) {
				require.Equal(t, matcher.Rules{}, r.Rules)
			}},
		{"typing error in the neutral dialect", annotations{berth + "auto-mach": "true"},
			[]string{`annotation "berth.dev/auto-mach" is unknown and has no effect`}, func(t *testing.T, r dialect.Request) {
				require.False(t, r.Rules.AutoMatch)
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, warnings, err := parse(tc.in)
			require.NoError(t, err)
			require.Equal(t, tc.warnings, warnings)
			tc.check(t, r)
		})
	}
}

// TestRefused shows C-14 and that contradictions are of the class "bad request" and name the annotations.
func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   annotations
		says []string
	}{
		{"C-14 boolean", annotations{cci + "auto-match": "True"}, []string{`annotation cci.io/image-snapshot-auto-match: "True": want "true" or "false"`}},
		{"C-14 empty boolean", annotations{cci + "reject-if-not-available": ""}, []string{cci + "reject-if-not-available", `want "true" or "false"`}},
		{"C-14 blanks", annotations{eci + "imc-perfect-match": " true"}, []string{eci + "imc-perfect-match"}},
		{"C-14 neutral", annotations{berth + "create-if-missing": "yes"}, []string{berth + "create-if-missing"}},
		{"C-14 VCI", annotations{vci + "enable-auto-create-imc": "1"}, []string{vci + "enable-auto-create-imc"}},
		{"several at once", annotations{cci + "auto-match": "x", eci + "eci-auto-imc": "y"}, []string{cci + "auto-match", eci + "eci-auto-imc"}},
		{"C-8 strategy", annotations{cci + "usage-strategy": "degree"}, []string{"want one of quantity, size"}},
		{"neutral strategy", annotations{berth + "strategy": "best"}, []string{"want one of saved, size, quantity, degree"}},
		{"conflict policy", annotations{berth + "conflict": "400"}, []string{"want one of pin-wins, pin-wins-silently, reject, reject-both"}},
		{"E-7 count of zero", annotations{eci + "imc-match-count-request": "0"}, []string{"within 1..1000"}},
		{"E-7 count of letters", annotations{eci + "imc-match-count-request": "two"}, []string{"within 1..1000"}},
		{"E-7 signed count", annotations{eci + "imc-match-count-request": "+2"}, []string{"within 1..1000"}},
		{"empty pin", annotations{cci + "specified-name": ""}, []string{"want the image snapshot's name or ID"}},
		{"pin with blank", annotations{eci + "eci-imc-id": "imc 1"}, []string{"printable ASCII"}},
		{"TKE capital letters are an ID with a blank", annotations{tke + "use-image-cache": "auto "}, []string{"printable ASCII"}},
		{"keep disk", annotations{tke + "image-cache-disk-retain-minute": "-1"}, []string{"within 0..43200"}},
		{"registry with scheme", annotations{eci + "insecure-registry": "https://a.example"}, []string{"without http://"}},
		{"registry list with a hole", annotations{eci + "insecure-registry": "a,,b"}, []string{"host:port"}},
		{"contradiction between vendors", annotations{cci + "auto-match": "true", eci + "eci-auto-imc": "false"},
			[]string{eci + "eci-auto-imc", cci + "auto-match", "make them equal or remove one of both"}},
		{"contradiction within a vendor", annotations{eci + "eci-auto-imc": "true", eci + "eci-image-cache": "false"}, []string{eci + "eci-image-cache", eci + "eci-auto-imc"}},
		{"two names", annotations{cci + "specified-name": "a", cce + "specified-name": "b"}, []string{cce + "specified-name", `"b"`, `"a"`}},
		{"two IDs", annotations{eci + "eci-imc-id": "imc-1", tke + "use-image-cache": "imc-2"}, []string{tke + "use-image-cache", eci + "eci-imc-id"}},
		{"auto by TKE's word against ECI", annotations{tke + "use-image-cache": "auto", eci + "eci-auto-imc": "false"}, []string{tke + "use-image-cache"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, _, err := parse(tc.in)
			require.Error(t, err)
			require.Zero(t, r)
			require.True(t, errdefs.IsInvalidArgument(err), "class")
			for _, s := range tc.says {
				require.ErrorContains(t, err, s)
			}
			var one *dialect.Error
			require.ErrorAs(t, err, &one)
			require.Contains(t, tc.in, one.Key)
			require.Equal(t, tc.in[one.Key], one.Value)
		})
	}
}
