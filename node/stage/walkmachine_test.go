package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/errdefs"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/blockdev/fsmount"
	"berth.dev/berth/layerdisk"
)

// machine is the node and its clouds in a random test: everything that outlives the process. Device "one/fake:3" is the
// third of the driver "one".
type machine struct {
	drivers map[string]*blockdevtest.Fake
	// indexes and ids by the text at the beginning of a volume, which says what disk it holds.
	indexes map[string]*layerdisk.Index
	ids     map[string]layerdisk.Identity
	// mounting and unmounting are told before it happens.
	mounting   func(m mounted)
	unmounting func(m mounted)

	mu     sync.Mutex
	mounts []mounted
}

// mounted is a mount of ours or of others.
type mounted struct {
	fsmount.Mounted
	foreign bool
	// label of the disk when it was mounted.
	label   string
	content blockdevtest.Content
	release func()
}

// machineVolumeBytes is the least that a volume has, all of which a disk needs.
const machineVolumeBytes = 4096

var errDead = errors.New("the process is dead")

func numberOf(path string) (n uint64) {
	name, rest, _ := strings.Cut(path, "/")
	_, _ = fmt.Sscanf(rest, "fake:%d", &n)
	return n + uint64(name[0])<<32
}

func (m *machine) open(path string) (blockdevtest.Content, error) {
	name, rest, _ := strings.Cut(path, "/")
	fake := m.drivers[name]
	if fake == nil {
		return nil, blockdev.ErrNotFound
	}
	return fake.OpenDevice(blockdev.Device{Path: rest}, false)
}

// read the label, and the last byte that the disk needs.
func (m *machine) read(c blockdevtest.Content) (string, error) {
	label := make([]byte, labelBytes)
	if _, err := c.ReadAt(label, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if _, err := c.ReadAt(make([]byte, 1), machineVolumeBytes-1); err != nil {
		return "", fmt.Errorf("disk is cut off: %w: %w", layerdisk.ErrCorrupt, err)
	}
	return strings.TrimRight(string(label), "\x00"), nil
}

func (m *machine) identify(c blockdevtest.Content, want layerdisk.Identity) (string, error) {
	label, err := m.read(c)
	if err != nil {
		return "", err
	}
	if m.indexes[label] == nil {
		return "", layerdisk.ErrNotLayerDisk
	}
	return label, m.ids[label].Check(want)
}

func (m *machine) Prove(dev blockdev.Device) (proof, error) {
	c, err := m.open(dev.Path)
	if err != nil {
		return proof{}, err
	}
	label, err := m.identify(c, layerdisk.Identity{})
	if err != nil {
		return proof{}, err
	}
	return proof{m.indexes[label], m.ids[label], numberOf(dev.Path), machineVolumeBytes}, nil
}

// top is the topmost mount at a target or above a path.
func (m *machine) top(path string) (mounted, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := len(m.mounts) - 1; i >= 0; i-- {
		if t := m.mounts[i].Target; t == path || strings.HasPrefix(path, t+"/") {
			return m.mounts[i], true
		}
	}
	return mounted{}, false
}

func (m *machine) Verify(_ context.Context, target string, want layerdisk.Identity) error {
	at, ok := m.top(target)
	if !ok {
		return layerdisk.ErrNotLayerDisk
	}
	if at.foreign {
		return layerdisk.ErrOtherDisk
	}
	_, err := m.identify(at.content, want)
	return err
}

func (m *machine) CheckDevice(path string, number uint64, want layerdisk.Identity) error {
	c, err := m.open(path)
	if err != nil {
		return err
	}
	if numberOf(path) != number {
		return fmt.Errorf("%s is another device: %w", path, blockdev.ErrNotFound)
	}
	_, err = m.identify(c, want)
	return err
}

func (m *machine) Sample(string, int64) error { return nil }

func (m *machine) CheckDir(dir string) error {
	at, ok := m.top(dir)
	if !ok || at.foreign {
		return fmt.Errorf("%s: %w", dir, errdefs.ErrNotFound)
	}
	_, err := m.read(at.content)
	return err
}

func (m *machine) Mount(device, target string, fs fsmount.FileSystem) error {
	c, err := m.open(device)
	if err != nil {
		return err
	}
	label, err := m.identify(c, layerdisk.Identity{})
	if err != nil {
		return err
	}
	name, rest, _ := strings.Cut(device, "/")
	release, err := m.drivers[name].Use(rest)
	if err != nil {
		return err
	}
	at := mounted{
		Mounted: fsmount.Mounted{Target: target, Device: numberOf(device), Source: device, Type: string(fs), ReadOnly: true},
		label:   label, content: c, release: release,
	}
	m.mounting(at)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mounts = append(m.mounts, at)
	return nil
}

// mountForeign mounts something that is none of ours.
func (m *machine) mountForeign(target string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mounts = append(m.mounts, mounted{Mounted: fsmount.Mounted{Target: target, Device: 1, Source: "foreign"}, foreign: true, release: func() {}})
}

func (m *machine) Unmount(target string) error {
	if at, ok := m.top(target); ok && at.Target == target {
		m.unmounting(at)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := len(m.mounts) - 1; i >= 0; i-- {
		if m.mounts[i].Target == target {
			m.mounts[i].release()
			m.mounts = append(m.mounts[:i:i], m.mounts[i+1:]...)
			return nil
		}
	}
	return nil
}

func (m *machine) At(target string) (list []fsmount.Mounted, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, at := range m.mounts {
		if at.Target == target {
			list = append(list, at.Mounted)
		}
	}
	return list, nil
}

func (m *machine) Below(dir string) (list []fsmount.Mounted, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, at := range m.mounts {
		if strings.HasPrefix(at.Target, dir+"/") {
			list = append(list, at.Mounted)
		}
	}
	return list, nil
}

// reboot takes all mounts away and gives the devices other names.
func (m *machine) reboot() {
	m.mu.Lock()
	for _, at := range m.mounts {
		at.release()
	}
	m.mounts = nil
	m.mu.Unlock()
	for _, fake := range m.drivers {
		fake.Reboot()
	}
}

// process is what one process can do: nothing any more from the moment that it dies.
type process struct {
	*machine
	ctx  context.Context //nolint:containedctx // of the process
	kill context.CancelFunc

	mu sync.Mutex
	// calls that were made, and the one at which it dies, before or after it is done; 0 is never.
	calls, dieAt int
	dieAfter     bool
	dead         bool
}

// alive counts a call and says whether it is still made.
func (p *process) alive(after bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !after {
		p.calls++
	}
	if p.dieAt > 0 && p.calls >= p.dieAt && after == p.dieAfter && !p.dead {
		p.dead = true
		p.kill()
	}
	if p.dead {
		return errDead
	}
	return nil
}

func (p *process) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

func (p *process) die() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dead = true
	p.kill()
}

// through makes a call of a process.
func through[T any](p *process, call func() (T, error)) (out T, err error) {
	if err := p.alive(false); err != nil {
		return out, err
	}
	out, err = call()
	if dead := p.alive(true); dead != nil {
		var zero T
		return zero, dead
	}
	return out, err
}

func do(p *process, call func() error) error {
	_, err := through(p, func() (struct{}, error) { return struct{}{}, call() })
	return err
}

func (p *process) Prove(dev blockdev.Device) (proof, error) {
	return through(p, func() (proof, error) { return p.machine.Prove(dev) })
}

func (p *process) Verify(ctx context.Context, target string, want layerdisk.Identity) error {
	return do(p, func() error { return p.machine.Verify(ctx, target, want) })
}

func (p *process) CheckDevice(path string, number uint64, want layerdisk.Identity) error {
	return do(p, func() error { return p.machine.CheckDevice(path, number, want) })
}

func (p *process) Sample(path string, sizeBytes int64) error {
	return do(p, func() error { return p.machine.Sample(path, sizeBytes) })
}

func (p *process) CheckDir(dir string) error {
	return do(p, func() error { return p.machine.CheckDir(dir) })
}

func (p *process) Mount(device, target string, fs fsmount.FileSystem) error {
	return do(p, func() error { return p.machine.Mount(device, target, fs) })
}

func (p *process) Unmount(target string) error {
	return do(p, func() error { return p.machine.Unmount(target) })
}

func (p *process) At(target string) ([]fsmount.Mounted, error) {
	return through(p, func() ([]fsmount.Mounted, error) { return p.machine.At(target) })
}

func (p *process) Below(dir string) ([]fsmount.Mounted, error) {
	return through(p, func() ([]fsmount.Mounted, error) { return p.machine.Below(dir) })
}

// client is a driver as a process has it.
type client struct {
	*process
	name string
	fake *blockdevtest.Fake
}

var (
	_ blockdev.Attacher    = client{}
	_ blockdev.Provisioner = client{}
)

func (c client) device(dev blockdev.Device) blockdev.Device {
	if dev.Path != "" {
		dev.Path = filepath.Join(c.name, dev.Path)
	}
	return dev
}

func (c client) Properties() blockdev.Properties { return c.fake.Properties() }

func (c client) Attach(ctx context.Context, id string, opts blockdev.AttachOptions) (blockdev.Device, error) {
	return through(c.process, func() (blockdev.Device, error) {
		dev, err := c.fake.Attach(ctx, id, opts)
		return c.device(dev), err
	})
}

func (c client) Detach(ctx context.Context, id string) error {
	return do(c.process, func() error { return c.fake.Detach(ctx, id) })
}

func (c client) Attached(ctx context.Context) (map[string]blockdev.Device, error) {
	return through(c.process, func() (map[string]blockdev.Device, error) {
		all, err := c.fake.Attached(ctx)
		for id, dev := range all {
			all[id] = c.device(dev)
		}
		return all, err
	})
}

func (c client) CreateVolume(ctx context.Context, req blockdev.CreateVolumeRequest) (blockdev.Volume, error) {
	return through(c.process, func() (blockdev.Volume, error) { return c.fake.CreateVolume(ctx, req) })
}

func (c client) DeleteVolume(ctx context.Context, id string) error {
	return do(c.process, func() error { return c.fake.DeleteVolume(ctx, id) })
}

func (c client) GetVolume(ctx context.Context, id string) (blockdev.Volume, error) {
	return through(c.process, func() (blockdev.Volume, error) { return c.fake.GetVolume(ctx, id) })
}

func (c client) ListVolumes(ctx context.Context) ([]blockdev.Volume, error) {
	return through(c.process, func() ([]blockdev.Volume, error) { return c.fake.ListVolumes(ctx) })
}
