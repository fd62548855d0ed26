// Package walk runs random tests: many steps drawn from a seed, so that a walk that failed can be gone again. What led
// to the failure, and the seed, is printed.
//
//	BERTH_SEED=17          go only the walk of this seed
//	BERTH_STEPS=1000000    go so many steps in all, instead of the test's own number
//
// Both together go one walk of that seed, so many steps long.
package walk

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
)

const (
	seedVariable  = "BERTH_SEED"
	stepsVariable = "BERTH_STEPS"
	// traced is how many of the last lines are printed.
	traced = 120
)

// Walk is one walk, on a clock of its own. It is safe for concurrent use, but for the random numbers.
type Walk struct {
	*testing.T
	*rand.Rand
	Seed uint64
	// Steps to go.
	Steps int

	begun time.Time

	mu sync.Mutex // guards what follows
	// lines are the last ones, oldest first; count is the number of all.
	lines  []string
	count  int
	broken []string
}

// Run goes walks of at most length steps until there were that many in all, each with a seed of its own: 1, 2 and so
// on. Each runs in a bubble of synctest, so that waiting costs nothing. What goroutines do at the same time may still
// come in another order; UUIDs are drawn from the seed too, so a test that walks must not run in parallel with others.
// With the race detector it goes a tenth of the steps.
func Run(t *testing.T, steps, length int, walk func(w *Walk)) {
	t.Helper()
	first, last, each := plan(t, (steps+slowness-1)/slowness, length)
	for seed := first; seed <= last; seed++ {
		ok := t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := New(t, seed)
				w.Steps = each
				// Chances are drawn by names, many of which have a UUID in them.
				uuid.SetRand(&source{chaCha: rand.NewChaCha8([32]byte(binary.LittleEndian.AppendUint64(make([]byte, 24), seed)))})
				defer uuid.SetRand(nil)
				defer w.report()
				walk(w)
			})
		})
		if !ok {
			return // one is enough to read
		}
	}
}

// plan says which seeds to walk with, and how many steps with each.
func plan(t *testing.T, steps, length int) (first, last uint64, each int) {
	t.Helper()
	given := os.Getenv(stepsVariable)
	if given != "" {
		n, err := strconv.Atoi(given)
		if err != nil || n < 1 {
			t.Fatalf("%s=%q is no number of steps", stepsVariable, given)
		}
		steps = n
	}
	text := os.Getenv(seedVariable)
	if text == "" {
		return 1, uint64((steps + length - 1) / length), min(length, steps)
	}
	seed, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q is no seed", seedVariable, text)
	}
	if given == "" {
		steps = min(length, steps)
	}
	return seed, seed, steps
}

// source gives the same bytes for the same seed.
type source struct {
	mu     sync.Mutex // guards chaCha
	chaCha *rand.ChaCha8
}

func (s *source) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.chaCha.Read(p)
}

// New makes a walk without steps, for tests that go a way of their own through the world of one that is random.
func New(t *testing.T, seed uint64) *Walk {
	return &Walk{T: t, Rand: rand.New(rand.NewPCG(seed, seed)), Seed: seed, begun: time.Now()}
}

// Note adds a line to the trace.
func (w *Walk) Note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count++
	w.lines = append(w.lines, fmt.Sprintf("%6d %12s  ", w.count, time.Since(w.begun).Round(time.Millisecond))+fmt.Sprintf(format, args...))
	if len(w.lines) > 2*traced {
		w.lines = slices.Delete(w.lines, 0, traced)
	}
}

// Break notes that something is not as it must always be, from any goroutine. Broken says what was.
func (w *Walk) Break(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	w.Note("BROKEN: %s", text)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, text)
}

// Broken gives what Break was told.
func (w *Walk) Broken() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.broken)
}

// Stand fails the test if anything is broken.
func (w *Walk) Stand() {
	w.Helper()
	if broken := w.Broken(); len(broken) > 0 {
		w.Fatalf("%d things broken, the first: %s", len(broken), broken[0])
	}
}

func (w *Walk) report() {
	if !w.Failed() {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, line := range w.lines[max(0, len(w.lines)-traced):] {
		w.Log(line)
	}
	w.Logf("the seed is %d: %s=%d go test -run '%s'", w.Seed, seedVariable, w.Seed, w.Name())
}

// Chance is true with a probability.
func (w *Walk) Chance(p float64) bool { return w.Float64() < p }

// Pick draws one of a list that is not empty.
func Pick[T any](w *Walk, list []T) T { return list[w.IntN(len(list))] }

// Choice is one thing that a step can be, drawn in proportion to its weight.
type Choice struct {
	Weight int
	Do     func()
}

// Step draws one of the choices and does it.
func (w *Walk) Step(choices []Choice) {
	sum := 0
	for _, c := range choices {
		sum += c.Weight
	}
	at := w.IntN(sum)
	for _, c := range choices {
		if at -= c.Weight; at < 0 {
			c.Do()
			return
		}
	}
}
