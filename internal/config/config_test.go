package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/internal/config"
)

func TestDefaultFileSaysDefault(t *testing.T) {
	got, err := config.Parse(config.DefaultTOML())
	require.NoError(t, err)
	require.Equal(t, config.Default(), got)

	got, err = config.Parse(nil)
	require.NoError(t, err)
	require.Equal(t, config.Default(), got)
}

// TestCommentedFile: the file says nothing until somebody removes a "#", and then it says what DefaultTOML does.
func TestCommentedFile(t *testing.T) {
	var lines []string
	for line := range strings.Lines(string(config.CommentedTOML())) {
		require.Contains(t, "#\n", line[:1])
		if len(line) > 1 && line[0] == '#' && line[1] != ' ' && line[1] != '\n' {
			line = line[1:]
		}
		lines = append(lines, line)
	}
	require.Equal(t, string(config.DefaultTOML()), strings.Join(lines, ""))
	got, err := config.Parse(config.CommentedTOML())
	require.NoError(t, err)
	require.Equal(t, config.Default(), got)
}

func TestDefaultFileExampleDisk(t *testing.T) {
	// The example in the comment must parse once its comment signs are gone.
	_, example, ok := strings.Cut(string(config.DefaultTOML()), "# [[disk]]\n")
	require.True(t, ok)
	var lines []string
	for line := range strings.Lines(example) {
		lines = append(lines, strings.TrimPrefix(line, "# "))
	}
	got, err := config.Parse([]byte("[[disk]]\n" + strings.Join(lines, "")))
	require.NoError(t, err)
	require.Len(t, got.Disks, 1)
	require.Equal(t, "base", got.Disks[0].Name)
	require.Equal(t, "/srv/berth/base.img", got.Disks[0].VolumeID())
	require.True(t, got.Disks[0].KeepAttached())
}

func TestDefaultFileExampleDriver(t *testing.T) {
	_, example, ok := strings.Cut(string(config.DefaultTOML()), "# [drivers.csi.cloud]\n")
	require.True(t, ok)
	example, _, ok = strings.Cut(example, "\n\n")
	require.True(t, ok)
	var lines []string
	for line := range strings.Lines(example) {
		lines = append(lines, strings.TrimPrefix(line, "# "))
	}
	got, err := config.Parse([]byte("[drivers.csi.cloud]\n" + strings.Join(lines, "")))
	require.NoError(t, err)
	require.Equal(t, config.Drivers{CSI: map[string]config.CSI{"cloud": {
		Node: "/var/lib/kubelet/plugins/csi.example.com/csi.sock", Controller: "/run/csi.example.com/controller.sock",
		Parameters: map[string]string{"type": "fast"}, VolumeSnapshotParameters: map[string]string{}, RestoreParameters: map[string]string{},
		Topology: map[string]string{"topology.example.com/zone": "a"},
		Secrets:  config.CSISecrets{Provision: "/etc/berth/secrets/cloud"},
	}}}, got.Drivers)
}

func TestParseDisksOfDrivers(t *testing.T) {
	c, err := config.Parse([]byte(`
[drivers.csi.azure]
node = "/run/csi.sock"
[[disk]]
name = "one"
driver = "azure"
volume = "/subscriptions/1/disk"
[[disk]]
name = "two"
driver = "azure"
volume_snapshot = "snap"
[[disk]]
name = "three"
path = "/subscriptions/1/disk"
`))
	require.NoError(t, err)
	require.Equal(t, "/subscriptions/1/disk", c.Disks[0].VolumeID())
	require.Equal(t, "azure", c.Disks[1].DriverName())
	require.Empty(t, c.Disks[1].VolumeID())
	require.Equal(t, "loop", c.Disks[2].DriverName())
}

func TestParse(t *testing.T) {
	got, err := config.Parse([]byte(`
root = "/b"
[log]
level = "debug"
format = "json"
[metrics]
address = ""
[stage]
idle_timeout = "0s"
[snapshotter]
protocol = "early-mounts"
[discover]
enabled = true
expect = ["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]
loops_below = ["/srv"]
[[disk]]
name = "one"
path = "/dev/sdb"
[[disk]]
name = "two"
volume = "v-2"
driver = "attached"
expect = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
keep = false
`))
	require.NoError(t, err)
	want := config.Default()
	want.Root, want.Log, want.Metrics.Address = "/b", config.Log{Level: config.LogDebug, Format: config.LogJSON}, ""
	want.Stage.IdleTimeout, want.Snapshotter.Protocol = 0, config.ProtocolEarlyMounts
	want.Discover = config.Discover{Enabled: true, LoopsBelow: []string{"/srv"},
		Expect: []digest.Digest{"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}}
	keep := false
	want.Disks = []config.Disk{
		{Name: "one", Path: "/dev/sdb"},
		{Name: "two", Volume: "v-2", Driver: "attached", Expect: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", Keep: &keep},
	}
	require.Equal(t, want, got)
	require.Equal(t, 5*time.Second, got.Stage.AttachWait.Std())
	require.True(t, got.Disks[0].KeepAttached())
	require.False(t, got.Disks[1].KeepAttached())
}

func TestParseRefuses(t *testing.T) {
	disk := func(lines string) string { return "[[disk]]\nname = \"a\"\n" + lines }
	for name, c := range map[string]struct {
		toml string
		want []string
	}{
		"syntax":            {"root = \"/b\"\nsocket = ", []string{"line 2"}},
		"wrong type":        {"\n\nroot = 3", []string{"line 3", "root"}},
		"unknown key, near": {"rooot = \"/b\"", []string{"line 1", "unknown key rooot", `did you mean "root"?`}},
		"unknown in section": {"[stage]\nidle_time = \"1s\"",
			[]string{"line 2", "unknown key stage.idle_time", `did you mean "idle_timeout"?`}},
		"unknown, far": {"[log]\nxyzzyplugh = 1", []string{"unknown key log.xyzzyplugh", "known here: format, level"}},
		"unknown section": {"[stages]\nx = 1",
			[]string{"unknown key stages", `did you mean "stage"?`}},
		"unknown disk key":     {disk("path = \"/x\"\nexpected = \"\""), []string{"line 4", `did you mean "expect"?`}},
		"two unknown keys":     {"a = 1\nb = 2", []string{"line 1", "line 2"}},
		"level":                {"[log]\nlevel = \"loud\"", []string{"log.level", `"loud" is not one of trace, debug, info, warn, error`}},
		"format":               {"[log]\nformat = \"xml\"", []string{`"xml" is not one of text, json`}},
		"protocol":             {"[snapshotter]\nprotocol = \"x\"", []string{"auto, sequential, early-mounts"}},
		"duration":             {"[stage]\nidle_timeout = \"10\"", []string{"line 2", `"10" is no duration`}},
		"negative duration":    {"[stage]\nattach_wait = \"-1s\"", []string{"stage.attach_wait", "negative"}},
		"restore bound":        {"[stage]\nrestore_timeout = \"0s\"", []string{"stage.restore_timeout"}},
		"negative rate":        {"[stage]\nmin_rate = -1", []string{"stage.min_rate", "0 takes every disk"}},
		"relative root":        {"root = \"b\"", []string{"root", "absolute"}},
		"unclean root":         {"root = \"/b/../c\"", []string{"root", "clean"}},
		"slash root":           {"root = \"/\"", []string{"root"}},
		"long root":            {"root = \"/" + strings.Repeat("b", 64) + "\"", []string{"root", "at most 64"}},
		"long socket":          {"socket = \"/" + strings.Repeat("b", 107) + "\"", []string{"socket", "at most 107"}},
		"metrics no port":      {"[metrics]\naddress = \"localhost\"", []string{"metrics.address", "host:port"}},
		"metrics port":         {"[metrics]\naddress = \":99999\"", []string{"metrics.address", "65535"}},
		"catalog dir":          {"[catalog]\ndirectory = \"c\"", []string{"catalog.directory", "clean absolute"}},
		"catalog interval":     {"[catalog]\ninterval = \"1ms\"", []string{"catalog.interval", "100ms"}},
		"catalog disks":        {"[catalog]\nmax_disks = -1", []string{"catalog.max_disks", "0..1000"}},
		"catalog cost":         {"[catalog]\nattach_cost = -1", []string{"catalog.attach_cost"}},
		"read ahead workers":   {"[read_ahead]\nworkers = 0", []string{"read_ahead.workers", "1 to 64"}},
		"read ahead at once":   {"[read_ahead]\nat_once = 0", []string{"read_ahead.at_once"}},
		"read ahead rate":      {"[read_ahead]\nrate = 100", []string{"read_ahead.rate", "0 is no limit"}},
		"read ahead memory":    {"[read_ahead]\nmemory_share = 1.5", []string{"read_ahead.memory_share", "up to 1"}},
		"read ahead no memory": {"[read_ahead]\nmemory_share = nan", []string{"read_ahead.memory_share"}},
		"read ahead lists":     {"[read_ahead]\nlists_directory = \"x\"", []string{"read_ahead.lists_directory", "absolute"}},
		"read ahead key":       {"[read_ahead]\nworker = 3", []string{`did you mean "workers"?`}},
		"loop dir":             {"[loop]\ndirectory = \"v\"", []string{"loop.directory"}},
		"discover digest":      {"[discover]\nexpect = [\"sha256:12\"]", []string{"discover.expect", "berth inspect"}},
		"discover dir":         {"[discover]\nloops_below = [\"srv\"]", []string{"discover.loops_below", "absolute"}},
		"discover key":         {"[discover]\nexpected = []", []string{`did you mean "expect"?`}},
		"driver of a path":     {disk("path = \"/x\"\ndriver = \"attached\""), []string{"path: driver attached attaches volumes"}},
		"disk without name":    {"[[disk]]\npath = \"/x\"", []string{"disk 1", "name"}},
		"disk name":            {"[[disk]]\nname = \"A/b\"\npath = \"/x\"", []string{"disk 1", "no disk name"}},
		"disk twice":           {disk("path = \"/x\"\n") + disk("path = \"/y\""), []string{"disk 2 (a)", "used by another"}},
		"same path":            {disk("path = \"/x\"\n") + "[[disk]]\nname=\"b\"\npath = \"/x\"", []string{"disk 2 (b)", `also disk "a"`}},
		"neither":              {disk(""), []string{"path or volume is required"}},
		"both":                 {disk("path = \"/x\"\nvolume = \"v\""), []string{"exclude each other"}},
		"relative path":        {disk("path = \"x\""), []string{"path", "absolute"}},
		"volume is path":       {disk("volume = \"/x\""), []string{"write it as path"}},
		"unknown driver":       {disk("driver = \"aws\"\nvolume = \"v\""), []string{`"aws" is not one of loop`}},
		"path for driver":      {"[drivers.csi.c]\nnode = \"/n\"\n" + disk("driver = \"c\"\npath = \"/x\""), []string{"name one as volume"}},
		"volume, snapshot":     {disk("volume = \"v\"\nvolume_snapshot = \"s\""), []string{"exclude each other"}},
		"same snapshot":        {disk("volume_snapshot = \"s\"\n") + "[[disk]]\nname=\"b\"\nvolume_snapshot = \"s\"", []string{`"s" is also disk "a"`}},
		"driver key":           {"[drivers.csi.c]\nnode = \"/n\"\ncontroler = \"/c\"", []string{`did you mean "controller"?`}},
		"secrets key":          {"[drivers.csi.c]\nnode = \"/n\"\n[drivers.csi.c.secrets]\nstage = \"/c\"", []string{"unknown key drivers.csi.c.secrets.stage"}},
		"drivers key":          {"[drivers.cis.c]\nnode = \"/n\"", []string{"unknown key drivers.cis.c", "no such section"}},
		"no node socket":       {"[drivers.csi.c]\ncontroller = \"/n\"", []string{"drivers.csi.c: node"}},
		"relative socket":      {"[drivers.csi.c]\nnode = \"n\"", []string{"drivers.csi.c: node", "absolute"}},
		"long node socket":     {"[drivers.csi.c]\nnode = \"/" + strings.Repeat("n", 107) + "\"", []string{"drivers.csi.c: node", "at most 107"}},
		"driver is loop":       {"[drivers.csi.loop]\nnode = \"/n\"", []string{"driver of berth's own"}},
		"driver name":          {"[drivers.csi.A]\nnode = \"/n\"", []string{"drivers.csi.A: name"}},
		"relative secrets":     {"[drivers.csi.c]\nnode = \"/n\"\n[drivers.csi.c.secrets]\nprovision = \"p\"", []string{"secrets.provision"}},
		"no such backend":      {"[drivers.csi.c]\nnode = \"/n\"\n[image_snapshots]\ndriver = \"d\"", []string{"image_snapshots.driver", `"d" is not one`, "loop, c"}},
		"backend attached":     {"[image_snapshots]\ndriver = \"attached\"", []string{"image_snapshots.driver", "volume snapshots: loop"}},
		"published files":      {"[image_snapshots]\npublish_directory = \"/c\"", []string{"image_snapshots.publish_directory", "files of this one"}},
		"relative publish":     {"[drivers.csi.c]\nnode = \"/n\"\n[image_snapshots]\ndriver = \"c\"\npublish_directory = \"c\"", []string{"image_snapshots.publish_directory", "absolute"}},
		"driver timeout":       {"[drivers.csi.c]\nnode = \"/n\"\ntimeout = \"-1s\"", []string{"timeout", "negative"}},
		"expect":               {disk("path = \"/x\"\nexpect = \"sha256:12\""), []string{"expect", "berth inspect"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Parse([]byte(c.toml))
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			for _, w := range c.want {
				require.ErrorContains(t, err, w)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.toml")
	_, err := config.Load(path)
	require.ErrorIs(t, err, errdefs.ErrNotFound)

	require.NoError(t, os.WriteFile(path, []byte("root = \"/b\"\n"), 0o600))
	c, err := config.Load(path)
	require.NoError(t, err)
	require.Equal(t, "/b", c.Root)

	require.NoError(t, os.WriteFile(path, []byte("root = \"b\"\n"), 0o600))
	_, err = config.Load(path)
	require.ErrorContains(t, err, path)

	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20+1), 0o600))
	_, err = config.Load(path)
	require.ErrorContains(t, err, "longer than")
}

func FuzzParse(f *testing.F) {
	f.Add(config.DefaultTOML())
	f.Add([]byte("[[disk]]\nname=\"a\"\npath=\"/x\""))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := config.Parse(data)
		if err != nil {
			require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
			return
		}
		require.NoError(t, c.Validate())
	})
}
