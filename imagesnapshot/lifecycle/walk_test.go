package lifecycle_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/blockdev/blockdevtest"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/imagesnapshottest"
	"berth.dev/berth/imagesnapshot/lifecycle"
	"berth.dev/berth/imagesnapshot/store"
	"berth.dev/berth/test/harness/walk"
)

// walker takes an Engine on a cloud that misbehaves through random steps.
type walker struct {
	*walk.Walk
	w *world
	// foreign is what others have in the storage, by ID.
	foreign map[string]bool
	// taken are volume snapshots of ours that others deleted.
	taken map[string]bool
}

// TestWalk goes through the lives of image snapshots of two owners with a small quota, on a cloud that misbehaves in
// all ways, in ways that change, with builds that fail, a process that dies at any of its calls, and others who delete
// what is ours. At all times: what an image snapshot that is usable promises is in the storage, byte for byte; none is
// said to be lost that is not; no owner has more than its quota; what is others' stays. In the end, when the cloud
// behaves again, all comes to rest, and when all are deleted nothing is left.
func TestWalk(t *testing.T) {
	walk.Run(t, 10000, 500, func(w *walk.Walk) {
		n := newWalker(w)
		choices := n.choices()
		for range w.Steps {
			w.Step(choices)
			n.look()
		}
		n.rest()
		n.deleteAll()
		n.w.stop()
	})
}

const quota = 4

func newWalker(w *walk.Walk) *walker {
	fake := blockdevtest.NewFake(3)
	n := &walker{Walk: w, foreign: map[string]bool{}, taken: map[string]bool{}}
	n.w = &world{T: w.T, fake: fake, path: filepath.Join(memoryDir(w.T), "store.db"), flash: w.Chance(0.5)}
	n.w.builder = &recorder{fake: fake, takes: time.Minute, layers: map[string][]string{
		refA: {"base", "a"}, refAB: {"base", "a", "b"}, refC: {"c1", "c2", "c3"},
	}}
	limits := imagesnapshottest.Limits()
	limits.MaxPerOwner, limits.MinSizeGiB, limits.DefaultSizeGiB = quota, 1, 1
	n.w.cfg = lifecycle.Config{Builder: n.w.builder, Limits: limits, MaxBuilds: 2}
	for i, name := range []string{"other", "berth-000000000000-v-00000000000000000000000000000000-1"} {
		v, err := fake.CreateVolume(w.Context(), blockdev.CreateVolumeRequest{Name: name, SizeBytes: 4096})
		require.NoError(w, err)
		s, err := fake.CreateVolumeSnapshot(w.Context(), name, v.ID)
		require.NoError(w, err)
		n.foreign[v.ID], n.foreign[s.ID] = true, true
		if i == 0 {
			_, err = fake.Attach(w.Context(), v.ID, blockdev.AttachOptions{})
			require.NoError(w, err)
		}
	}
	n.w.start(0, false)
	return n
}

func (n *walker) choices() []walk.Choice {
	return []walk.Choice{
		{Weight: 20, Do: n.create},
		{Weight: 5, Do: n.ensure},
		{Weight: 10, Do: n.update},
		{Weight: 12, Do: n.remove},
		{Weight: 5, Do: n.match},
		{Weight: 20, Do: func() { n.sleep(10 * time.Second) }},
		{Weight: 20, Do: func() { n.sleep(5 * time.Minute) }},
		{Weight: 6, Do: func() { n.sleep(6 * time.Hour) }},
		{Weight: 1, Do: func() { n.sleep(60 * time.Hour) }},
		{Weight: 6, Do: n.misbehave},
		{Weight: 4, Do: n.builds},
		{Weight: 6, Do: n.armCrash},
		{Weight: 1, Do: n.takeAway},
		{Weight: 1, Do: n.takeAnswers},
	}
}

const names = 8

func (n *walker) name() string { return fmt.Sprint("n", n.IntN(names)) }

// spec draws one.
func (n *walker) spec() imagesnapshot.Spec {
	refs := []string{refA, refAB, refC, "docker.io/library/none:1"}
	var s imagesnapshot.Spec
	for _, ref := range refs[:3] {
		if n.Chance(0.4) {
			s.Images = append(s.Images, ref)
		}
	}
	if len(s.Images) == 0 {
		s.Images = []string{walk.Pick(n.Walk, refs)}
	}
	s.ReuseLayers, s.Flash = n.Chance(0.5), n.Chance(0.3)
	if n.Chance(0.5) {
		s.RetentionDays = 1 + n.IntN(3)
	}
	if n.Chance(0.3) {
		s.Elimination = imagesnapshot.EliminationLRU
	}
	if n.Chance(0.3) {
		s.Size.AsNeeded = true
	}
	if n.Chance(0.2) {
		s.Build.TimeoutMinutes = 30
	}
	s.Copies.Standard = 1 + n.IntN(2)
	return s
}

func (n *walker) owner() string { return walk.Pick(n.Walk, []string{"ann", "bob"}) }

func (n *walker) create() {
	req := lifecycle.CreateRequest{Name: n.name(), Owner: n.owner(), Spec: n.spec()}
	if n.Chance(0.3) {
		req.ClientToken = fmt.Sprint("t", n.IntN(5))
	}
	_, err := n.w.engine.Create(n.Context(), req)
	n.Note("create %s for %s of %v, reuse=%t flash=%t: %v", req.Name, req.Owner, req.Spec.Images, req.Spec.ReuseLayers, req.Spec.Flash, err)
}

func (n *walker) ensure() {
	r, err := n.w.engine.EnsureAutomatic(n.Context(), lifecycle.AutomaticRequest{Owner: n.owner(), Images: []string{walk.Pick(n.Walk, []string{refA, refC})}})
	name := ""
	if r.Object != nil {
		name = r.Object.Name
	}
	n.Note("automatic %s: %v", name, err)
}

// any draws an image snapshot that there is.
func (n *walker) any() string {
	list, err := n.w.store.List(n.Context(), store.Filter{})
	require.NoError(n, err)
	if len(list) == 0 {
		return n.name()
	}
	return walk.Pick(n.Walk, list).Name
}

func (n *walker) update() {
	name, spec, rebuild := n.any(), n.spec(), n.Chance(0.3)
	_, err := n.w.engine.Update(n.Context(), lifecycle.UpdateRequest{NameOrID: name, Spec: spec, Rebuild: rebuild})
	n.Note("update %s to %v, rebuild=%t: %v", name, spec.Images, rebuild, err)
}

func (n *walker) remove() {
	name := n.any()
	_, err := n.w.engine.Delete(n.Context(), lifecycle.DeleteRequest{NameOrID: name})
	n.Note("delete %s: %v", name, err)
}

func (n *walker) match() {
	if s, err := n.w.store.Get(n.Context(), n.any()); err == nil {
		n.w.engine.RecordMatch(s.Name, s.ID)
	}
}

func (n *walker) sleep(most time.Duration) {
	d := time.Duration(n.Int64N(int64(most)))
	n.Note("sleep %s", d)
	time.Sleep(d)
}

func (n *walker) misbehave() {
	var list []string
	if n.Chance(0.8) {
		list = slices.DeleteFunc(blockdevtest.FaultNames(), func(name string) bool {
			return n.Chance(0.7) || strings.Contains(name, "stall") // a build that stalls is aborted with its process, not here
		})
	}
	n.Note("the cloud does wrong: %q", list)
	n.w.fake.Misbehave(blockdevtest.Faults(n.Uint64(), list...))
}

// builds have another outcome from now on.
func (n *walker) builds() {
	takes := time.Duration(n.IntN(20)) * time.Minute
	err := walk.Pick(n.Walk, []error{nil, nil, nil, errdefs.ErrDataLoss, errdefs.ErrUnavailable, errdefs.ErrUnauthenticated,
		&lifecycle.TooSmallError{NeededBytes: 3 << 30, Err: errdefs.ErrResourceExhausted}})
	n.Note("builds take %s and end with %v", takes, err)
	n.w.builder.set(takes+time.Second, err)
}

// armCrash has the process die at one of its next calls.
func (n *walker) armCrash() {
	g := n.w.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.dead {
		g.at, g.after = g.count+1+n.IntN(15), n.Chance(0.5)
		n.Note("dies in %d calls, after=%t", g.at-g.count, g.after)
	}
}

// takeAway deletes a volume snapshot of ours behind our back.
func (n *walker) takeAway() {
	for _, s := range n.w.fake.Inventory().Snapshots {
		if !n.foreign[s.ID] && n.Chance(0.3) {
			n.Note("others delete %s (%s)", s.ID, s.Name)
			n.taken[s.ID] = true
			n.w.fake.Discard(s.ID)
			return
		}
	}
}

// takeAnswers has the next call of each kind be done and not answered.
func (n *walker) takeAnswers() {
	var plan []blockdevtest.Fault
	for _, op := range []string{"CreateVolume", "CreateVolumeSnapshot", "DeleteVolume", "DeleteVolumeSnapshot", "Attach", "Detach"} {
		plan = append(plan, blockdevtest.Fault{Op: op, Times: 1, Err: blockdev.ErrFailed, Done: true})
	}
	n.Note("the next call of each kind is done and ends with an error")
	n.w.fake.Plan(plan...)
}

// look checks what must hold at all times, and starts another process if this one has died.
func (n *walker) look() {
	n.Helper()
	synctest.Wait()
	if n.w.revive() {
		n.Note("died")
		synctest.Wait()
	}
	n.checkAll()
	n.Stand()
}

func (n *walker) checkAll() {
	list, err := n.w.store.List(n.Context(), store.Filter{})
	require.NoError(n, err)
	all := n.w.fake.Inventory()
	owners := map[string]int{}
	for _, s := range list {
		switch s.Status.Phase {
		case imagesnapshot.PhasePending, imagesnapshot.PhaseDeleting:
		default:
			owners[s.Owner]++
		}
		n.checkOne(s, all)
	}
	for owner, count := range owners {
		if count > quota {
			n.Break("%s has %d image snapshots at work or at rest, allowed are %d", owner, count, quota)
		}
	}
	n.checkForeign(all)
}

// checkOne wants what an image snapshot promises to be there.
func (n *walker) checkOne(s *imagesnapshot.ImageSnapshot, all blockdevtest.Inventory) {
	taken := slices.ContainsFunc(s.Status.VolumeSnapshots, func(v imagesnapshot.VolumeSnapshot) bool { return n.taken[v.ID] })
	if s.Status.Reason == imagesnapshot.ReasonVolumeSnapshotLost && len(n.taken) == 0 {
		n.Break("%s is said to be lost, and nobody took anything away: %s", s.Name, s.Status.Message)
	}
	for _, e := range s.Status.Events {
		if e.Reason == imagesnapshot.ReasonVolumeSnapshotLost && !slices.ContainsFunc(slices.Collect(keys(n.taken)), func(id string) bool { return strings.Contains(e.Message, id) }) {
			n.Break("%s is said to have lost what nobody took away: %s", s.Name, e.Message)
		}
	}
	if !s.Usable(time.Now(), false) || taken {
		return
	}
	encoded, err := n.w.store.GetIndex(n.Context(), s.Status.Identity.IndexDigest)
	if err != nil {
		n.Break("%s is usable and its index is gone: %v", s.Name, err)
		return
	}
	for _, v := range s.Status.VolumeSnapshots {
		content := n.w.fake.SnapshotContent(v.ID)
		if !bytes.HasPrefix(content, append([]byte("D"), encoded...)) {
			n.Break("%s is usable by %s (%s), which does not hold its disk but %d bytes, %.40q", s.Name, v.ID, v.Name, len(content), content)
		}
	}
	if id := s.Status.VolumeID; id != "" && !slices.ContainsFunc(all.Volumes, func(v blockdev.Volume) bool { return v.ID == id }) {
		n.Break("%s is usable by volume %s, which is not there", s.Name, id)
	}
	if s.Status.VolumeID == "" && len(s.Status.VolumeSnapshots) == 0 {
		n.Break("%s is usable by nothing", s.Name)
	}
}

func keys(m map[string]bool) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func (n *walker) checkForeign(all blockdevtest.Inventory) {
	there := map[string]bool{}
	for _, v := range all.Volumes {
		there[v.ID] = true
	}
	for _, s := range all.Snapshots {
		there[s.ID] = true
	}
	for id := range n.foreign {
		if !there[id] {
			n.Break("%s of others is gone", id)
		}
	}
	if !slices.ContainsFunc(all.Attached, func(id string) bool { return n.foreign[id] }) {
		n.Break("the attachment of others is gone")
	}
}

// rest wants everything to come to rest some time after the cloud behaves again.
func (n *walker) rest() {
	n.Helper()
	n.Note("the cloud behaves again")
	n.w.fake.Misbehave(blockdevtest.Misbehaviour{})
	n.w.fake.Plan()
	n.w.builder.set(time.Minute, nil)
	n.w.gate.mu.Lock()
	n.w.gate.at = 0
	n.w.gate.mu.Unlock()
	for range 24 {
		time.Sleep(time.Hour)
		n.look()
	}
	list, err := n.w.store.List(n.Context(), store.Filter{})
	require.NoError(n, err)
	for _, s := range list {
		if s.Status.Work != nil || s.Status.Phase.Building() || s.Status.Phase == imagesnapshot.PhaseDeleting {
			n.Errorf("%s does not come to rest: %s, %s, %+v", s.Name, s.Status.Phase, s.Status.Message, s.Status.Work)
		}
	}
}

// deleteAll wants nothing to be left.
func (n *walker) deleteAll() {
	n.Helper()
	n.Note("all is deleted")
	list, err := n.w.store.List(n.Context(), store.Filter{})
	require.NoError(n, err)
	for _, s := range list {
		_, err := n.w.engine.Delete(n.Context(), lifecycle.DeleteRequest{NameOrID: s.Name})
		require.NoError(n, err)
	}
	time.Sleep(time.Hour) // the sweep too
	n.look()
	list, err = n.w.store.List(n.Context(), store.Filter{})
	require.NoError(n, err)
	for _, s := range list {
		n.Errorf("%s is left: %s, %s", s.Name, s.Status.Phase, s.Status.Message)
	}
	all := n.w.fake.Inventory()
	for _, v := range all.Volumes {
		if !n.foreign[v.ID] {
			n.Errorf("volume %s (%s) is left", v.ID, v.Name)
		}
	}
	for _, s := range all.Snapshots {
		if !n.foreign[s.ID] {
			n.Errorf("volume snapshot %s (%s) is left", s.ID, s.Name)
		}
	}
	for _, id := range all.Attached {
		if !n.foreign[id] {
			n.Errorf("volume %s is still attached", id)
		}
	}
	kept, err := n.w.store.ListIndexes(n.Context())
	require.NoError(n, err)
	require.Empty(n, kept, "indexes")
}
