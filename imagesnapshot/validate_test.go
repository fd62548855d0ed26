package imagesnapshot_test

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/imagesnapshottest"
)

// TestDefaults is, C-39 and A-12.
// Fails when the default timeout is another (C-39), or references are not normalised.
func TestDefaults(t *testing.T) {
	s := valid()
	require.NoError(t, s.Validate(imagesnapshottest.Limits()))
	require.Equal(t, 20, s.Spec.Size.GiB)
	require.Zero(t, s.Spec.RetentionDays)
	require.Equal(t, 1440, s.Spec.Build.TimeoutMinutes)
	require.Equal(t, "docker.io/library/nginx:1.27", s.Spec.Images[0])
	require.Equal(t, imagesnapshot.OriginManual, s.Origin)
	require.Equal(t, imagesnapshot.Copies{Standard: 1, Flash: 1}, s.Spec.Copies)
	again := s.Clone()
	again.Complete(imagesnapshottest.Limits())
	require.Equal(t, s, again)
}

// TestValidate has every rule with the value just inside and just outside, C-30 to C-37, C-39 to C-41, Q7,
// Q10, Q13, Q14; what is refused is named with the allowed range. That every field has its rows is wanted by
// TestEveryFieldHasItsRule.
// Fails when the number of images (C-30) or of registries (C-32) has no limit, when the size is not checked (C-31), or
// when 0 days are refused (C-37, Q7).
func TestValidate(t *testing.T) {
	for _, test := range rules() {
		t.Run(test.field, func(t *testing.T) {
			for i, change := range test.good {
				s := valid()
				change(s)
				require.NoError(t, s.Validate(imagesnapshottest.Limits()), "good %d", i)
			}
			require.NotEmpty(t, test.bad)
			for i, change := range test.bad {
				s := valid()
				change(s)
				err := s.Validate(imagesnapshottest.Limits())
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

// rule of one field, with values that it lets through and others that it does not.
type rule struct {
	field string
	good  []change
	bad   []change
	// says is in the message for the first bad value.
	says string
}

func rules() []rule {
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
	setPlatforms := func(o *object, n int) { o.Spec.Platforms = many(n, "linux/amd64/v%d") }
	setNameServers := func(o *object, n int) { o.Spec.Build.DNSServers = many(n, "10.0.0.%d") }
	return []rule{
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
				func(o *object) { o.Spec.Images = []string{"r.example/" + strings.Repeat("a/", 600) + "b"} },
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
		{"spec.platforms", sets(setPlatforms, 0, 1, 8), sets(setPlatforms, 9), "at most 8"},
		{"spec.platforms[0]", nil, []func(*object){func(o *object) { o.Spec.Platforms = []string{"a/b/c/d/e"} }}, "no platform"},
		{"spec.build.dnsServers", sets(setNameServers, 0, 3), sets(setNameServers, 4), "at most 3"},
		{"spec.build.dnsServers[0]", []func(*object){func(o *object) { o.Spec.Build.DNSServers = []string{"2001:db8::1"} }},
			[]func(*object){
				func(o *object) { o.Spec.Build.DNSServers = []string{"dns.example"} },
				func(o *object) { o.Spec.Build.DNSServers = []string{"10.0.0.1:53"} },
			}, "no IP address"},
		{"spec.build.parameters", []func(*object){
			func(o *object) { o.Spec.Build.Parameters = labels(64) },
			func(o *object) { o.Spec.Build.Parameters = map[string]string{"eipID": strings.Repeat("x", 4091)} },
		}, []func(*object){
			func(o *object) { o.Spec.Build.Parameters = labels(65) },
			func(o *object) { o.Spec.Build.Parameters = map[string]string{"eipID": strings.Repeat("x", 4092)} },
			func(o *object) { o.Spec.Build.Parameters = map[string]string{"": "x"} },
			func(o *object) { o.Spec.Build.Parameters = map[string]string{"k": "\xff"} },
		}, "at most 64 of 4096 bytes"},
		{"spec.elimination", []func(*object){func(o *object) { o.Spec.Elimination = "LRU" }}, []func(*object){func(o *object) { o.Spec.Elimination = "lru" }}, "LRU"},
		{"spec.copies.standard", sets(func(o *object, n int) { o.Spec.Copies.Standard = n }, 1, 10), sets(func(o *object, n int) { o.Spec.Copies.Standard = n }, -1, 11), "1 to 10"},
		{"spec.copies.flash", sets(func(o *object, n int) { o.Spec.Copies.Flash = n }, 1, 10), sets(func(o *object, n int) { o.Spec.Copies.Flash = n }, -1, 11), "1 to 10"},
		{
			"clientToken", tokens("", strings.Repeat("x", 64)), tokens(strings.Repeat("x", 65), "ü", "a b", "a\n"), "ASCII",
		},
		{"labels", []func(*object){
			func(o *object) { o.Labels = labels(20) },
			func(o *object) { o.Labels = map[string]string{strings.Repeat("k", 128): strings.Repeat("v", 256)} },
		}, []func(*object){
			func(o *object) { o.Labels = labels(21) },
			func(o *object) { o.Labels = map[string]string{"": "v"} },
			func(o *object) { o.Labels = map[string]string{strings.Repeat("k", 129): ""} },
			func(o *object) { o.Labels = map[string]string{"k": strings.Repeat("v", 257)} },
			func(o *object) { o.Labels = map[string]string{"k": "a\nb"} },
		}, "at most 20"},
		{"owner", []func(*object){func(o *object) { o.Owner = "" }, func(o *object) { o.Owner = strings.Repeat("x", 256) }},
			[]func(*object){func(o *object) { o.Owner = "a\x00b" }, func(o *object) { o.Owner = strings.Repeat("x", 257) }}, "at most 256 bytes"},
		{"origin", []func(*object){func(o *object) { o.Origin = imagesnapshot.OriginAutomatic }}, []func(*object){func(o *object) { o.Origin = "Elsewhere" }}, "Manual"},
		{"annotations", []func(*object){
			func(o *object) { o.Annotations = labels(64) },
			func(o *object) { o.Annotations = map[string]string{"k": strings.Repeat("x", 64<<10-1)} },
		}, []func(*object){
			func(o *object) { o.Annotations = labels(65) },
			func(o *object) { o.Annotations = map[string]string{"k": strings.Repeat("x", 64<<10)} },
			func(o *object) { o.Annotations = map[string]string{"": "x"} },
		}, "at most 64 of 65536 bytes"},
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

// TestEveryFieldHasItsRule: a field that is added without a rule, and a rule without a test, are found.
func TestEveryFieldHasItsRule(t *testing.T) {
	tested := make(map[string]bool)
	for _, r := range rules() {
		tested[strings.ReplaceAll(r.field, "[1]", "[0]")] = true
	}
	// Given by the life cycle and the store, not by users.
	given := []string{"id", "resourceVersion", "generation", "created", "deletionRequested"}
	var walk func(prefix string, of reflect.Type)
	walk = func(prefix string, of reflect.Type) {
		for field := range of.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			path := prefix + name
			switch field.Type.Kind() {
			case reflect.Struct:
				if !slices.Contains(given, path) {
					walk(path+".", field.Type)
				}
			case reflect.Slice:
				require.True(t, tested[path], "no rule for the number of %s", path)
				if field.Type.Elem().Kind() == reflect.Struct {
					walk(path+"[0].", field.Type.Elem())
				} else {
					require.True(t, tested[path+"[0]"], "no rule for each of %s", path)
				}
			case reflect.Bool: // every value is legal
			default:
				require.True(t, tested[path] || slices.Contains(given, path), "no rule for %s", path)
			}
		}
	}
	walk("", reflect.TypeFor[imagesnapshot.Metadata]())
	walk("spec.", reflect.TypeFor[imagesnapshot.Spec]())
}

// TestAllProblemsAtOnce, and none of them repeats what may be a secret.
func TestAllProblemsAtOnce(t *testing.T) {
	s := valid()
	s.Name, s.Spec.RetentionDays = "X", -5
	s.Spec.Registries[0].Secret = "hunter 2"
	err := s.Validate(imagesnapshottest.Limits())
	for _, field := range []string{"name: ", "spec.retentionDays: -5", "spec.registries[0].secret: "} {
		require.ErrorContains(t, err, field)
	}
	require.NotContains(t, err.Error(), "hunter")
}

// TestLimits is Q10: 10 images by default, up to 20 where an installation allows it.
// Fails when the number of images has no limit.
func TestLimits(t *testing.T) {
	good := imagesnapshottest.Limits()
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
