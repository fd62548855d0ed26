package imagesnapshot_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
)

func valid() *imagesnapshot.ImageSnapshot {
	s := &imagesnapshot.ImageSnapshot{
		Metadata: imagesnapshot.Metadata{Name: "nightly-1", ID: "x", Owner: "tenant", ClientToken: "t", Labels: map[string]string{"k": "v"}},
		Spec: imagesnapshot.Spec{
			Images: []string{"nginx:1.27", "registry.example:5000/team/app@sha256:" + strings.Repeat("a", 64)}, Platforms: []string{"linux/arm64"},
			Registries: []imagesnapshot.Registry{{Server: "registry.example:5000", Secret: "default:pull"}},
		},
	}
	s.Complete(imagesnapshot.DefaultLimits())
	return s
}

// TestDefaults is, C-39 and A-12.
func TestDefaults(t *testing.T) {
	s := valid()
	require.NoError(t, s.Validate(imagesnapshot.DefaultLimits()))
	require.Equal(t, 20, s.Spec.Size.GiB)
	require.Zero(t, s.Spec.RetentionDays)
	require.Equal(t, 1440, s.Spec.Build.TimeoutMinutes)
	require.Equal(t, "docker.io/library/nginx:1.27", s.Spec.Images[0])
	require.Equal(t, imagesnapshot.OriginManual, s.Origin)
	require.Equal(t, imagesnapshot.Copies{Standard: 1, Flash: 1}, s.Spec.Copies)
	again := s.Clone()
	again.Complete(imagesnapshot.DefaultLimits())
	require.Equal(t, s, again)
	require.Equal(t, 50, imagesnapshot.DefaultLimits().MaxPerOwner, "A-3")
}

// TestValidate has every rule with the value just inside and just outside (C-30..C-41, A-4..A-7, Q10, Q13).
func TestValidate(t *testing.T) {
	many := func(n int, format string) (list []string) {
		for i := range n {
			list = append(list, fmt.Sprintf(format, i))
		}
		return list
	}
	registries := func(n int) (list []imagesnapshot.Registry) {
		for _, s := range many(n, "r%d.example") {
			list = append(list, imagesnapshot.Registry{Server: s})
		}
		return list
	}
	labels := func(n int) map[string]string {
		m := map[string]string{}
		for _, s := range many(n, "k%d") {
			m[s] = ""
		}
		return m
	}
	type object = imagesnapshot.ImageSnapshot
	for _, test := range []struct {
		field string
		good  []func(*object)
		bad   []func(*object)
		says  string
	}{
		{"name", names("a", "a-1", strings.Repeat("a", 128)), names("", "1a", "-a", "a-", "A", "a_b", "a.b", "ä", strings.Repeat("a", 129)), "1 to 128"},
		{
			"spec.images", sets(func(o *object, n int) { o.Spec.Images = many(n, "img%d") }, 1, 10),
			sets(func(o *object, n int) { o.Spec.Images = many(n, "img%d") }, 0, 11), "1 to 10",
		},
		{
			"spec.images[0]", nil, []func(*object){
				func(o *object) { o.Spec.Images = []string{"docker.io/UPPER/case"} },
				func(o *object) { o.Spec.Images = []string{""} },
				func(o *object) { o.Spec.Images = []string{"-flag"} },
				func(o *object) { o.Spec.Images = []string{"name=oci:dir"} },
			}, "no image reference",
		},
		{"spec.images[1]", nil, []func(*object){func(o *object) { o.Spec.Images = []string{"nginx", "docker.io/library/nginx:latest"} }}, "twice"},
		{"spec.size.gib", sets(func(o *object, n int) { o.Spec.Size.GiB = n }, 20, 400), sets(func(o *object, n int) { o.Spec.Size.GiB = n }, 19, 401, -1), "20 to 400"},
		{
			"spec.size", []func(*object){func(o *object) { o.Spec.Size = imagesnapshot.Size{AsNeeded: true} }},
			[]func(*object){func(o *object) { o.Spec.Size = imagesnapshot.Size{AsNeeded: true, GiB: 20} }}, "exclude",
		},
		{"spec.retentionDays", sets(func(o *object, n int) { o.Spec.RetentionDays = n }, 0, 10000), sets(func(o *object, n int) { o.Spec.RetentionDays = n }, -1, 10001), "0 to 10000"},
		{"spec.build.timeoutMinutes", sets(func(o *object, n int) { o.Spec.Build.TimeoutMinutes = n }, 30, 10080), sets(func(o *object, n int) { o.Spec.Build.TimeoutMinutes = n }, 29, 10081), "30 to 10080"},
		{"spec.registries", sets(func(o *object, n int) { o.Spec.Registries = registries(n) }, 0, 10), sets(func(o *object, n int) { o.Spec.Registries = registries(n) }, 11), "at most 10"},
		{
			"spec.registries[0].server", servers("docker.io", "localhost:5000", "10.0.0.1:5000", "[::1]:5000"),
			servers("", "https://registry.example", "registry.example/path", "reg istry", "a@b.example", "example"), "host[:port]",
		},
		{"spec.registries[0].secret", secrets("", "pull", "ns:pull_1.x-y"), secrets("pass word", "a/b", `{"auths":{}}`, strings.Repeat("x", 400)), "name of a secret"},
		{"spec.registries[0]", nil, []func(*object){func(o *object) {
			o.Spec.Registries = []imagesnapshot.Registry{{Server: "r.example", PlainHTTP: true, InsecureSkipVerify: true}}
		}}, "exclude"},
		{"spec.platforms[0]", nil, []func(*object){func(o *object) { o.Spec.Platforms = []string{"a/b/c/d/e"} }}, "no platform"},
		{"spec.build.dnsServers[0]", nil, []func(*object){func(o *object) { o.Spec.Build.DNSServers = []string{"dns.example"} }}, "no IP address"},
		{"spec.elimination", []func(*object){func(o *object) { o.Spec.Elimination = "LRU" }}, []func(*object){func(o *object) { o.Spec.Elimination = "lru" }}, "LRU"},
		{"spec.copies.standard", sets(func(o *object, n int) { o.Spec.Copies.Standard = n }, 1, 10), sets(func(o *object, n int) { o.Spec.Copies.Standard = n }, -1, 11), "1 to 10"},
		{"spec.copies.flash", sets(func(o *object, n int) { o.Spec.Copies.Flash = n }, 10), sets(func(o *object, n int) { o.Spec.Copies.Flash = n }, 11), "1 to 10"},
		{
			"clientToken", tokens("", strings.Repeat("x", 64)), tokens(strings.Repeat("x", 65), "ü", "a b", "a\n"), "ASCII",
		},
		{"labels", sets(func(o *object, n int) { o.Labels = labels(n) }, 20), sets(func(o *object, n int) { o.Labels = labels(n) }, 21), "at most 20"},
		{"owner", nil, []func(*object){func(o *object) { o.Owner = "a\x00b" }, func(o *object) { o.Owner = strings.Repeat("x", 300) }}, "control"},
		{"origin", nil, []func(*object){func(o *object) { o.Origin = "Elsewhere" }}, "Manual"},
		{"annotations", nil, []func(*object){func(o *object) { o.Annotations = map[string]string{"k": strings.Repeat("x", 1<<17)} }}, "at most"},
	} {
		t.Run(test.field, func(t *testing.T) {
			for i, change := range test.good {
				s := valid()
				change(s)
				require.NoError(t, s.Validate(imagesnapshot.DefaultLimits()), "good %d", i)
			}
			for i, change := range test.bad {
				s := valid()
				change(s)
				err := s.Validate(imagesnapshot.DefaultLimits())
				require.True(t, errdefs.IsInvalidArgument(err), "bad %d: %v", i, err)
				var field *imagesnapshot.FieldError
				require.ErrorAs(t, err, &field, "bad %d", i)
				require.Equal(t, test.field, field.Field, "bad %d: %v", i, err)
				if i == 0 {
					require.Contains(t, err.Error(), test.says)
				}
			}
		})
	}
}

type change = func(*imagesnapshot.ImageSnapshot)

func texts(set func(*imagesnapshot.ImageSnapshot, string), values []string) (list []change) {
	for _, v := range values {
		list = append(list, func(o *imagesnapshot.ImageSnapshot) { set(o, v) })
	}
	return list
}

func sets(set func(*imagesnapshot.ImageSnapshot, int), values ...int) (list []change) {
	for _, v := range values {
		list = append(list, func(o *imagesnapshot.ImageSnapshot) { set(o, v) })
	}
	return list
}

func names(values ...string) []change {
	return texts(func(o *imagesnapshot.ImageSnapshot, v string) { o.Name = v }, values)
}

func tokens(values ...string) []change {
	return texts(func(o *imagesnapshot.ImageSnapshot, v string) { o.ClientToken = v }, values)
}

func servers(values ...string) []change {
	return texts(func(o *imagesnapshot.ImageSnapshot, v string) {
		o.Spec.Registries = []imagesnapshot.Registry{{Server: v}}
	}, values)
}

func secrets(values ...string) []change {
	return texts(func(o *imagesnapshot.ImageSnapshot, v string) {
		o.Spec.Registries = []imagesnapshot.Registry{{Server: "r.example", Secret: v}}
	}, values)
}

// TestAllProblemsAtOnce, and none of them repeats what may be a secret.
func TestAllProblemsAtOnce(t *testing.T) {
	s := valid()
	s.Name, s.Spec.RetentionDays = "X", -5
	s.Spec.Registries[0].Secret = "hunter 2"
	err := s.Validate(imagesnapshot.DefaultLimits())
	for _, field := range []string{"name: ", "spec.retentionDays: -5", "spec.registries[0].secret: "} {
		require.ErrorContains(t, err, field)
	}
	require.NotContains(t, err.Error(), "hunter")
}

func TestLimits(t *testing.T) {
	good := imagesnapshot.DefaultLimits()
	require.NoError(t, good.Check())
	for name, spoil := range map[string]func(*imagesnapshot.Limits){
		"images 9":        func(l *imagesnapshot.Limits) { l.MaxImages = 9 },
		"images 21":       func(l *imagesnapshot.Limits) { l.MaxImages = 21 },
		"sizes":           func(l *imagesnapshot.Limits) { l.MaxSizeGiB = 10 },
		"default size":    func(l *imagesnapshot.Limits) { l.DefaultSizeGiB = 500 },
		"quota":           func(l *imagesnapshot.Limits) { l.MaxPerOwner = -1 },
		"default timeout": func(l *imagesnapshot.Limits) { l.DefaultTimeoutMinutes = 1 },
	} {
		l := good
		spoil(&l)
		require.True(t, errdefs.IsInvalidArgument(l.Check()), name)
	}
	twenty := good
	twenty.MaxImages = 20
	require.NoError(t, twenty.Check())
	s := valid()
	for i := range 18 {
		s.Spec.Images = append(s.Spec.Images, fmt.Sprintf("docker.io/library/x%d:1", i))
	}
	require.NoError(t, s.Validate(twenty))
	require.Error(t, s.Validate(good))
}

// TestWarnings is the second half of A-6.
func TestWarnings(t *testing.T) {
	s := valid()
	require.Empty(t, s.Warnings(0))
	require.Empty(t, s.Warnings(20<<30/3))
	require.Len(t, s.Warnings(20<<30/3+1), 1)
	s.Spec.Size = imagesnapshot.Size{AsNeeded: true}
	require.Empty(t, s.Warnings(100<<30))
	s.Spec.Copies.Flash = 2
	require.Len(t, s.Warnings(0), 1)
}

// TestPhases has every pair of phases: what is not allowed here is refused with both names.
func TestPhases(t *testing.T) {
	allowed := map[imagesnapshot.Phase]string{
		"Pending":      "Creating Failed Unavailable Deleting",
		"Creating":     "Available Failed Unavailable Deleting",
		"Available":    "Updating UpdateFailed Unavailable Deleting",
		"Updating":     "Available UpdateFailed Unavailable Deleting",
		"UpdateFailed": "Updating Unavailable Deleting",
		"Failed":       "Deleting",
		"Unavailable":  "Deleting",
		"Deleting":     "",
	}
	require.Len(t, imagesnapshot.Phases(), len(allowed))
	for from, list := range allowed {
		require.True(t, from.Known())
		for _, to := range imagesnapshot.Phases() {
			s := valid()
			s.Status.Phase = from
			want := from == to || slices.Contains(strings.Fields(list), string(to))
			require.Equal(t, want, from.CanBecome(to), "%s to %s", from, to)
			err := s.SetPhase(to, imagesnapshot.ReasonReady, "m")
			if want {
				require.NoError(t, err)
				require.Equal(t, to, s.Status.Phase)
				continue
			}
			require.True(t, errdefs.IsFailedPrecondition(err))
			require.ErrorContains(t, err, string(from))
			require.ErrorContains(t, err, string(to))
			require.Equal(t, from, s.Status.Phase)
		}
		if from != "Deleting" {
			require.True(t, from.CanBecome("Deleting"), "C-25")
		}
		require.Equal(t, from == "Available" || from == "UpdateFailed", from.CanUpdate(), "E-28")
	}
	require.False(t, imagesnapshot.Phase("Ready").Known())
}

// TestUsable is E-26 and C-3.
func TestUsable(t *testing.T) {
	now := time.Now()
	for _, phase := range imagesnapshot.Phases() {
		s := valid()
		s.Status.Phase, s.Status.SnapshotID = phase, "s"
		require.Equal(t, phase == imagesnapshot.PhaseAvailable, s.Usable(now, false), phase)
		old := phase == imagesnapshot.PhaseUpdating || phase == imagesnapshot.PhaseUpdateFailed
		require.Equal(t, old || phase == imagesnapshot.PhaseAvailable, s.Usable(now, true), phase)
		s.Status.Expires = now
		require.False(t, s.Usable(now, true), "expired")
		s.Status.Expires, s.Status.SnapshotID = time.Time{}, ""
		require.False(t, s.Usable(now, true), "nothing to use")
	}
}

func TestEvents(t *testing.T) {
	s := valid()
	at := func(i int) time.Time { return time.Unix(int64(i), 0) }
	s.AddEvent(at(1), imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, "busy")
	s.AddEvent(at(2), imagesnapshot.EventNormal, imagesnapshot.ReasonReady, "usable")
	s.AddEvent(at(3), imagesnapshot.EventWarning, imagesnapshot.ReasonRetrying, "busy")
	require.Equal(t, []imagesnapshot.Event{
		{Type: imagesnapshot.EventNormal, Reason: imagesnapshot.ReasonReady, Message: "usable", Count: 1, First: at(2), Last: at(2)},
		{Type: imagesnapshot.EventWarning, Reason: imagesnapshot.ReasonRetrying, Message: "busy", Count: 2, First: at(1), Last: at(3)},
	}, s.Status.Events)
	for i := range 1000 {
		s.AddEvent(at(10+i), imagesnapshot.EventNormal, imagesnapshot.ReasonChanged, fmt.Sprint(i))
	}
	require.Len(t, s.Status.Events, imagesnapshot.MaxEvents)
	require.Equal(t, "999", s.Status.Events[imagesnapshot.MaxEvents-1].Message)
	long := strings.Repeat("ü", 3000)
	s.AddEvent(at(5000), imagesnapshot.EventNormal, imagesnapshot.ReasonChanged, long)
	last := s.Status.Events[imagesnapshot.MaxEvents-1].Message
	require.LessOrEqual(t, len(last), imagesnapshot.MaxMessageBytes)
	require.True(t, strings.HasSuffix(last, "ü…"))
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		"get https://user:pw@registry.example/v2/":      "get https://***@registry.example/v2/",
		`Get "https://s3.example/b?X-Sig=abc&y=1": EOF`: `Get "https://s3.example/b?***": EOF`,
		"header Authorization: Bearer abc.def-123":      "header Authorization: Bearer ***",
		"Basic dXNlcjpwdw== refused":                    "Basic *** refused",
		"the word s3cret, twice s3cret":                 "the word ***, twice ***",
		"nothing at https://registry.example/v2/x":      "nothing at https://registry.example/v2/x",
	} {
		require.Equal(t, want, imagesnapshot.Redact(in, "s3cret", ""))
	}
}

func TestAutomaticName(t *testing.T) {
	name := imagesnapshot.AutomaticName("o", []string{"nginx", "redis:7"}, nil)
	require.NoError(t, imagesnapshot.CheckName(name))
	for _, same := range [][]string{{"redis:7", "nginx"}, {"docker.io/library/nginx:latest", "redis:7", "redis:7"}} {
		require.Equal(t, name, imagesnapshot.AutomaticName("o", same, nil))
	}
	seen := map[string]bool{name: true}
	for _, other := range []string{
		imagesnapshot.AutomaticName("", []string{"nginx", "redis:7"}, nil),
		imagesnapshot.AutomaticName("o", []string{"nginx", "redis:6"}, nil),
		imagesnapshot.AutomaticName("o", []string{"nginx"}, nil),
		imagesnapshot.AutomaticName("o", []string{"nginx", "redis:7"}, []string{"linux/arm64"}),
		imagesnapshot.AutomaticName("o", []string{"nginx@sha256:" + strings.Repeat("a", 64), "redis:7"}, nil),
	} {
		require.False(t, seen[other])
		seen[other] = true
	}
}
