package matcher_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	. "berth.dev/berth/matcher"
)

var (
	nginx   = img("docker.io/library/nginx:1.27", "debian:30:70", "nginx:40:90", "conf:1:2")
	redis   = img("docker.io/library/redis:7", "debian:30:70", "redis:10:25")
	busybox = img("docker.io/library/busybox:1", "busybox:2:4")
)

func moved(i Image, layers ...string) Image {
	return img(i.Reference, layers...)
}

// TestAutoMatch has the rules of automatic matching: who is chosen of a fleet, and why the others are not.
func TestAutoMatch(t *testing.T) {
	expired := func(c *Candidate) { c.Expires = noon }
	for _, tc := range []struct {
		name     string
		request  Request
		fleet    []Candidate
		want     []string
		verdicts map[string]Verdict
		warning  string
		nothing  bool // NothingMatched
	}{
		{"C-1 one that matches", auto(nginx), []Candidate{snap("a", 1, nginx), snap("b", 1, busybox)}, []string{"a"},
			map[string]Verdict{"a": VerdictChosen}, "", false},
		{"C-1 nobody matches", auto(nginx), []Candidate{snap("b", 1, busybox)}, nil, map[string]Verdict{}, "", true},
		{"C-3 Creating", auto(nginx), []Candidate{but(snap("a", 1, nginx), func(c *Candidate) { c.State = "Creating" })}, nil,
			map[string]Verdict{"a": VerdictNotReady}, "", true},
		{"C-3 Unavailable beside a worse one", ruled(auto(nginx), func(r *Rules) { r.Order = OrderSize }),
			[]Candidate{but(snap("a", 1, nginx), func(c *Candidate) { c.State = "Unavailable" }), snap("b", 1, redis)}, []string{"b"},
			map[string]Verdict{"a": VerdictNotReady, "b": VerdictChosen}, "", true},
		{"C-3 Q11 expired this moment", auto(nginx), []Candidate{but(snap("a", 1, nginx), expired)}, nil,
			map[string]Verdict{"a": VerdictExpired}, "", true},
		{"C-3 expires a microsecond later", auto(nginx),
			[]Candidate{but(snap("a", 1, nginx), func(c *Candidate) { c.Expires = noon.Add(time.Microsecond) })}, []string{"a"},
			map[string]Verdict{"a": VerdictChosen}, "", false},
		{"C-3 out of reach", auto(nginx), []Candidate{but(snap("a", 1, nginx), func(c *Candidate) { c.Unreachable = "zone b" })}, nil,
			map[string]Verdict{"a": VerdictUnreachable}, "", true},
		{"C-3 another platform", auto(nginx), []Candidate{snap("a", 1, on(arm64, nginx))}, nil,
			map[string]Verdict{"a": VerdictPlatform}, "", true},
		{"C-4 the most matched wins over the newer", ruled(auto(nginx, redis), func(r *Rules) { r.Order = OrderQuantity }),
			[]Candidate{snap("both", 9, nginx, redis), snap("one", 1, nginx)}, []string{"both"},
			map[string]Verdict{"both": VerdictChosen, "one": VerdictLost}, "", false},
		{"C-5 equal matches, the newer wins", ruled(auto(nginx), func(r *Rules) { r.Order = OrderSize }),
			[]Candidate{snap("old", 9, nginx), snap("new", 1, nginx)}, []string{"new"},
			map[string]Verdict{"new": VerdictChosen, "old": VerdictLost}, "", false},
		{"C-7 not asked for", Request{Images: []Image{nginx}}, []Candidate{snap("a", 1, nginx)}, nil, map[string]Verdict{}, "", false},
		{"E-6 perfect match", ruled(auto(nginx, redis), func(r *Rules) { r.PerfectMatch = true }),
			[]Candidate{snap("most", 1, nginx), snap("all", 2, redis, nginx)}, []string{"all"},
			map[string]Verdict{"all": VerdictChosen, "most": VerdictGate}, "", false},
		{"E-6 perfect match, nobody", ruled(auto(nginx, redis), func(r *Rules) { r.PerfectMatch = true }),
			[]Candidate{snap("most", 1, nginx)}, nil, map[string]Verdict{"most": VerdictGate}, "", true},
		{"E-6 without it the same is taken", auto(nginx, redis), []Candidate{snap("most", 1, nginx)}, []string{"most"},
			map[string]Verdict{"most": VerdictChosen}, "", false},
		{"E-7 two have to match exactly", ruled(auto(nginx, redis, busybox), func(r *Rules) { r.MatchCount = 2 }),
			[]Candidate{snap("one", 1, nginx), snap("two", 2, redis, busybox)}, []string{"two"},
			map[string]Verdict{"two": VerdictChosen, "one": VerdictGate}, "", false},
		{"E-7 containers of one image count each", ruled(auto(redis, redis), func(r *Rules) { r.MatchCount = 2 }),
			[]Candidate{snap("a", 1, redis)}, []string{"a"}, map[string]Verdict{"a": VerdictChosen}, "", false},
		{"E-7 a moved tag does not count", ruled(auto(nginx), func(r *Rules) { r.MatchCount = 1 }),
			[]Candidate{snap("a", 1, moved(nginx, "debian:30:70", "newer:40:90"))}, nil, map[string]Verdict{"a": VerdictGate}, "", true},
		{"E-10 perfect match overrides the count", ruled(auto(nginx), func(r *Rules) { r.PerfectMatch, r.MatchCount = true, 9 }),
			[]Candidate{snap("a", 1, nginx)}, []string{"a"}, map[string]Verdict{"a": VerdictChosen}, "", false},
		{"E-10 and is not softened by it", ruled(auto(nginx, redis), func(r *Rules) { r.PerfectMatch, r.MatchCount = true, 1 }),
			[]Candidate{snap("a", 1, nginx)}, nil, map[string]Verdict{"a": VerdictGate}, "", true},
		{"Q16 more than there are never matches", ruled(auto(nginx), func(r *Rules) { r.MatchCount = 2 }),
			[]Candidate{snap("a", 1, nginx)}, nil, map[string]Verdict{"a": VerdictGate}, "there are only 1", true},
		{"E-14 all containers of a pod", ruled(auto(nginx, busybox), func(r *Rules) { r.Order = OrderDegree }),
			[]Candidate{snap("a", 2, nginx, busybox), snap("b", 1, nginx)}, []string{"a"}, map[string]Verdict{"a": VerdictChosen, "b": VerdictLost}, "", false},
		{"Q6 a moved tag matches by layer but nothing is matched", auto(nginx),
			[]Candidate{snap("a", 1, moved(nginx, "debian:30:70", "newer:40:90"))}, []string{"a"}, map[string]Verdict{"a": VerdictChosen}, "", true},
		{"a moved tag without a common layer", auto(nginx), []Candidate{snap("a", 1, moved(nginx, "x:1:1"))}, nil,
			map[string]Verdict{"a": VerdictNoMatch}, "", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := match(t, fleet(t, tc.fleet...), tc.request)
			require.Equal(t, append([]string{}, tc.want...), names(d))
			require.Equal(t, tc.verdicts, verdicts(d))
			require.Equal(t, tc.nothing, d.NothingMatched)
			require.True(t, d.Proven)
			require.NotEmpty(t, d.Reason)
			if tc.want == nil {
				require.Equal(t, OutcomePull, d.Outcome)
			} else {
				require.Equal(t, OutcomeUse, d.Outcome)
			}
			if tc.warning == "" {
				require.Empty(t, d.Warnings)
			} else {
				require.Contains(t, strings.Join(d.Warnings, "\n"), tc.warning)
			}
		})
	}
}

// TestPins has the rules for pins: C-2, C-6, C-9 to C-11, E-8, E-9, E-11, Q1, Q2, Q3, Q18.
func TestPins(t *testing.T) {
	const (
		use    = OutcomeUse
		pull   = OutcomePull
		reject = OutcomeReject
	)
	pin := func(p Pin, change func(*Rules), images ...Image) Request {
		r := Request{Images: images, Now: noon}
		r.Rules.Pin = p
		if change != nil {
			change(&r.Rules)
		}
		return r
	}
	autoToo := func(c ConflictPolicy) func(*Rules) {
		return func(r *Rules) { r.AutoMatch, r.Conflict = true, c }
	}
	refuse := func(r *Rules) { r.RejectIfUnavailable = true }
	byName, byID := Pin{Name: "web"}, Pin{ID: "id-web"}
	web, other := snap("web", 9, nginx), snap("other", 1, nginx)
	creating := but(web, func(c *Candidate) { c.State = "Creating" })
	for _, tc := range []struct {
		name    string
		request Request
		fleet   []Candidate
		outcome Outcome
		chosen  string
		code    RejectCode
		says    string // in the reason, or in a warning of the outcome "use"
	}{
		{"C-2 C-9 by name, though another is better", pin(byName, nil, nginx), []Candidate{web, other}, use, "web", "", ""},
		{"E-8 by ID", pin(byID, nil, nginx), []Candidate{web, other}, use, "web", "", ""},
		{"E-8 an ID is no name", pin(Pin{ID: "web"}, nil, nginx), []Candidate{web}, pull, "", "", `with ID "web" does not exist`},
		{"C-9 a name is no ID", pin(Pin{Name: "id-web"}, nil, nginx), []Candidate{web}, pull, "", "", `"id-web" does not exist`},
		{"neutral: name first", pin(Pin{Name: "web", NameOrID: true}, nil, nginx),
			[]Candidate{web, but(other, func(c *Candidate) { c.ID = "web" })}, use, "web", "", ""},
		{"neutral: ID if there is no such name", pin(Pin{Name: "id-web", NameOrID: true}, nil, nginx), []Candidate{web}, use, "web", "", ""},
		{"name and ID of one", pin(Pin{Name: "web", ID: "id-web"}, nil, nginx), []Candidate{web, other}, use, "web", "", ""},
		{"name and ID of two", pin(Pin{Name: "web", ID: "id-other"}, refuse, nginx), []Candidate{web, other}, reject, "", RejectNotFound, `no image snapshot has both`},
		{"of several with the name the newest that may be used", pin(byName, nil, nginx), []Candidate{
			web, but(snap("web", 5, nginx), func(c *Candidate) { c.ID = "id-2" }),
			but(creating, func(c *Candidate) { c.ID, c.Created = "id-3", noon }),
		}, use, "web", "", ""},

		{"C-10 Q3 missing: pull", pin(byName, nil, nginx), []Candidate{other}, pull, "", "", `"web" does not exist`},
		{"C-10 not ready: pull", pin(byName, nil, nginx), []Candidate{creating}, pull, "", "", `its state is "Creating"`},
		{"C-10 expired: pull", pin(byName, nil, nginx), []Candidate{but(web, func(c *Candidate) { c.Expires = noon })}, pull, "", "", "it expired at 2026-06-01 12:00:00 UTC"},
		{"C-10 out of reach: pull", pin(byName, nil, nginx), []Candidate{but(web, func(c *Candidate) { c.Unreachable = "it is in zone b" })}, pull, "", "", "it is in zone b"},
		{"C-10 another platform: pull", pin(byName, nil, on(arm64, nginx)), []Candidate{web}, pull, "", "", "it holds images for linux/amd64, wanted is linux/arm64"},
		{"C-11 Q18 missing: rejected by name", pin(byName, refuse, nginx), []Candidate{other}, reject, "", RejectNotFound, `"web"`},
		{"C-11 E-11 not ready: rejected", pin(byName, refuse, nginx), []Candidate{creating}, reject, "", RejectUnavailable, `"web" cannot be used: its state is "Creating"`},
		{"C-11 ready: used", pin(byName, refuse, nginx), []Candidate{web}, use, "web", "", ""},

		{"C-6 Q1 (b) another is better: rejected", pin(byName, autoToo(ConflictRejectIfDifferent), nginx), []Candidate{web, other}, reject, "", RejectConflict, `"web" is asked for, but automatic matching, which is asked for too, takes "other"`},
		{"C-6 Q1 (b) the same: used", pin(byName, autoToo(ConflictRejectIfDifferent), nginx), []Candidate{web, snap("worse", 1, busybox)}, use, "web", "", ""},
		{"C-6 Q1 (b) automatic matching finds nothing: used", pin(byName, autoToo(ConflictRejectIfDifferent), redis), []Candidate{snap("web", 1, busybox)}, use, "web", "", "shares no layer"},
		{"C-10 before C-6: what does not exist conflicts with nothing", pin(byName, autoToo(ConflictRejectIfDifferent), nginx), []Candidate{other}, pull, "", "", "does not exist"},
		{"C-6 Q1 (a) strict: both asked for", pin(byName, autoToo(ConflictRejectBoth), nginx), []Candidate{web}, reject, "", RejectConflict, "ask for one of both"},
		{"C-6 Q1 (a) strict: only the pin", pin(byName, func(r *Rules) { r.Conflict = ConflictRejectBoth }, nginx), []Candidate{web}, use, "web", "", ""},
		{"E-9 Q2 the pin wins silently", pin(byID, autoToo(ConflictPinWinsSilently), nginx), []Candidate{web, other}, use, "web", "", ""},
		{"neutral: the pin wins with a warning", pin(byName, autoToo(ConflictPinWins), nginx), []Candidate{web, other}, use, "web", "", `would take "other"`},
		{"E-9 E-11 the pin is not ready: rejected though another matches", pin(byID, func(r *Rules) {
			r.AutoMatch, r.Conflict, r.RejectIfUnavailable = true, ConflictPinWinsSilently, true
		}, nginx), []Candidate{creating, other}, reject, "", RejectUnavailable, "cannot be used"},

		{"CCE: unused if it lacks the images", pin(byName, func(r *Rules) { r.PinNeedsMatch = true }, redis), []Candidate{web}, pull, "", "", "holds none of the images"},
		{"CCE: used if it has one", pin(byName, func(r *Rules) { r.PinNeedsMatch = true }, redis, nginx), []Candidate{web}, use, "web", "", ""},
		{"gates are for automatic matching alone", pin(byName, func(r *Rules) { r.PerfectMatch, r.MatchCount = true, 5 }, redis, nginx), []Candidate{web}, use, "web", "", ""},
		{"a pin that shares nothing is used with a warning", pin(byName, nil, busybox), []Candidate{web}, use, "web", "", "shares no layer"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := match(t, fleet(t, tc.fleet...), tc.request)
			require.Equal(t, tc.outcome, d.Outcome, d.Reason)
			switch tc.outcome {
			case use:
				require.Equal(t, []string{tc.chosen}, names(d))
				require.True(t, d.Chosen[0].Pinned)
				for _, c := range d.Candidates {
					require.Equal(t, c.ID == d.Chosen[0].ID, c.Verdict == VerdictChosen, c.Why)
				}
				if tc.says == "" {
					require.Empty(t, d.Warnings)
				} else {
					require.Contains(t, strings.Join(d.Warnings, "\n"), tc.says)
				}
			case reject:
				require.Empty(t, d.Chosen)
				require.Equal(t, tc.code, d.Rejection.Code)
				require.Contains(t, d.Rejection.Message, tc.says)
				require.Equal(t, d.Reason, d.Rejection.Error())
				for name, v := range verdicts(d) {
					require.NotEqual(t, VerdictChosen, v, name)
				}
			default:
				require.Empty(t, d.Chosen)
				require.Nil(t, d.Rejection)
				require.Contains(t, d.Reason, tc.says)
			}
		})
	}
}

// TestExact has the rule for exact matches, Q6 of docs/requirements.md: digests where both sides know them, names
// otherwise.
func TestExact(t *testing.T) {
	const ref = "docker.io/library/nginx"
	man, index := nginx.ManifestDigest, digest.FromString("index")
	byDigest := func(d digest.Digest) string { return ref + "@" + d.String() }
	for _, tc := range []struct {
		name   string
		asked  Image
		has    CandidateImage
		want   MatchedBy
		moved  digest.Digest
		others []CandidateImage
	}{
		{"same name and digest", nginx, CandidateImage{Reference: nginx.Reference, Platform: amd64, ManifestDigest: man}, MatchedByDigest, "", nil},
		{"same digest under another name", nginx, CandidateImage{Reference: "mirror/x:y", Platform: amd64, ManifestDigest: man}, MatchedByDigest, "", nil},
		{"moved tag", nginx, CandidateImage{Reference: nginx.Reference, Platform: amd64, ManifestDigest: index}, MatchedByNone, index, nil},
		{"moved tag, but the wanted one is there under another", nginx, CandidateImage{Reference: nginx.Reference, Platform: amd64, ManifestDigest: index}, MatchedByDigest, "",
			[]CandidateImage{{Reference: "docker.io/library/nginx:old", Platform: amd64, ManifestDigest: man}}},
		{"name, digest unknown here", named(nginx), CandidateImage{Reference: nginx.Reference, Platform: amd64, ManifestDigest: man}, MatchedByName, "", nil},
		{"name, digest unknown there", nginx, CandidateImage{Reference: nginx.Reference, Platform: amd64}, MatchedByName, "", nil},
		{"other name", named(nginx), CandidateImage{Reference: ref + ":1.26", Platform: amd64, ManifestDigest: man}, MatchedByNone, "", nil},
		{"other platform by name", named(nginx), CandidateImage{Reference: nginx.Reference, Platform: arm64}, MatchedByNone, "", []CandidateImage{{Reference: "x:1", Platform: amd64}}},
		{"platform of no interest", on(Platform{}, named(nginx)), CandidateImage{Reference: nginx.Reference, Platform: arm64}, MatchedByName, "", nil},
		{"asked for by manifest digest", Image{Reference: byDigest(man), Platform: amd64}, CandidateImage{Reference: nginx.Reference, Platform: amd64, ManifestDigest: man}, MatchedByDigest, "", nil},
		{"asked for by index digest", Image{Reference: byDigest(index), Platform: amd64}, CandidateImage{Reference: nginx.Reference, Platform: amd64, ManifestDigest: man, IndexDigest: index}, MatchedByDigest, "", nil},
		{"asked for by another digest", Image{Reference: byDigest(digest.FromString("?")), Platform: amd64}, CandidateImage{Reference: nginx.Reference, Platform: amd64, ManifestDigest: man, IndexDigest: index}, MatchedByNone, "", nil},
		{"two platforms of one name", nginx, CandidateImage{Reference: nginx.Reference, Platform: arm64, ManifestDigest: index}, MatchedByDigest, "",
			[]CandidateImage{{Reference: nginx.Reference, Platform: amd64, ManifestDigest: man}}},
		{"no reference, digest alone", Image{ManifestDigest: man, Platform: amd64}, CandidateImage{Reference: nginx.Reference, Platform: amd64, ManifestDigest: man}, MatchedByDigest, "", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.asked.Layers = nil
			c := Candidate{Name: "c", ID: "c", State: StateAvailable, Images: append([]CandidateImage{tc.has}, tc.others...)}
			d := match(t, fleet(t, c), Request{Images: []Image{tc.asked}, Rules: Rules{Pin: Pin{Name: "c"}}})
			got := explained(t, d, "c").Images[0]
			require.Equal(t, tc.want, got.By)
			require.Equal(t, tc.moved, got.MovedTag)

			d = match(t, fleet(t, c), Request{Images: []Image{tc.asked}, Rules: Rules{AutoMatch: true, PerfectMatch: true}})
			require.Equal(t, tc.want.Exact(), d.Outcome == OutcomeUse)
			require.Equal(t, tc.want == MatchedByNone, d.NothingMatched)
		})
	}
}

// TestInvalid has requests and candidates that are refused, and that a refused candidate leaves the index as it was.
func TestInvalid(t *testing.T) {
	bad := func(change func(*Request)) Request {
		r := auto(img("a:1", "l:1"))
		change(&r)
		return r
	}
	for name, r := range map[string]Request{
		"no image":         bad(func(r *Request) { r.Images = nil }),
		"too many images":  bad(func(r *Request) { r.Images = make([]Image, MaxImages+1) }),
		"no reference":     bad(func(r *Request) { r.Images[0].Reference, r.Images[0].ManifestDigest = "", "" }),
		"long reference":   bad(func(r *Request) { r.Images[0].Reference = strings.Repeat("x", MaxReferenceBytes+1) }),
		"manifest digest":  bad(func(r *Request) { r.Images[0].ManifestDigest = "sha256:XYZ" }),
		"chain ID":         bad(func(r *Request) { r.Images[0].Layers[0].ChainID = "sha256:" + digest.Digest(strings.Repeat("A", 64)) }),
		"diff ID":          bad(func(r *Request) { r.Images[0].Layers[0].DiffID = "x" }),
		"blob":             bad(func(r *Request) { r.Images[0].Layers[0].Blob = "md5:00" }),
		"negative size":    bad(func(r *Request) { r.Images[0].Layers[0].UnpackedBytes = -1 }),
		"enormous size":    bad(func(r *Request) { r.Images[0].Layers[0].CompressedBytes = 1 << 60 }),
		"too many layers":  bad(func(r *Request) { r.Images[0].Layers = make([]Layer, 501) }),
		"order":            bad(func(r *Request) { r.Rules.Order = 9 }),
		"conflict policy":  bad(func(r *Request) { r.Rules.Conflict = -1 }),
		"match count":      bad(func(r *Request) { r.Rules.MatchCount = -1 }),
		"disks":            bad(func(r *Request) { r.Rules.MaxAttach = MaxDisks + 1 }),
		"cost":             bad(func(r *Request) { r.Rules.AttachCostBytes = -1 }),
		"invalid and idle": bad(func(r *Request) { r.Rules = Rules{MatchCount: -1} }),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewIndex().Match(r)
			require.ErrorIs(t, err, ErrInvalidRequest)
		})
	}

	x := fleet(t, snap("a", 1, nginx))
	for name, change := range map[string]func(*Candidate){
		"no name":         func(c *Candidate) { c.Name = "" },
		"no ID":           func(c *Candidate) { c.ID = "" },
		"image size":      func(c *Candidate) { c.Images[0].SizeBytes = -1 },
		"manifest digest": func(c *Candidate) { c.Images[0].ManifestDigest = "?" },
		"index digest":    func(c *Candidate) { c.Images[0].IndexDigest = "?" },
		"layer digest":    func(c *Candidate) { c.Layers[0].DiffID = "?" },
		"layer size":      func(c *Candidate) { c.Layers[0].UnpackedBytes = -1 },
	} {
		t.Run("candidate: "+name, func(t *testing.T) {
			require.Error(t, x.Put(but(snap("a", 1, redis), change)))
			require.Equal(t, []string{"a"}, names(match(t, x, ruled(auto(nginx), func(r *Rules) { r.PerfectMatch = true }))))
			require.Equal(t, 1, x.Len())
		})
	}
	var r *Rejection
	require.ErrorAs(t, errors.Join(&Rejection{Message: "no"}), &r)
}
