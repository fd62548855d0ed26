// Package berth runs berthd and the berth command as a node's administrator would.
package berth

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"

	"berth.dev/berth/test/harness/loop"
	"berth.dev/berth/test/harness/mounts"
	"berth.dev/berth/test/harness/process"
	"berth.dev/berth/test/harness/wait"
)

// PluginName is what containerd calls berth.
const PluginName = "berth"

const (
	startTimeout = 60 * time.Second
	stopGrace    = 20 * time.Second
)

// Disk to attach at every start.
type Disk struct {
	Name, Path string
	// Driver and Snapshot, in place of Path, are a volume snapshot of a configured driver.
	Driver, Snapshot string
	// Keep it attached while nothing uses it.
	Keep bool
}

// Config of a berthd.
type Config struct {
	// Dir holds root, socket, configuration and log. It must be short, as every path in mount options.
	Dir string
	// Bin has the programs berth and berthd.
	Bin   string
	Disks []Disk
	// CSI names the node sockets of CSI drivers, by the names that disks name them by.
	CSI map[string]string
	// IdleTimeout after which an unused disk is detached; 0 never.
	IdleTimeout time.Duration
	// AttachWait of pulls for disks; 0 is berthd's own.
	AttachWait time.Duration
	// Catalog is a directory of catalog entries, MaxDisks the limit of attached disks; empty and 0 are berthd's own.
	Catalog string
	// CatalogInterval between two looks at Catalog; 0 is a tenth of a second.
	CatalogInterval time.Duration
	MaxDisks        int
	// ImageSnapshots and Automatic are the texts of these sections of the configuration.
	ImageSnapshots, Automatic string
	// Import has the images of all disks registered in a containerd; nil in none.
	Import *Import
	// Containerd is the socket of the containerd that has lost layers fetched, where Import does not name one; empty is
	// berthd's own.
	Containerd string
	// ReadAheadRate in bytes a second that is read ahead at; 0 is no limit.
	ReadAheadRate int64
	// NoReadAhead reads nothing ahead.
	NoReadAhead bool
	// RecordTime, if not 0, has first starts recorded for so long.
	RecordTime time.Duration
	// Env is added to the environment of both programs.
	Env []string
}

// Import says how images of disks are registered.
type Import struct {
	// Containerd is the socket of its services.
	Containerd string
	Namespaces []string
	Pinned     bool
	// Images are patterns of references; none is all.
	Images []string
}

// Daemon is a berthd.
type Daemon struct {
	cfg  Config
	proc *process.Process
}

// New makes the directory; Start runs the daemon.
func New(cfg Config) (*Daemon, error) {
	if err := os.MkdirAll(cfg.Dir, 0o711); err != nil { //nolint:gosec // user-namespaced runtimes have to pass through
		return nil, fmt.Errorf("make directory of berthd: %w", err)
	}
	return &Daemon{cfg: cfg}, nil
}

// Configure changes the configuration for the next Start.
func (d *Daemon) Configure(change func(*Config)) { change(&d.cfg) }

// Socket of all services.
func (d *Daemon) Socket() string { return filepath.Join(d.cfg.Dir, "b.sock") }

// ListsDir is where access lists are looked for.
func (d *Daemon) ListsDir() string { return filepath.Join(d.Root(), "access-lists") }

// Root of all state.
func (d *Daemon) Root() string { return filepath.Join(d.cfg.Dir, "root") }

func (d *Daemon) configFile() string { return filepath.Join(d.cfg.Dir, "berthd.toml") }

func (d *Daemon) writeConfig() error {
	var b strings.Builder
	fmt.Fprintf(&b, "root = %q\nsocket = %q\n[log]\nlevel = \"debug\"\n[metrics]\naddress = \"\"\n", d.Root(), d.Socket())
	fmt.Fprintf(&b, "[stage]\nidle_timeout = %q\n", d.cfg.IdleTimeout)
	if d.cfg.AttachWait > 0 {
		fmt.Fprintf(&b, "attach_wait = %q\n", d.cfg.AttachWait)
	}
	if d.cfg.Catalog != "" {
		fmt.Fprintf(&b, "[catalog]\ndirectory = %q\ninterval = %q\n", d.cfg.Catalog, cmp.Or(d.cfg.CatalogInterval, 100*time.Millisecond))
	}
	if d.cfg.MaxDisks > 0 {
		fmt.Fprintf(&b, "max_disks = %d\n", d.cfg.MaxDisks)
	}
	for section, text := range map[string]string{"image_snapshots": d.cfg.ImageSnapshots, "automatic": d.cfg.Automatic} {
		if text != "" {
			fmt.Fprintf(&b, "[%s]\n%s\n", section, text)
		}
	}
	if im := d.cfg.Import; im != nil {
		fmt.Fprintf(&b, "[import]\nenabled = true\ncontainerd = %q\npinned = %t\n", im.Containerd, im.Pinned)
		fmt.Fprintf(&b, "namespaces = [%s]\nimages = [%s]\n", quoted(im.Namespaces), quoted(im.Images))
	}
	if d.cfg.Import == nil && d.cfg.Containerd != "" {
		fmt.Fprintf(&b, "[import]\ncontainerd = %q\n", d.cfg.Containerd)
	}
	fmt.Fprintf(&b, "[read_ahead]\nenabled = %t\nrate = %d\n", !d.cfg.NoReadAhead, d.cfg.ReadAheadRate)
	if d.cfg.RecordTime > 0 {
		fmt.Fprintf(&b, "record_first_start = true\nrecord_time = %q\n", d.cfg.RecordTime)
	}
	for name, socket := range d.cfg.CSI {
		fmt.Fprintf(&b, "[drivers.csi.%s]\nnode = %q\n", name, socket)
	}
	for _, disk := range d.cfg.Disks {
		fmt.Fprintf(&b, "[[disk]]\nname = %q\ndriver = %q\npath = %q\nvolume_snapshot = %q\nkeep = %t\n", disk.Name, disk.Driver, disk.Path, disk.Snapshot, disk.Keep)
	}
	if err := os.WriteFile(d.configFile(), []byte(b.String()), 0o600); err != nil {
		return fmt.Errorf("write configuration of berthd: %w", err)
	}
	return nil
}

func quoted(words []string) string {
	q := make([]string, len(words))
	for i, w := range words {
		q[i] = strconv.Quote(w)
	}
	return strings.Join(q, ", ")
}

// Start runs berthd and returns when it says that it serves.
func (d *Daemon) Start(ctx context.Context) error {
	if err := d.writeConfig(); err != nil {
		return err
	}
	p, err := process.Start(ctx, process.Spec{
		Name: "berthd", Args: []string{filepath.Join(d.cfg.Bin, "berthd"), "--config", d.configFile()},
		Env: d.cfg.Env, LogDir: d.cfg.Dir,
	})
	if err != nil {
		return err
	}
	d.proc = p
	if err := d.waitReady(ctx); err != nil {
		return errors.Join(err, fmt.Errorf("log of berthd:\n%s", p.LogTail(40)), p.Kill())
	}
	return nil
}

func (d *Daemon) waitReady(ctx context.Context) error {
	conn, err := grpc.NewClient("unix://"+d.Socket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("dial berthd: %w", err)
	}
	defer conn.Close()
	health := grpc_health_v1.NewHealthClient(conn)
	var ended error
	err = wait.Until(ctx, startTimeout, "berthd to serve", func(ctx context.Context) error {
		if ended = d.proc.Err(); ended != nil {
			return nil //nolint:nilerr // ends the waiting; the caller joins it
		}
		conn.ResetConnectBackoff()
		resp, err := health.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			return err
		}
		if s := resp.GetStatus(); s != grpc_health_v1.HealthCheckResponse_SERVING {
			return fmt.Errorf("health is %s", s)
		}
		return nil
	})
	return errors.Join(ended, err)
}

// Stop ends berthd in order.
func (d *Daemon) Stop() error {
	if d.proc == nil {
		return nil
	}
	return d.proc.Stop(stopGrace)
}

// Close stops berthd and takes away what it leaves for the next one: mounted disks and their loop devices.
func (d *Daemon) Close() error {
	err := d.Stop()
	devices, findErr := d.devices()
	err = errors.Join(err, findErr, mounts.UnmountBelow(d.cfg.Dir))
	for _, device := range devices {
		err = errors.Join(err, loop.Detach(device))
	}
	return err
}

// devices are the loop devices mounted below the root.
func (d *Daemon) devices() ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.Root()))
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	var devices []string
	for _, m := range mounts {
		if strings.HasPrefix(m.Source, "/dev/loop") {
			devices = append(devices, m.Source)
		}
	}
	return devices, nil
}

// Kill ends berthd as a crash does.
func (d *Daemon) Kill() error { return d.proc.Kill() }

// Process that runs.
func (d *Daemon) Process() *process.Process { return d.proc }

// LogTail is the last lines that berthd has written.
func (d *Daemon) LogTail(n int) string {
	if d.proc == nil {
		return ""
	}
	return d.proc.LogTail(n)
}

// Log is everything it has written.
func (d *Daemon) Log() string { return d.LogTail(1 << 30) }

// Run the berth command and return its output; an error has its complaint.
func Run(ctx context.Context, bin string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "berth"), args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("berth %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// CLI runs the berth command against this daemon.
func (d *Daemon) CLI(ctx context.Context, args ...string) (string, error) {
	return Run(ctx, d.cfg.Bin, append([]string{"BERTH_SOCKET=" + d.Socket()}, d.cfg.Env...), args...)
}

// Snippet is what berth tells the administrator to put into the configuration of a containerd.
func (d *Daemon) Snippet(ctx context.Context, containerdVersion string) ([]byte, error) {
	out, err := d.CLI(ctx, "config", "containerd", "--version", containerdVersion, "--root", d.Root(), "--socket", d.Socket())
	return []byte(out), err
}

// Status as "berth status --json" prints it, as far as tests look at it.
type Status struct {
	Hits           []Tally      `json:"hits"`
	Misses         []Tally      `json:"misses"`
	BytesNotPulled Count        `json:"bytes_not_pulled"`
	Adopted        Count        `json:"adopted_snapshots"`
	Disks          []DiskStatus `json:"disks"`
	ReadAhead      []ReadAhead  `json:"read_ahead"`
}

// Tally of the layers that were recognised in one way, or missed for one reason.
type Tally struct {
	MatchedBy string `json:"matched_by"`
	Reason    string `json:"reason"`
	Count     Count  `json:"count"`
}

// ReadAhead is what was read ahead for one start.
type ReadAhead struct {
	Image      string `json:"image"`
	Disk       string `json:"disk"`
	Listed     bool   `json:"has_access_list"`
	State      string `json:"state"`
	Reason     string `json:"reason"`
	TotalBytes Count  `json:"total_bytes"`
	Bytes      Count  `json:"bytes"`
	Skipped    Count  `json:"skipped"`
	Rate       Count  `json:"bytes_per_second"`
}

// DiskStatus of one disk.
type DiskStatus struct {
	Name        string `json:"name"`
	State       string `json:"state"`
	Serving     bool   `json:"serving"`
	UUID        string `json:"uuid"`
	Device      string `json:"device"`
	MountPoint  string `json:"mount_point"`
	Layers      Count  `json:"layers"`
	LayersInUse Count  `json:"layers_in_use"`
	Holders     Count  `json:"holders"`
	LastError   string `json:"last_error"`
	// Imports are what became of its images, ImportError why that is not all.
	Imports     []ImportedImage `json:"imports"`
	ImportError string          `json:"import_error"`
}

// ImportedImage is what became of an image of a disk that containerd was to be told of.
type ImportedImage struct {
	Reference string `json:"reference"`
	Namespace string `json:"namespace"`
	Result    string `json:"result"`
	Reason    string `json:"reason"`
}

// Count is a number that protobuf's JSON may write as a string.
type Count int64

// UnmarshalJSON takes both forms.
func (c *Count) UnmarshalJSON(b []byte) error {
	var n int64
	if err := json.Unmarshal(bytes.Trim(b, `"`), &n); err != nil {
		return fmt.Errorf("decode count: %w", err)
	}
	*c = Count(n)
	return nil
}

// Sum of all kinds.
func Sum(tallies []Tally) int {
	var sum Count
	for _, t := range tallies {
		sum += t.Count
	}
	return int(sum)
}

// Status of the daemon.
func (d *Daemon) Status(ctx context.Context) (Status, error) {
	var s Status
	out, err := d.CLI(ctx, "status", "--json")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return s, fmt.Errorf("decode status: %w\n%s", err, out)
	}
	for i := range s.Disks {
		s.Disks[i].State = Word("DISK_STATE", s.Disks[i].State)
		for j := range s.Disks[i].Imports {
			s.Disks[i].Imports[j].Result = Word("IMPORT_RESULT", s.Disks[i].Imports[j].Result)
		}
	}
	for i := range s.ReadAhead {
		s.ReadAhead[i].State = Word("READ_AHEAD_STATE", s.ReadAhead[i].State)
	}
	return s, nil
}

// Word for a value of an enum of the API: "in-use" for DISK_STATE_IN_USE.
func Word(enum, value string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(value, enum+"_"), "_", "-"))
}

// Disk named in the status; an error if there is none.
func (s Status) Disk(name string) (DiskStatus, error) {
	for _, d := range s.Disks {
		if d.Name == name {
			return d, nil
		}
	}
	return DiskStatus{}, fmt.Errorf("berthd has no disk %q", name)
}
