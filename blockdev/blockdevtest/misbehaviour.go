package blockdevtest

import (
	"context"
	"encoding/binary"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"berth.dev/berth/blockdev"
)

// Misbehaviour is what a cloud does wrong. Each field is one fault, off by its zero value, and all may be on together.
// They are modelled on what real clouds do, as far as it is known; durations are of the clock of the test, so give it
// one of its own with testing/synctest.
//
// Chances are drawn from Seed, the operation, the object and the number of times that came up, so that calls about
// other objects do not change what happens to this one.
type Misbehaviour struct {
	Seed uint64

	// Throttle refuses calls with ErrThrottled that come faster than a bucket for each operation fills, as EC2 does
	// with RequestLimitExceeded: buckets of 100 that fill by 20 a second for reading, smaller ones for changing
	// (docs.aws.amazon.com/ec2/latest/devguide/ec2-api-throttling.html).
	Throttle Bucket
	// Latency of each call. The operation is done in the middle of it: a context that ends later loses only the answer.
	// Clouds take 1 to 10 seconds to make a volume, and 2 to 20 to attach one.
	Latency Between
	// Fail is the chance that a call ends with ErrFailed and nothing was done: an internal error.
	Fail float64
	// LoseAnswer is the chance that a call is done and answered with ErrThrottled: a request that timed out on its way
	// back, or an attachment that was reported as still going on
	// (github.com/kubernetes-sigs/aws-ebs-csi-driver/issues/1801).
	LoseAnswer float64
	// VisibleAfter is how long a new volume or volume snapshot does not exist for calls that look for it, all but its
	// creation and deletion, and how long one that was deleted is still listed. EC2 tells clients to be ready for up to
	// five minutes (docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html).
	VisibleAfter Between
	// ReadyAfter is how long a volume snapshot is not ready to be used.
	ReadyAfter Between
	// DeviceAfter is how long a device takes to appear after its volume is attached. Attach waits for it.
	DeviceAfter Between
	// ReuseNames gives a device the lowest name and number that are free, as kernels do, instead of new ones each time:
	// what a name meant before, it does not mean now.
	ReuseNames bool
	// CutSerials is the chance that Attach gives the device of another volume whose ID has the same first 20 bytes, all
	// that the serial of a virtio disk holds (VIRTIO_BLK_ID_BYTES; github.com/kubevirt/csi-driver/issues/368). Volumes
	// are made in pairs of such IDs.
	CutSerials float64
	// SlotsTaken by attachments of others count for the limit.
	SlotsTaken int
	// StickDetach is the chance that Detach is begun and does not end before StuckFor is over: until then it and Attach
	// answer ErrThrottled. EBS calls it detaching, then busy, for minutes to hours
	// (github.com/kubernetes-sigs/aws-ebs-csi-driver/issues/1032, …/2255).
	StickDetach float64
	StuckFor    Between
	// SizeStep, if not 0, makes volumes of a multiple of so many bytes, at least as large as asked for: whole GiB on
	// most clouds, and from 10 or 20 GiB on some.
	SizeStep int64
	// CutDevice is the chance that a device shows only the first half of its volume until it is attached again, as one
	// whose new size the node has not learned of.
	CutDevice float64
	// FailDevice and StallDevice are the chances that a device gives an error for everything, or does not answer at
	// all, until it is attached anew. SetDevice does it to one that is there.
	FailDevice, StallDevice float64
	// ReadError is the chance that reading a device fails once.
	ReadError float64
}

// Between is a time that is drawn anew for each case.
type Between struct{ Least, Most time.Duration }

// Bucket holds tokens, one for each call.
type Bucket struct {
	// Size is how many tokens it holds; 0 is a bucket without end.
	Size float64
	// PerSecond are added.
	PerSecond float64
}

// faults are all misbehaviours, each as bad as it is known to be, by the names that the documentation has.
func faults() map[string]func(*Misbehaviour) {
	type M = *Misbehaviour
	return map[string]func(M){
		"throttling":               func(m M) { m.Throttle = Bucket{Size: 5, PerSecond: 1} },
		"latency":                  func(m M) { m.Latency = Between{time.Second, 20 * time.Second} },
		"internal errors":          func(m M) { m.Fail = 0.3 },
		"lost answers":             func(m M) { m.LoseAnswer = 0.3 },
		"eventual consistency":     func(m M) { m.VisibleAfter = Between{0, 5 * time.Minute} },
		"snapshots ready late":     func(m M) { m.ReadyAfter = Between{time.Second, 10 * time.Minute} },
		"devices appear late":      func(m M) { m.DeviceAfter = Between{time.Second, 30 * time.Second} },
		"device names change":      func(m M) { m.ReuseNames = true },
		"serials are cut off":      func(m M) { m.CutSerials = 0.5 },
		"attach limit is shared":   func(m M) { m.SlotsTaken = 2 },
		"detaching sticks":         func(m M) { m.StickDetach, m.StuckFor = 0.3, Between{time.Minute, time.Hour} },
		"volumes are larger":       func(m M) { m.SizeStep = 1 << 14 },
		"devices are cut off":      func(m M) { m.CutDevice = 0.3 },
		"devices fail":             func(m M) { m.FailDevice = 0.2 },
		"devices stall":            func(m M) { m.StallDevice = 0.2 },
		"devices give read errors": func(m M) { m.ReadError = 0.1 },
	}
}

// FaultNames are what Faults knows, sorted.
func FaultNames() []string { return slices.Sorted(maps.Keys(faults())) }

// Faults is a cloud with these faults at once. A name that is none is a mistake in the test, and panics.
func Faults(seed uint64, names ...string) Misbehaviour {
	m := Misbehaviour{Seed: seed}
	all := faults()
	for _, name := range names {
		all[name](&m)
	}
	return m
}

// Misbehave replaces what the cloud does wrong from now on; the zero value ends it. What has begun goes on: a
// detachment that is stuck, a volume that is not visible yet. Devices keep their faults until they are attached anew.
func (f *Fake) Misbehave(m Misbehaviour) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.wrong = m
	f.tokens = make(map[string]tokens)
}

// tokens are what was in a bucket at a time.
type tokens struct {
	left float64
	at   time.Time
}

// roll draws a number of 0 to below 1. The caller holds mu.
func (f *Fake) roll(what, object string) float64 {
	key := what + " " + object
	f.rolls[key]++
	h := fnv.New64a()
	_, _ = h.Write([]byte(key)) // never fails
	_, _ = h.Write(binary.LittleEndian.AppendUint64(nil, f.rolls[key]))
	return rand.New(rand.NewPCG(f.wrong.Seed, h.Sum64())).Float64()
}

// hits says whether something of a chance happens. The caller holds mu.
func (f *Fake) hits(chance float64, what, object string) bool {
	return chance > 0 && f.roll(what, object) < chance
}

// draw a time. The caller holds mu.
func (f *Fake) draw(b Between, what, object string) time.Duration {
	if b.Most <= b.Least {
		return b.Least
	}
	return b.Least + time.Duration(f.roll(what, object)*float64(b.Most-b.Least))
}

// throttled takes a token and says that there was none. The caller holds mu.
func (f *Fake) throttled(op string) bool {
	b := f.wrong.Throttle
	if b.Size == 0 {
		return false
	}
	now := time.Now()
	t, ok := f.tokens[op]
	if !ok {
		t = tokens{b.Size, now}
	}
	t.left = min(b.Size, t.left+now.Sub(t.at).Seconds()*b.PerSecond)
	t.at = now
	refused := t.left < 1
	if !refused {
		t.left--
	}
	f.tokens[op] = t
	return refused
}

// perform does one operation as badly as the misbehaviour says. The caller holds mu.
func (f *Fake) perform(a Action, operation func() error) error {
	if f.throttled(a.Op) {
		return blockdev.ErrThrottled
	}
	if f.hits(f.wrong.Fail, "fail "+a.Op, a.Object) {
		return blockdev.ErrFailed
	}
	err := operation()
	if err == nil && f.hits(f.wrong.LoseAnswer, "lose "+a.Op, a.Object) {
		return blockdev.ErrThrottled
	}
	return err
}

// pause takes time; none is over at once, whatever ctx says.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
