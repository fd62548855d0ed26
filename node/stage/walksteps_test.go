package stage

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/layerdisk"
	"berth.dev/berth/test/harness/walk"
)

// What a walk does, drawn by the weights.

func (n *walker) choices() []walk.Choice {
	return []walk.Choice{
		{Weight: 20, Do: n.stage},
		{Weight: 10, Do: n.unstage},
		{Weight: 30, Do: n.acquire},
		{Weight: 25, Do: n.release},
		{Weight: 10, Do: func() { n.sleep(5 * time.Second) }},
		{Weight: 8, Do: func() { n.sleep(2 * time.Minute) }},
		{Weight: 2, Do: func() { n.sleep(time.Hour) }},
		{Weight: 3, Do: n.check},
		{Weight: 4, Do: n.misbehave},
		{Weight: 3, Do: n.changeDevice},
		{Weight: 1, Do: n.removeDevice},
		{Weight: 4, Do: n.armCrash},
		{Weight: 1, Do: func() { n.Note("crash"); n.restart(false) }},
		{Weight: 1, Do: func() { n.Note("reboot"); n.restart(true) }},
		{Weight: 1, Do: n.foreignMount},
	}
}

func (n *walker) stage() {
	spec := walk.Pick(n.Walk, n.specs)
	spec.Keep = n.Chance(0.2)
	timeout := 2 * time.Minute
	if n.Chance(0.2) {
		timeout = time.Duration(n.IntN(10_000)) * time.Millisecond
	}
	n.background(fmt.Sprintf("stage %s, %s", spec.Name, timeout), func(ctx context.Context, s *Stager) error {
		ctx, cancel := context.WithTimeout(ctx, timeout)
		defer cancel()
		_, err := s.Stage(ctx, spec)
		return err
	})
}

func (n *walker) unstage() {
	spec, drain := walk.Pick(n.Walk, n.specs), n.Chance(0.5)
	n.background(fmt.Sprintf("unstage %s drain=%t", spec.Name, drain), func(ctx context.Context, s *Stager) error {
		_, err := s.Unstage(ctx, spec.Name, UnstageOptions{Drain: drain})
		return err
	})
}

const holders = 12

func (n *walker) acquire() {
	holder := fmt.Sprint("h", n.IntN(holders))
	label := n.labels[walk.Pick(n.Walk, n.specs).Name]
	layers := n.layers[label][:1+n.IntN(2)]
	if n.free(holder) {
		n.take(holder, fmt.Sprint(layers), chain(layers...), nil)
	}
}

// free says that a holder holds nothing and is not about to, and has it be about to.
func (n *walker) free(holder string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, holds := n.holds[holder]
	if holds || n.busy[holder] {
		return false
	}
	n.busy[holder] = true
	return true
}

// take has the holder, which is free, acquire a layer, after what has to be done before.
func (n *walker) take(holder, what string, q layerdisk.LayerName, before func(ctx context.Context)) {
	n.background(fmt.Sprintf("acquire %s for %s", what, holder), func(ctx context.Context, s *Stager) error {
		if before != nil {
			before(ctx)
		}
		held, err := s.Layers.Acquire(ctx, holder, q)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.proc.isDead() || n.stager != s {
			return err // nobody was told
		}
		n.busy[holder] = false
		if err == nil {
			n.holds[holder] = Hold{holder, held.DiskUUID, held.LayerNumber}
			n.had++
			n.served(held, q)
		}
		return err
	})
}

// served wants a layer that was handed out to be the one that was asked for. The caller holds mu.
func (n *walker) served(held Held, q layerdisk.LayerName) {
	at, ok := n.m.top(held.Dir)
	if !ok || at.foreign {
		n.Break("%s was handed out and is not mounted", held.Dir)
		return
	}
	if n.m.ids[at.label].UUID != held.DiskUUID || !slices.ContainsFunc(n.m.indexes[at.label].Chains, func(c layerdisk.Chain) bool {
		return c.ChainID == q.ChainID && c.Layer == held.LayerNumber
	}) {
		n.Break("%s was asked for, layer %d of disk %s was handed out of %s, on which %s is", q.ChainID, held.LayerNumber, held.DiskUUID, at.Target, at.label)
	}
}

func (n *walker) release() { n.releaseOf(fmt.Sprint("h", n.IntN(holders))) }

func (n *walker) releaseOf(holder string) {
	n.mu.Lock()
	_, holds := n.holds[holder]
	ready := holds && !n.busy[holder]
	if ready {
		delete(n.holds, holder)
	}
	n.mu.Unlock()
	if !ready {
		return
	}
	n.Note("release %s", holder)
	if err := n.stager.Layers.Release(n.Context(), holder); err != nil {
		n.Break("release: %v", err)
	}
}

func (n *walker) sleep(most time.Duration) {
	d := time.Duration(n.Int64N(int64(most)))
	n.Note("sleep %s", d)
	time.Sleep(d)
}

func (n *walker) check() {
	spec := walk.Pick(n.Walk, n.specs)
	n.background("check "+spec.Name, func(ctx context.Context, s *Stager) error { return s.Check(ctx, spec.Name) })
}

// misbehave has a cloud do other things wrong from now on, or nothing.
func (n *walker) misbehave() {
	driver := walk.Pick(n.Walk, []string{"one", "two"})
	var names []string
	if n.Chance(0.8) {
		names = slices.DeleteFunc(blockdevtest.FaultNames(), func(string) bool { return n.Chance(0.7) })
	}
	n.Note("cloud %s does wrong: %q", driver, names)
	n.m.drivers[driver].Misbehave(blockdevtest.Faults(n.Uint64(), names...))
}

// attached draws one of the attached volumes that are not others'.
func (n *walker) attached() (driver, id string, ok bool) {
	driver = walk.Pick(n.Walk, slices.Sorted(maps.Keys(n.m.drivers)))
	ids := slices.DeleteFunc(n.ofNode(n.m.drivers[driver].Inventory()).Attached, func(id string) bool { return n.foreign[driver+"/"+id] })
	if len(ids) == 0 {
		return "", "", false
	}
	return driver, walk.Pick(n.Walk, ids), true
}

func (n *walker) changeDevice() {
	driver, id, ok := n.attached()
	if !ok {
		return
	}
	state := walk.Pick(n.Walk, []blockdevtest.DeviceState{blockdevtest.DeviceWell, blockdevtest.DeviceWell, blockdevtest.DeviceFails, blockdevtest.DeviceStalls})
	n.Note("device of %s/%s gets %d (0 well, 1 fails, 2 stalls)", driver, id, state)
	n.m.drivers[driver].SetDevice(id, state)
}

func (n *walker) removeDevice() {
	if driver, id, ok := n.attached(); ok {
		n.Note("device of %s/%s is taken away", driver, id)
		n.m.drivers[driver].Remove(id)
	}
}

// armCrash has the process die at one of its next calls.
func (n *walker) armCrash() {
	n.proc.mu.Lock()
	defer n.proc.mu.Unlock()
	n.proc.dieAt, n.proc.dieAfter = n.proc.calls+1+n.IntN(20), n.Chance(0.5)
	n.Note("dies in %d calls, after=%t", n.proc.dieAt-n.proc.calls, n.proc.dieAfter)
}

func (n *walker) foreignMount() {
	target := filepath.Join(n.dir, disksName, fmt.Sprint(n.IntN(4)))
	if _, ok := n.m.top(target); ok {
		return
	}
	n.Note("others mount on %s", target)
	n.m.mountForeign(target)
}
