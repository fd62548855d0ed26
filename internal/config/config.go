// Package config is berthd's configuration: one typed TOML file whose unknown keys are errors. Only commands and
// daemon, which joins the parts, import it; everything else takes values.
package config

import (
	"cmp"
	"time"

	"github.com/opencontainers/go-digest"

	"berth.dev/berth/blockdev/attached"
	"berth.dev/berth/matcher/dialect"
)

// DefaultPath is the file berthd reads if no other is named; it may be missing.
const DefaultPath = "/etc/berth/config.toml"

// Config is everything berthd can be told. Default has the values used for what a file leaves out.
type Config struct {
	// Root is the directory of all state. Layer disks are mounted below it, so it must be short: overlay's mount
	// options have to fit one page.
	Root string `toml:"root"`
	// Socket is the unix socket of the snapshots, control and health services.
	Socket      string      `toml:"socket"`
	Log         Log         `toml:"log"`
	Metrics     Metrics     `toml:"metrics"`
	Stage       Stage       `toml:"stage"`
	Snapshotter Snapshotter `toml:"snapshotter"`
	Catalog     Catalog     `toml:"catalog"`
	ReadAhead   ReadAhead   `toml:"read_ahead"`
	Loop        Loop        `toml:"loop"`
	Drivers     Drivers     `toml:"drivers"`
	Discover    Discover    `toml:"discover"`
	Import      Import      `toml:"import"`
	Disks       []Disk      `toml:"disk"`
	// ImageSnapshots that this berthd makes and keeps.
	ImageSnapshots ImageSnapshots `toml:"image_snapshots"`
	Automatic      Automatic      `toml:"automatic"`
	Matching       Matching       `toml:"matching"`
	// Dialects of annotations besides the built-in ones, or in place of those of the same name.
	Dialects []dialect.Dialect `toml:"dialect"`
}

// Log says what is written to standard error.
type Log struct {
	Level  LogLevel  `toml:"level"`
	Format LogFormat `toml:"format"`
}

// Metrics says where Prometheus may read.
type Metrics struct {
	// Address to serve /metrics on, host:port; empty serves none.
	Address string `toml:"address"`
}

// Stage is about attached layer disks.
type Stage struct {
	// IdleTimeout is how long a disk that nothing uses stays attached, unless it is kept; 0 keeps every disk.
	IdleTimeout Duration `toml:"idle_timeout"`
	// AttachWait bounds how long a pull waits for a disk that is being attached; 0 never waits.
	AttachWait Duration `toml:"attach_wait"`
	// MinRate in bytes a second that a disk has to bring when it is attached for the first time; 0 takes every disk.
	MinRate int64 `toml:"min_rate"`
	// RestoreTimeout bounds how long a start waits for the disks of the run before. What is not back by then is tried
	// again in the background.
	RestoreTimeout Duration `toml:"restore_timeout"`
}

// Snapshotter is about the answers to containerd.
type Snapshotter struct {
	Protocol Protocol `toml:"protocol"`
}

// Catalog is about image snapshots whose disks are attached when a pull needs them.
type Catalog struct {
	// Directory of entries; empty is none.
	Directory string `toml:"directory"`
	// Interval between two looks at Directory.
	Interval Duration `toml:"interval"`
	// MaxDisks that may be attached to this node at once; 0 is no limit.
	MaxDisks int `toml:"max_disks"`
	// AttachCost is what a disk has to save to be attached, in bytes of download.
	AttachCost int64 `toml:"attach_cost"`
}

// Loop is about the embedded driver, whose volumes are files.
type Loop struct {
	// Directory of volumes and volume snapshots; empty is <root>/volumes.
	Directory string `toml:"directory"`
}

// AttachedDriver is the name of the driver of disks that are attached already.
const AttachedDriver = attached.Name

// Discover is about layer disks among the node's block devices that nobody names.
type Discover struct {
	// Enabled looks for them and serves from them. Off, because it trusts whoever can attach a disk to the node.
	Enabled bool `toml:"enabled"`
	// Expect, if not empty, are the index digests of the only disks that are used.
	Expect []digest.Digest `toml:"expect"`
	// LoopsBelow are directories whose files are looked at too where others have made loop devices of them.
	LoopsBelow []string `toml:"loops_below"`
}

// Disk is a layer disk to attach at every start.
type Disk struct {
	// Name to show it under and detach it by; unique.
	Name string `toml:"name"`
	// Driver that attaches it; empty is LoopDriver.
	Driver string `toml:"driver"`
	// Path of a layer disk's file or block device, for LoopDriver. Either this, Volume or Snapshot.
	Path string `toml:"path"`
	// Volume is the driver's own ID of a volume.
	Volume string `toml:"volume"`
	// VolumeSnapshot is the driver's own ID of a volume snapshot, of which a volume is made for this node.
	VolumeSnapshot string `toml:"volume_snapshot"`
	// Expect, if not empty, is the index digest the disk must have: any other disk is refused.
	Expect digest.Digest `toml:"expect"`
	// Keep the disk attached while nothing uses it; not set is true.
	Keep *bool `toml:"keep"`
	// Import the disk's images into containerd or do not; not set is Import.Enabled.
	Import *bool `toml:"import"`
}

// KeepAttached is Keep with its default.
func (d Disk) KeepAttached() bool { return d.Keep == nil || *d.Keep }

// VolumeID is the name that the driver knows the disk by: its path, or the volume's own ID; empty for one on a volume
// snapshot.
func (d Disk) VolumeID() string {
	if d.Path != "" {
		return d.Path
	}
	return d.Volume
}

// DriverName is Driver with its default.
func (d Disk) DriverName() string { return cmp.Or(d.Driver, LoopDriver) }

// Default is what berthd does without a file. default.toml says the same, with reasons.
func Default() Config {
	return Config{
		Root:    "/var/lib/berth",
		Socket:  "/run/berth/berthd.sock",
		Log:     Log{Level: LogInfo, Format: LogText},
		Metrics: Metrics{Address: "127.0.0.1:9627"},
		Stage: Stage{
			IdleTimeout:    Duration(10 * time.Minute),
			AttachWait:     Duration(5 * time.Second),
			RestoreTimeout: Duration(30 * time.Second),
			MinRate:        16_000_000,
		},
		Snapshotter:    Snapshotter{Protocol: ProtocolAuto},
		Discover:       Discover{Expect: []digest.Digest{}, LoopsBelow: []string{}},
		ReadAhead:      defaultReadAhead(),
		Import:         defaultImport(),
		ImageSnapshots: defaultImageSnapshots(),
		Automatic:      defaultAutomatic(),
		Catalog:        Catalog{Interval: Duration(2 * time.Second), MaxDisks: 16},
	}
}
