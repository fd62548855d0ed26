package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/log"
	"github.com/opencontainers/go-digest"

	"berth.dev/berth/config"
	"berth.dev/berth/control"
	"berth.dev/berth/dialect"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/buildproc"
	"berth.dev/berth/imagesnapshot/fleet"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store/boltstore"
	"berth.dev/berth/stage"
)

// imageSnapshots is all that makes, keeps and matches image snapshots.
type imageSnapshots struct {
	store   *boltstore.Store
	engine  *lifecycle.Engine
	fleet   *fleet.Fleet
	service *control.ImageSnapshots
}

// openImageSnapshots does nothing outside the store yet; run does.
func openImageSnapshots(ctx context.Context, c config.Config, b backend, st *stage.Stager) (_ *imageSnapshots, err error) {
	cfg := c.ImageSnapshots
	s := &imageSnapshots{}
	if s.store, err = boltstore.Open(cmp.Or(cfg.Store, filepath.Join(c.Root, "imagesnapshots.db"))); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			joinClose(&err, s.store)
		}
	}()
	builder, err := openBuilder(c)
	if err != nil {
		return nil, err
	}
	s.engine, err = lifecycle.New(lifecycle.Config{
		Store: s.store, Watcher: s.store, Indexes: s.store, Provisioner: b, Attacher: b, Snapshotter: b, Builder: builder,
		Installation: s.store.Installation(), MaxBuilds: cfg.Builds,
		Limits: imagesnapshot.Limits{
			MaxImages: cfg.MaxImages, MinSizeGiB: cfg.MinSizeGiB, MaxSizeGiB: cfg.MaxSizeGiB, DefaultSizeGiB: cfg.DefaultSizeGiB,
			MaxPerOwner: cfg.Quota, DefaultTimeoutMinutes: int(cfg.BuildTimeout.Std() / time.Minute),
		},
		Times: lifecycle.Times{
			KeepFailed: cfg.KeepFailed.Std(), ExpiredGrace: cfg.ExpiredGrace.Std(),
			UnusedAutomatic: cfg.UnusedAutomatic.Std(), Sweep: cfg.SweepInterval.Std(),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("image snapshots: %w", err)
	}
	s.fleet = fleet.New(s.store, s.store, func() map[digest.Digest]bool { return attachedIndexes(st) })
	s.service = control.NewImageSnapshots(s.engine, s.store, s.fleet, control.Matching{Dialects: dialect.Builtin()})
	return s, ctx.Err()
}

// openBuilder wants the berth program beside berthd where none is named.
func openBuilder(c config.Config) (*buildproc.Builder, error) {
	cfg := c.ImageSnapshots
	command := cfg.BuildCommand
	if command == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the program of builds: %w", err)
		}
		command = filepath.Join(filepath.Dir(self), "berth")
	}
	bc := buildproc.Config{
		Command: []string{command}, TempDir: cmp.Or(cfg.BuildDirectory, filepath.Join(c.Root, "builds")), Cgroup: buildproc.DelegatedCgroup(),
		CPUWeight: cfg.BuildCPUWeight, MemoryBytes: int64(cfg.BuildMemoryMiB) << 20, HostsDir: cfg.HostsDirectory,
	}
	if cfg.SecretsDirectory != "" {
		bc.Secrets = buildproc.SecretDir(cfg.SecretsDirectory)
	}
	return buildproc.Open(bc)
}

func attachedIndexes(st *stage.Stager) map[digest.Digest]bool {
	attached := make(map[digest.Digest]bool)
	for _, d := range st.Disks() {
		if d.Serving {
			attached[d.IndexDigest] = true
		}
	}
	return attached
}

// run works until ctx ends. A store that fails stops only image snapshots: no container may fail to start for want of them.
func (s *imageSnapshots) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{{"life cycle", s.engine.Run}, {"matching", s.fleet.Run}} {
		wg.Go(func() {
			if err := part.run(ctx); err != nil && ctx.Err() == nil {
				log.G(ctx).WithError(err).WithField("part", part.name).Error("image snapshots stand still until the next start")
			}
		})
	}
	wg.Wait()
}

// recorder notes uses; it works without image snapshots too.
func (s *imageSnapshots) recorder() matchRecorder {
	if s == nil {
		return noRecorder{}
	}
	return s.engine
}

type noRecorder struct{}

func (noRecorder) RecordMatch(string, string) {}

// Close is for after run.
func (s *imageSnapshots) Close() error { return s.store.Close() }
