package config_test

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/internal/config"
	"berth.dev/berth/matcher/dialect"
)

// full is a configuration with one of everything that there can be several of.
func full() config.Config {
	keep, imports := true, true
	c := config.Default()
	c.Disks = []config.Disk{{Name: "a", Keep: &keep, Import: &imports}}
	c.Drivers.CSI = map[string]config.CSI{"cloud": {Parameters: map[string]string{"type": "ssd"}}}
	c.Dialects = []dialect.Dialect{example()}
	c.Automatic.Registries = []config.AutomaticRegistry{{Server: "registry.example"}}
	return c
}

// change is a field of a configuration, by its keys, and what gives it another value.
type change struct {
	key  string
	make func(root reflect.Value)
}

// changes finds every field below v, which reach finds in a configuration.
func changes(t *testing.T, key string, v reflect.Value, reach func(root reflect.Value) reflect.Value) (all []change) {
	t.Helper()
	leaf := func(set func(v reflect.Value)) []change {
		return []change{{key, func(root reflect.Value) { set(reach(root)) }}}
	}
	switch v.Kind() { //nolint:exhaustive // others end the test
	case reflect.Struct:
		for i := range v.NumField() {
			name := v.Type().Field(i).Tag.Get("toml")
			require.NotEmpty(t, name, "%s.%s has no key", key, v.Type().Field(i).Name)
			all = append(all, changes(t, key+"."+name, v.Field(i), func(root reflect.Value) reflect.Value { return reach(root).Field(i) })...)
		}
		return all
	case reflect.String:
		return leaf(func(v reflect.Value) { v.SetString(v.String() + "x") })
	case reflect.Bool:
		return leaf(func(v reflect.Value) { v.SetBool(!v.Bool()) })
	case reflect.Int, reflect.Int64:
		return leaf(func(v reflect.Value) { v.SetInt(v.Int() + 1) })
	case reflect.Float64:
		return leaf(func(v reflect.Value) { v.SetFloat(v.Float() + 1) })
	case reflect.Pointer:
		return leaf(func(v reflect.Value) { // another pointer: the one there is is the other configuration's too
			changed := reflect.New(v.Type().Elem())
			changed.Elem().SetBool(!v.Elem().Bool())
			v.Set(changed)
		})
	case reflect.Slice:
		all = leaf(func(v reflect.Value) { v.Set(reflect.Append(slicesClip(v), reflect.Zero(v.Type().Elem()))) })
		if v.Type().Elem().Kind() == reflect.Struct {
			require.Positive(t, v.Len(), "full has no %s", key)
			all = append(all, changes(t, key+"[0]", v.Index(0), func(root reflect.Value) reflect.Value {
				list := reach(root)
				list.Set(reflect.AppendSlice(reflect.Zero(list.Type()), list)) // a copy
				return list.Index(0)
			})...)
		}
		return all
	case reflect.Map:
		if v.Type().Elem().Kind() == reflect.String {
			return leaf(func(v reflect.Value) {
				changed := reflect.MakeMap(v.Type())
				for _, k := range v.MapKeys() {
					changed.SetMapIndex(k, v.MapIndex(k))
				}
				changed.SetMapIndex(reflect.ValueOf("another"), reflect.ValueOf("x"))
				v.Set(changed)
			})
		}
		for _, k := range v.MapKeys() {
			for _, c := range changes(t, key+"."+k.String(), v.MapIndex(k), func(elem reflect.Value) reflect.Value { return elem }) {
				all = append(all, change{c.key, func(root reflect.Value) {
					v := reach(root)
					elem := reflect.New(v.Type().Elem()).Elem()
					elem.Set(v.MapIndex(k))
					c.make(elem)
					changed := reflect.MakeMap(v.Type())
					changed.SetMapIndex(k, elem)
					v.Set(changed)
				}})
			}
		}
		return all
	}
	t.Fatalf("%s is a %s, of which this test knows no other value", key, v.Kind())
	return nil
}

func slicesClip(v reflect.Value) reflect.Value { return v.Slice3(0, v.Len(), v.Len()) }

// Every field that a reload does not take over is noticed, those that are still to be invented among them.
func TestNeedsRestartNoticesEveryField(t *testing.T) {
	reloadable := []string{".log.level", ".log.format", ".import.enabled", ".disk", ".disk[0].import"}
	base := full()
	all := changes(t, "", reflect.ValueOf(base), func(root reflect.Value) reflect.Value { return root })
	require.Greater(t, len(all), 80, "fields")
	for _, key := range reloadable {
		require.True(t, slices.ContainsFunc(all, func(c change) bool { return c.key == key }), key)
	}
	for _, c := range all {
		changed := full()
		c.make(reflect.ValueOf(&changed).Elem())
		require.NotEqual(t, base, changed, c.key)
		require.Equal(t, !slices.Contains(reloadable, c.key), base.NeedsRestart(&changed), c.key)
	}
	same := full()
	require.False(t, base.NeedsRestart(&same))
}

func TestNeedsRestart(t *testing.T) {
	keep := true
	base := config.Default()
	base.Disks = []config.Disk{{Name: "a", Path: "/a"}}
	for name, tc := range map[string]struct {
		change func(*config.Config)
		want   bool
	}{
		"nothing":    {func(*config.Config) {}, false},
		"log":        {func(c *config.Config) { c.Log.Level = config.LogDebug }, false},
		"disk added": {func(c *config.Config) { c.Disks = append(c.Disks, config.Disk{Name: "b", Path: "/b"}) }, false},
		"nothing, spelt": {func(c *config.Config) {
			c.Automatic.Registries, c.Drivers.CSI, c.Discover.Expect = []config.AutomaticRegistry{}, map[string]config.CSI{}, nil
		}, false},
		"default spelt":    {func(c *config.Config) { c.Disks = []config.Disk{{Name: "a", Path: "/a", Keep: &keep}} }, false},
		"disk removed":     {func(c *config.Config) { c.Disks = nil }, true},
		"disk changed":     {func(c *config.Config) { c.Disks = []config.Disk{{Name: "a", Path: "/c"}} }, true},
		"idle timeout":     {func(c *config.Config) { c.Stage.IdleTimeout = config.Duration(time.Hour) }, true},
		"metrics address":  {func(c *config.Config) { c.Metrics.Address = "" }, true},
		"disk's driver":    {func(c *config.Config) { c.Disks = []config.Disk{{Name: "a", Path: "/a", Driver: "x"}} }, true},
		"disk's snapshot":  {func(c *config.Config) { c.Disks = []config.Disk{{Name: "a", Path: "/a", VolumeSnapshot: "x"}} }, true},
		"driver":           {func(c *config.Config) { c.Drivers.CSI = map[string]config.CSI{"x": {Node: "/n"}} }, true},
		"discovery":        {func(c *config.Config) { c.Discover.Enabled = true }, true},
		"expected disks":   {func(c *config.Config) { c.Discover.Expect = []digest.Digest{digest.FromString("x")} }, true},
		"loop's directory": {func(c *config.Config) { c.Loop.Directory = "/x" }, true},
	} {
		c := base
		tc.change(&c)
		require.Equal(t, tc.want, base.NeedsRestart(&c), name)
	}
}
