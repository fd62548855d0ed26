package policy_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"berth.dev/berth/blockdev"
	"berth.dev/berth/imagesnapshot"
	"berth.dev/berth/imagesnapshot/lifecycle/policy"
	"berth.dev/berth/layerdisk"
)

const day = 24 * time.Hour

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) //nolint:gochecknoglobals // a constant

// made is an image snapshot in a phase.
func made(phase imagesnapshot.Phase, change ...func(*imagesnapshot.ImageSnapshot)) *imagesnapshot.ImageSnapshot {
	s := &imagesnapshot.ImageSnapshot{Metadata: imagesnapshot.Metadata{Name: "one", Created: start, Origin: imagesnapshot.OriginManual}}
	s.Status.Phase = phase
	for _, c := range change {
		c(s)
	}
	return s
}

func TestExpires(t *testing.T) {
	s := made(imagesnapshot.PhaseAvailable)
	s.Status.Ready = start.Add(time.Hour)
	require.Zero(t, policy.Expires(s), "no retention is for ever")
	s.Spec.RetentionDays = 3
	require.Equal(t, start.Add(time.Hour+3*day), policy.Expires(s))
}

func TestLastUse(t *testing.T) {
	s := made(imagesnapshot.PhaseAvailable)
	require.Equal(t, start, policy.LastUse(s))
	s.Status.Ready = start.Add(time.Hour)
	require.Equal(t, s.Status.Ready, policy.LastUse(s))
	s.Status.LastMatched = start.Add(2 * time.Hour)
	require.Equal(t, s.Status.LastMatched, policy.LastUse(s))
	s.Status.Ready = start.Add(3 * time.Hour)
	require.Equal(t, s.Status.Ready, policy.LastUse(s), "an update is as good as a use")
}

func TestNeedsBuild(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*imagesnapshot.Spec)
		want   bool
	}{
		"nothing":     {func(*imagesnapshot.Spec) {}, false},
		"images":      {func(s *imagesnapshot.Spec) { s.Images = []string{"b"} }, true},
		"platforms":   {func(s *imagesnapshot.Spec) { s.Platforms = []string{"linux/arm64"} }, true},
		"size":        {func(s *imagesnapshot.Spec) { s.Size.GiB = 30 }, true},
		"registries":  {func(s *imagesnapshot.Spec) { s.Registries = []imagesnapshot.Registry{{Server: "x"}} }, true},
		"copies":      {func(s *imagesnapshot.Spec) { s.Copies.Standard = 2 }, true},
		"flash":       {func(s *imagesnapshot.Spec) { s.Copies.Flash, s.Flash = 2, true }, false},
		"retention":   {func(s *imagesnapshot.Spec) { s.RetentionDays = 9 }, false},
		"elimination": {func(s *imagesnapshot.Spec) { s.Elimination = imagesnapshot.EliminationLRU }, false},
		"timeout":     {func(s *imagesnapshot.Spec) { s.Build.TimeoutMinutes = 99 }, false},
	} {
		old := imagesnapshot.Spec{Images: []string{"a"}, Size: imagesnapshot.Size{GiB: 20}, Copies: imagesnapshot.Copies{Standard: 1, Flash: 1}}
		updated := old.Clone()
		c.change(&updated)
		require.Equal(t, c.want, policy.NeedsBuild(old, updated), name)
	}
}

// TestAge is A-7, E-30, Q8 and Q11: which phases end in time, when, and why.
func TestAge(t *testing.T) {
	expires := func(at time.Time) func(*imagesnapshot.ImageSnapshot) {
		return func(s *imagesnapshot.ImageSnapshot) { s.Status.Expires = at }
	}
	automatic := func(s *imagesnapshot.ImageSnapshot) { s.Origin = imagesnapshot.OriginAutomatic }
	now := start.Add(2 * day)
	for name, c := range map[string]struct {
		object  *imagesnapshot.ImageSnapshot
		lastUse time.Time
		want    policy.Verdict
	}{
		"for ever":             {made(imagesnapshot.PhaseAvailable), start, policy.Verdict{}},
		"not yet":              {made(imagesnapshot.PhaseAvailable, expires(now.Add(1))), start, policy.Verdict{Until: now.Add(1)}},
		"expired":              {made(imagesnapshot.PhaseAvailable, expires(now)), start, policy.Verdict{Fate: policy.Retire, Reason: imagesnapshot.ReasonExpired}},
		"expired after update": {made(imagesnapshot.PhaseUpdateFailed, expires(now)), start, policy.Verdict{Fate: policy.Retire, Reason: imagesnapshot.ReasonExpired}},
		"failure is kept":      {made(imagesnapshot.PhaseFailed, expires(now.Add(1))), start, policy.Verdict{Until: now.Add(1)}},
		"failure goes":         {made(imagesnapshot.PhaseFailed, expires(now)), start, policy.Verdict{Fate: policy.Delete, Reason: imagesnapshot.ReasonKeptLongEnough}},
		"unavailable goes":     {made(imagesnapshot.PhaseUnavailable, expires(now)), start, policy.Verdict{Fate: policy.Delete, Reason: imagesnapshot.ReasonKeptLongEnough}},
		"unavailable stays":    {made(imagesnapshot.PhaseUnavailable), start, policy.Verdict{}},
		"unused":               {made(imagesnapshot.PhaseAvailable, automatic), now.Add(-3 * day), policy.Verdict{Fate: policy.Retire, Reason: imagesnapshot.ReasonUnused}},
		"used":                 {made(imagesnapshot.PhaseAvailable, automatic), now.Add(1 - 3*day), policy.Verdict{Until: now.Add(1)}},
		"used, expires before": {made(imagesnapshot.PhaseAvailable, automatic, expires(now.Add(time.Hour))), now, policy.Verdict{Until: now.Add(time.Hour)}},
		"manual is not used":   {made(imagesnapshot.PhaseAvailable), now.Add(-99 * day), policy.Verdict{}},
		"under way":            {made(imagesnapshot.PhaseUpdating, expires(start)), start, policy.Verdict{}},
		"being deleted":        {made(imagesnapshot.PhaseDeleting, expires(start)), start, policy.Verdict{}},
	} {
		got := policy.Age(c.object, now, c.lastUse, 3*day)
		require.Equal(t, c.want.Fate != policy.Keep, got.Message != "", name)
		got.Message = ""
		require.Equal(t, c.want, got, name)
	}
}

func TestEarlier(t *testing.T) {
	a, b := start, start.Add(1)
	require.Equal(t, a, policy.Earlier(a, b))
	require.Equal(t, a, policy.Earlier(b, a))
	require.Equal(t, a, policy.Earlier(a, time.Time{}))
	require.Equal(t, a, policy.Earlier(time.Time{}, a))
	require.Zero(t, policy.Earlier(time.Time{}, time.Time{}))
}

// TestSizeFor is Q15.
func TestSizeFor(t *testing.T) {
	const gib = 1 << 30
	require.EqualValues(t, 20*gib, policy.SizeFor(nil, 20))
	require.EqualValues(t, 20*gib, policy.SizeFor([]int64{gib, 2 * gib}, 20))
	require.EqualValues(t, 21*gib, policy.SizeFor([]int64{7 * gib}, 20))
	require.EqualValues(t, 22*gib, policy.SizeFor([]int64{7 * gib, 1}, 20))
	require.EqualValues(t, gib, policy.RoundGiB(1))
	require.EqualValues(t, gib, policy.RoundGiB(gib))
	require.EqualValues(t, 2*gib, policy.RoundGiB(gib+1))
}

func TestBuildReason(t *testing.T) {
	for err, want := range map[error]imagesnapshot.Reason{
		errdefs.ErrNotFound:          imagesnapshot.ReasonImageUnavailable,
		errdefs.ErrUnauthenticated:   imagesnapshot.ReasonImageUnavailable,
		errdefs.ErrPermissionDenied:  imagesnapshot.ReasonImageUnavailable,
		errdefs.ErrResourceExhausted: imagesnapshot.ReasonTooSmall,
		errdefs.ErrDataLoss:          imagesnapshot.ReasonBuildFailed,
		errdefs.ErrInvalidArgument:   imagesnapshot.ReasonBuildFailed,
	} {
		require.Equal(t, want, policy.BuildReason(fmt.Errorf("build: %w", err)), err)
	}
}

func TestWaitForStorage(t *testing.T) {
	const last = policy.MaxStorageFailures
	for name, c := range map[string]struct {
		err      error
		failures int
		built    bool
		want     bool
	}{
		"throttled":                  {blockdev.ErrThrottled, 1, false, true},
		"throttled for too long":     {blockdev.ErrThrottled, last, false, false},
		"throttled with a disk":      {blockdev.ErrThrottled, 100, true, true},
		"in use":                     {blockdev.ErrInUse, 1, false, true},
		"in use with a disk":         {blockdev.ErrInUse, last, true, false},
		"not known yet":              {blockdev.ErrNotFound, last - 1, false, true},
		"whatever passes":            {errdefs.ErrInternal, 1, false, true},
		"no such thing":              {blockdev.ErrUnsupported, 1, true, false},
		"a request that makes sense": {blockdev.ErrInvalid, 1, false, false},
	} {
		require.Equal(t, c.want, policy.WaitForStorage(c.err, c.failures, c.built), name)
	}
}

// TestExcess is A-3: what counts for which quota.
func TestExcess(t *testing.T) {
	lru := func(s *imagesnapshot.ImageSnapshot) { s.Spec.Elimination = imagesnapshot.EliminationLRU }
	automatic := func(s *imagesnapshot.ImageSnapshot) { s.Origin = imagesnapshot.OriginAutomatic }
	list := []*imagesnapshot.ImageSnapshot{
		made(imagesnapshot.PhaseAvailable), made(imagesnapshot.PhaseAvailable, lru), made(imagesnapshot.PhaseCreating, lru, automatic),
		made(imagesnapshot.PhaseDeleting, lru), made(imagesnapshot.PhaseFailed, lru, automatic),
	}
	excess := func(q policy.Quota) []int {
		n, victims := q.Excess(list)
		return []int{n, len(victims)}
	}
	require.Equal(t, []int{0, 0}, excess(policy.Quota{}), "no limit")
	require.Equal(t, []int{0, 0}, excess(policy.Quota{Most: 4}), "one that is being deleted does not count")
	require.Equal(t, []int{2, 2}, excess(policy.Quota{Most: 2}))
	require.Equal(t, []int{1, 1}, excess(policy.Quota{Most: 1, Automatic: true}), "only automatic ones make room for automatic ones")

	l := imagesnapshot.Limits{MaxPerOwner: 7, MaxAutomatic: 3}
	require.Equal(t, []policy.Quota{{Most: 7}}, policy.Quotas(l, imagesnapshot.OriginManual))
	require.Equal(t, []policy.Quota{{Most: 3, Automatic: true}, {Most: 7}}, policy.Quotas(l, imagesnapshot.OriginAutomatic))
	for _, q := range policy.Quotas(l, imagesnapshot.OriginAutomatic) {
		require.True(t, errdefs.IsResourceExhausted(q.Refusal()))
		require.ErrorContains(t, q.Refusal(), fmt.Sprint(q.Most))
	}
}

func TestVictims(t *testing.T) {
	victim := func(name string, phase imagesnapshot.Phase, used time.Duration) *imagesnapshot.ImageSnapshot {
		return made(phase, func(s *imagesnapshot.ImageSnapshot) {
			s.Name, s.Spec.Elimination, s.Status.LastMatched = name, imagesnapshot.EliminationLRU, start.Add(used)
		})
	}
	asked := victim("asked", imagesnapshot.PhaseAvailable, 1)
	asked.DeletionRequested = start
	stays := victim("stays", imagesnapshot.PhaseAvailable, 1)
	stays.Spec.Elimination = imagesnapshot.EliminationNone
	older := victim("older", imagesnapshot.PhaseFailed, 3)
	older.Created = start.Add(-1)
	var got []string
	for _, v := range policy.Victims([]*imagesnapshot.ImageSnapshot{
		victim("late", imagesnapshot.PhaseAvailable, 9), asked, stays, victim("early", imagesnapshot.PhaseUpdateFailed, 2),
		victim("younger", imagesnapshot.PhaseUnavailable, 3), older,
		victim("pending", imagesnapshot.PhasePending, 1), victim("creating", imagesnapshot.PhaseCreating, 1),
		victim("updating", imagesnapshot.PhaseUpdating, 1), victim("deleting", imagesnapshot.PhaseDeleting, 1),
	}) {
		got = append(got, v.Name)
	}
	require.Equal(t, []string{"early", "older", "younger", "late"}, got)
}

// TestBaseOf is E-22: of which image snapshots a disk may be started.
func TestBaseOf(t *testing.T) {
	good := func(s *imagesnapshot.ImageSnapshot) {
		s.Status.Identity.IndexDigest = digest.FromString("index")
		s.Status.VolumeBytes = 20
		s.Status.VolumeSnapshots = []imagesnapshot.VolumeSnapshot{
			{ID: "flash", Ready: true, Kind: imagesnapshot.VolumeSnapshotFlash, SizeBytes: 1},
			{ID: "late", Kind: imagesnapshot.VolumeSnapshotStandard, SizeBytes: 1},
			{ID: "good", Ready: true, Kind: imagesnapshot.VolumeSnapshotStandard, SizeBytes: 32},
		}
	}
	got, ok := policy.BaseOf(made(imagesnapshot.PhaseUpdating, good))
	require.True(t, ok)
	require.Equal(t, policy.Base{Name: "one", VolumeSnapshotID: "good", SizeBytes: 32, WantedBytes: 20}, got)

	got, ok = policy.BaseOf(made(imagesnapshot.PhaseAvailable, good, func(s *imagesnapshot.ImageSnapshot) { s.Status.VolumeSnapshots[2].SizeBytes = 0 }))
	require.True(t, ok)
	require.EqualValues(t, 20, got.SizeBytes, "not every storage tells the size of a volume snapshot")

	for name, s := range map[string]*imagesnapshot.ImageSnapshot{
		"no disk":       made(imagesnapshot.PhaseAvailable, good, func(s *imagesnapshot.ImageSnapshot) { s.Status.Identity.IndexDigest = "" }),
		"deleted":       made(imagesnapshot.PhaseAvailable, good, func(s *imagesnapshot.ImageSnapshot) { s.DeletionRequested = start }),
		"unavailable":   made(imagesnapshot.PhaseUnavailable, good),
		"no copy of it": made(imagesnapshot.PhaseAvailable, good, func(s *imagesnapshot.ImageSnapshot) { s.Status.VolumeSnapshots = s.Status.VolumeSnapshots[:2] }),
	} {
		_, ok := policy.BaseOf(s)
		require.False(t, ok, name)
	}
}

func TestShared(t *testing.T) {
	d := digest.FromString
	ix := &layerdisk.Index{
		FileSystem: layerdisk.FileSystemEROFS,
		Layers: []layerdisk.Layer{
			{Number: 0, DiffID: d("base"), UnpackedBytes: 1},
			{Number: 1, DiffID: d("bound"), UnpackedBytes: 10, StackBound: true},
			{Number: 2, DiffID: d("other"), UnpackedBytes: 100},
		},
		Chains: []layerdisk.Chain{{ChainID: d("chain"), Layer: 1}},
	}
	for name, c := range map[string]struct {
		diffIDs, chains []digest.Digest
		common          int64
	}{
		"nothing":                  {nil, nil, 0},
		"a layer":                  {[]digest.Digest{d("base")}, nil, 1},
		"bound to another stack":   {[]digest.Digest{d("base"), d("bound")}, []digest.Digest{d("x")}, 1},
		"bound to the same stack":  {[]digest.Digest{d("base"), d("bound")}, []digest.Digest{d("chain")}, 11},
		"all that there is, twice": {[]digest.Digest{d("base"), d("base"), d("bound"), d("other")}, []digest.Digest{d("chain")}, 111},
	} {
		common, total := policy.NeedsOf(c.diffIDs, c.chains).Shared(policy.ContentsOf(ix))
		require.Equal(t, []int64{c.common, 111}, []int64{common, total}, name)
	}
	require.False(t, policy.Worthwhile(0, 0))
	require.False(t, policy.Worthwhile(49, 100))
	require.True(t, policy.Worthwhile(50, 100))
}

// TestChoose is E-22: start from the disk that shares most if half of it is needed, copy what it lacks from others.
func TestChoose(t *testing.T) {
	d := digest.FromString
	disk := func(name string, wanted int64, layers map[string]int64) policy.Candidate {
		ix := &layerdisk.Index{FileSystem: layerdisk.FileSystemEROFS}
		for l, bytes := range layers {
			ix.Layers = append(ix.Layers, layerdisk.Layer{Number: len(ix.Layers), DiffID: d(l), UnpackedBytes: bytes})
		}
		return policy.Candidate{Base: policy.Base{Name: name, WantedBytes: wanted}, Contents: policy.ContentsOf(ix)}
	}
	needed := policy.NeedsOf([]digest.Digest{d("base"), d("s1"), d("s2"), d("s3"), d("s4"), d("s5"), d("s6"), d("empty")}, nil)
	near := disk("near", 20, map[string]int64{"base": 100, "s1": 10})
	wide := disk("wide", 20, map[string]int64{"base": 100, "s2": 20, "x": 500})
	large := disk("large", 400, map[string]int64{"base": 100, "s1": 10, "s3": 30})
	useless := disk("useless", 20, map[string]int64{"x": 500})
	hollow := disk("hollow", 20, map[string]int64{"empty": 0, "x": 1})
	ext4 := policy.Candidate{Base: policy.Base{Name: "ext4"}, Contents: policy.ContentsOf(&layerdisk.Index{
		FileSystem: layerdisk.FileSystemExt4, Layers: []layerdisk.Layer{{DiffID: d("base"), UnpackedBytes: 100}},
	})}
	tiny := func(l string) policy.Candidate { return disk(l, 20, map[string]int64{l: 1, "x": 500}) }
	for name, c := range map[string]struct {
		disks  []policy.Candidate
		fixed  int64
		start  string
		donors []string
	}{
		"nothing there":               {nil, 20, "", nil},
		"nothing of use":              {[]policy.Candidate{useless, hollow, ext4}, 20, "", nil},
		"one to start from":           {[]policy.Candidate{near, useless}, 20, "near", nil},
		"one to copy from":            {[]policy.Candidate{wide}, 20, "", []string{"wide"}},
		"too large to start from":     {[]policy.Candidate{large, wide}, 20, "", []string{"large", "wide"}},
		"as large as needed":          {[]policy.Candidate{large, wide}, 0, "large", []string{"wide"}},
		"start, and two to copy from": {[]policy.Candidate{near, wide, large}, 20, "near", []string{"large", "wide"}},
		"of equal ones the first":     {[]policy.Candidate{wide, disk("wider", 20, map[string]int64{"base": 100, "s2": 20, "x": 900})}, 20, "", []string{"wide"}},
		"no more than four": {
			[]policy.Candidate{tiny("s1"), tiny("s2"), tiny("s3"), tiny("s4"), tiny("s5"), tiny("s6")}, 20, "", []string{"s1", "s2", "s3", "s4"},
		},
	} {
		start, donors := policy.Choose(needed, c.disks, c.fixed)
		got := ""
		if start != nil {
			got = start.Name
		}
		var names []string
		for _, b := range donors {
			names = append(names, b.Name)
		}
		require.Equal(t, c.start, got, name)
		require.Equal(t, c.donors, names, name)
	}
}
